"""FAULT 10: outages of an hour and a day, with as many batches and bytes as real ones; only the clocks run faster."""

import asyncio
import time

import pytest

from robustness.scenarios.plant import Plant
from robustness.scenarios.size import LONG
from robustness.validate.live import Live, watching

HOUR_S = 3600
LIVE_MS_MAX = 500
"""p99 of live samples while the backlog replays, acquisition to queryable. Demanded in the long round alone, which runs
one test at a time.
"""


async def outage(plant: Plant, seconds: float, machines: int) -> None:
    """Live through an outage with so many machines at 1 Hz, beside two real ones that go on while it is replayed."""
    async with plant.running(edges=1, agents=False, machines=2):
        real = plant.machines[0]
        agent = plant.local_agent(
            "e1", seed=plant.seed, generated=machines, outage_s=seconds, machines=real, **accelerated()
        )
        async with watching(plant.dsn, plant.folder, list(real.fleet.machines)) as live, agent as edge:
            await plant.flow()
            plant.note_fault(f"outage of {seconds / HOUR_S:g} h at {machines} samples/s")
            await plant.proxy.refuse()
            began_s = time.monotonic()
            await edge.live_through(seconds)
            plant.notes["outage lived through in s"] = f"{time.monotonic() - began_s:.1f}"
            connections = plant.proxy.connections
            await plant.proxy.open()
            # What was read before the connection is backlog itself; a live sample is one that is read with it.
            replaying = asyncio.create_task(begin_live(plant, live, connections))
            await plant.recovered()
            await replaying
            live.end()
            await plant.flow()
    latency = live.latency([edge.accepted], real.polls)
    plant.notes["live p99 while replaying in ms"] = str(latency.p99)
    await plant.holds()
    assert latency.unseen == 0
    assert latency.samples
    assert latency.p99 is not None
    assert not LONG or latency.p99 <= LIVE_MS_MAX


async def begin_live(plant: Plant, live: Live, connections: int) -> None:
    """Count live samples from half a second after the agent has connected again."""
    while plant.proxy.connections == connections:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.5)
    live.begin()


def accelerated() -> dict[str, int]:
    """State saved as seldom as in production; synced as much more often as the clock runs faster."""
    return {"state_save_ms": 5000, "heartbeat_ms": 1000, "sync_interval_ms": 20}


OUTAGES = {"hour": (HOUR_S, 250 if LONG else 10)} | ({"day": (24 * HOUR_S, 10)} if LONG else {})
"""Seconds, and machines at 1 Hz. A day's batches take minutes even accelerated: they belong to the long round."""


@pytest.mark.parametrize(("outage_s", "machines"), OUTAGES.values(), ids=OUTAGES.keys())
async def test_outage(plant: Plant, outage_s: int, machines: int) -> None:
    await outage(plant, outage_s, machines)
