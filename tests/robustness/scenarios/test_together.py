"""Many edges at once: all come back with their backlogs, or the database is away for all of them."""

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any

from prometheus_client import REGISTRY

from cncmon_core import names
from robustness.scenarios.plant import MakePlant, Plant
from robustness.scenarios.size import LONG, SIZE
from robustness.traffic.local import LocalAgent
from robustness.validate.live import watching
from testkit.servers import Postgres

FRAMES = 10
"""Samples in a batch of the backlog."""

LIVE_MS_MAX = 5000
"""p99 of live samples meanwhile. All edges share one processor core here, in the field each has its own. Demanded in
the long round alone, which runs one test at a time.
"""

CONNECTIONS_EACH_MAX = 3
"""Connections that an edge may need: more would be a storm."""


DATABASE_EDGES = 100
DATABASE_DOWN_S = (30 if LONG else 10) * SIZE.calm_s
"""In the long round as many of the agents' duplicate windows as 3 h are in production: 90."""


def publish_errors() -> float:
    return REGISTRY.get_sample_value("cncmon_edge_publish_errors_total") or 0.0


async def live(edges: list[LocalAgent], stop: asyncio.Event) -> None:
    """Every edge reads its machines once a second, each at its own moment."""
    number = 0
    while not stop.is_set():
        edges[number % len(edges)].accept_now()
        number += 1
        await asyncio.sleep(1 / len(edges))


async def edges_of(plant: Plant, stack: AsyncExitStack, number: int, **changes: Any) -> list[LocalAgent]:
    """Run so many edges, all in this process."""
    return [
        await stack.enter_async_context(
            plant.local_agent(
                f"edge-{each:03d}",
                seed=plant.seed + each,
                generated=FRAMES // 2,
                spool="off",
                hot_bytes_max=1 << 20,
                linger_ms=100,
                linger_offline_ms=2000,
                heartbeat_ms=5000,
                watermark_poll_ms=5000,
                state_save_ms=5000,
                ack_timeout_ms=5000,
                **changes,
            )
        )
        for each in range(number)
    ]


async def test_many_edges_come_back_at_once(plant: Plant) -> None:
    """FAULT 22: none keeps another from coming back."""
    backlog_s = SIZE.backlog_batches * 2.0
    async with plant.running(edges=0), AsyncExitStack() as stack:
        edges = await edges_of(plant, stack, SIZE.edges, outage_s=backlog_s)
        async with watching(plant.dsn, plant.folder, [f"edge-{n:03d}-x001" for n in range(SIZE.edges)]) as seen:
            await asyncio.sleep(2)
            plant.note_fault(f"{SIZE.edges} edges cut off, back at once")
            await plant.proxy.refuse()
            for edge in edges:
                await edge.live_through(backlog_s)
            errors, connections, began_s = publish_errors(), plant.proxy.connections, time.monotonic()
            stop = asyncio.Event()
            reading = asyncio.create_task(live(edges, stop))
            await plant.proxy.open()
            seen.begin()
            await plant.recovered()
            seen.end()
            took_s = time.monotonic() - began_s
            await asyncio.sleep(2)
            stop.set()
            await reading
    latency = seen.latency(plant.accepted, await asyncio.to_thread(plant.all_polls))
    plant.notes |= {
        "all back after": f"{took_s:.1f} s",
        "connections": str(plant.proxy.connections - connections),
        "publishes not acknowledged in time": str(int(publish_errors() - errors)),
        "live p99 meanwhile in ms": str(latency.p99),
    }
    finding = await plant.holds()
    assert plant.proxy.connections - connections <= CONNECTIONS_EACH_MAX * SIZE.edges
    assert publish_errors() - errors <= 0.05 * finding.batches, "a loop of time-outs"
    async with plant.client() as client:
        stored = (await client.jetstream().stream_info(names.STREAM)).state.messages
    assert stored == finding.batches, "the stream holds each batch once"
    assert latency.p99 is not None
    assert not LONG or latency.p99 <= LIVE_MS_MAX


async def test_database_down_for_100_edges(plant_with: MakePlant, migrated: Postgres) -> None:
    """FAULT 38: what the stream has acknowledged it holds once; nobody sends again because nothing is stored."""
    plant = plant_with(migrated.dsn)
    async with plant.running(edges=0), AsyncExitStack() as stack:
        edges = await edges_of(plant, stack, DATABASE_EDGES)
        errors, stop = publish_errors(), asyncio.Event()
        reading = asyncio.create_task(live(edges, stop))
        await asyncio.sleep(SIZE.calm_s)
        plant.note_fault(f"database down for {DATABASE_DOWN_S:.0f} duplicate windows")
        migrated.kill()
        await asyncio.sleep(DATABASE_DOWN_S)
        twice = {name: times for name, times in (await plant.held()).items() if times > 1}
        await asyncio.to_thread(migrated.start)
        await plant.recovered()
        await asyncio.sleep(SIZE.calm_s)
        stop.set()
        await reading
    assert not twice, "sent again though the stream has it"
    finding = await plant.holds()
    assert publish_errors() == errors
    async with plant.client() as client:
        stored = (await client.jetstream().stream_info(names.STREAM)).state.messages
    assert stored == finding.batches, "the stream holds each batch once"
