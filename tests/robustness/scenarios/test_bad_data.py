"""What somebody sends is broken, or larger than a message may be: that alone is kept out, and nobody is blocked."""

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from nats.errors import MaxPayloadError

from cncmon_core import names
from cncmon_standalone.embedded import nats
from robustness.scenarios.plant import Plant
from robustness.scenarios.size import SIZE
from robustness.traffic.raw_edge import RawEdge
from testkit.ingest import drained, until

SOUND = '{"machine_id":"e9-x001","timestamp":"2026-01-01T00:00:00Z","temperature":1.0,"spindle_speed":1.0'
AWKWARD = {
    "nul_character": (SOUND + ',"program":"O\\u0000001"}').encode(),
    "invalid_field": (SOUND + ',"part_count":99999999999999999999}').encode(),
    "too_large": (SOUND + ',"note":"' + "x" * 1_000_000 + '"}').encode(),
}
"""Reason → a frame that PostgreSQL could not store, or should not."""


@contextlib.contextmanager
def raw_edge(plant: Plant, edge: str, machines: int) -> Iterator[RawEdge]:
    made = RawEdge(plant.folder / edge, edge, machines=machines, seed=plant.seed)
    plant.accepted.append(made.accepted)
    plant.polls.append(made.polls)
    try:
        yield made
    finally:
        made.close()


async def test_one_bad_frame_of_500(plant: Plant) -> None:
    """FAULT 18: 499 are stored, and one is a dead letter that says why."""
    with raw_edge(plant, "e9", 50) as raw:
        async with plant.running(), plant.client() as client:
            for _ in range(SIZE.rounds):
                await plant.flow()
                plant.note_fault("malformed frame among 500")
                bad = plant.dice.randrange(500)
                assert await raw.send(client, 10, {bad: SOUND.encode()}) == 500
                await plant.recovered()
        finding = await plant.holds(dead={"malformed_json"})
    assert finding.verdict.dead_lettered == SIZE.rounds


async def test_awkward_values_of_one_of_20_edges(plant: Plant) -> None:
    """FAULT 39: U+0000, a number out of range, a text of 1 MB, each in one frame of 5,000 rows of 20 edges."""
    with ExitStack() as stack:
        raws = [stack.enter_context(raw_edge(plant, f"r{number}", 25)) for number in range(20)]
        async with plant.running(), plant.client() as client:
            for _ in range(SIZE.freezes):
                for reason, data in AWKWARD.items():
                    await plant.flow()
                    plant.note_fault(f"{reason} in one of 5,000 rows")
                    hit = plant.dice.randrange(len(raws))
                    sent = []
                    for number, raw in enumerate(raws):
                        spoilt = {plant.dice.randrange(250): data} if number == hit else None
                        sent.append(asyncio.create_task(raw.send(client, 10, spoilt)))
                        # The machines answer from this event loop as well: between two batches they have their turn.
                        await asyncio.sleep(0)
                    assert sum(await asyncio.gather(*sent)) == 5000
                    await plant.recovered()
        finding = await plant.holds(dead=AWKWARD)
    assert finding.excuses.dead == dict.fromkeys(AWKWARD, SIZE.freezes)


async def test_messages_too_large(plant: Plant) -> None:
    """FAULT 20: 10 MB are refused before they are sent; a batch that the server takes no longer waits on its edge.

    Neither costs a connection, and what is smaller goes on.
    """
    with raw_edge(plant, "e9", 500) as raw, raw_edge(plant, "e8", 2) as small:
        async with plant.running(edges=1, agents=False, machines=2), plant.client() as client:
            with pytest.raises(MaxPayloadError):
                await client.publish(f"{names.STREAM}.hall.e9", b"x" * 10_000_000)
            plant.note_fault("message of 10 MB")
            assert await raw.send(client, 1) == 500
        async with plant.running(edges=1, machines=2, agent={"linger_offline_ms": 3000}):
            for _ in range(SIZE.freezes):
                await plant.flow()
                plant.nats.kill()
                await asyncio.sleep(3 + SIZE.fault_s)
                plant.note_fault("batches larger than max_payload")
                nats.command(plant.nats_folder, plant.nats.port, max_payload="6KB")
                await asyncio.to_thread(plant.nats.start)
                await plant.flow(2.0)
                connections = plant.proxy.connections
                await plant.flow(2.0)
                async with plant.client() as client:
                    await small.send(client, 1)
                    await until(lambda: drained(client))
                assert plant.proxy.connections == connections, "no connection is lost over it"
                assert "max_payload" in plant.agents[0].tail()
                plant.nats.kill()
                nats.command(plant.nats_folder, plant.nats.port)
                await asyncio.to_thread(plant.nats.start)
                await plant.recovered()
        await plant.holds()
