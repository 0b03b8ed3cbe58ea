"""Between the edges and NATS: cut, silent, or only half of it arrives."""

import asyncio

import pytest

from robustness.faults.namespace import namespace
from robustness.scenarios.plant import Plant
from robustness.scenarios.size import LONG, SIZE


async def test_connections_reset(plant: Plant) -> None:
    async with plant.running():
        for _ in range(SIZE.rounds):
            await plant.flow()
            plant.note_fault("connections reset")
            await plant.proxy.refuse()
            await asyncio.sleep(SIZE.fault_s)
            await plant.proxy.open()
            await plant.recovered()
    await plant.holds()


async def test_partition_by_silence(plant: Plant) -> None:
    """FAULT 10: nothing arrives and nothing is closed, for longer than the agents take to notice."""
    async with plant.running():
        for _ in range(SIZE.freezes):
            await plant.flow()
            plant.note_fault("silent partition")
            plant.proxy.pause()
            await asyncio.sleep(SIZE.fault_s + 2.5)
            plant.proxy.resume()
            await plant.recovered()
    await plant.holds()


async def test_short_silences(plant: Plant) -> None:
    """Too short to be noticed: what was in flight comes late, together with what was sent again."""
    async with plant.running():
        await plant.flow()
        for _ in range(SIZE.rounds * 3):
            plant.note_fault("short silence")
            plant.proxy.pause()
            await asyncio.sleep(plant.dice.uniform(0.2, 0.9))
            plant.proxy.resume()
            await asyncio.sleep(plant.dice.uniform(0.2, 0.6))
        await plant.recovered()
    await plant.holds()


@pytest.mark.needs("root")
async def test_partition_of_a_network_namespace(plant: Plant) -> None:
    """FAULT 10: the cable is pulled, so that the kernel's own retransmissions take part."""
    with namespace() as network:
        async with plant.running(edges=1, network=network):
            for _ in range(SIZE.freezes):
                await plant.flow()
                plant.note_fault("link down")
                network.cut()
                await asyncio.sleep(SIZE.fault_s + 2.5)
                network.heal()
                await plant.recovered()
    await plant.holds()


async def test_lost_pubacks(plant: Plant) -> None:
    """FAULT 9: NATS stores every batch, and two thirds of its acknowledgements never arrive."""
    async with plant.running():
        await plant.flow(0)
        plant.note_fault("two thirds of the PubAcks swallowed")
        plant.proxy.swallow_acks(0.67, plant.seed)
        await plant.flow(SIZE.fault_s * (10 if LONG else 3))
        plant.proxy.swallow_acks(0.0, plant.seed)
        await plant.recovered()
        plant.notes["PubAcks swallowed"] = str(plant.proxy.swallowed)
        assert plant.proxy.swallowed > 10
    await plant.holds()


async def test_lost_pubacks_and_reset_connections(plant: Plant) -> None:
    """FAULT 9: no acknowledgement arrives before the connection ends, so that everything is sent at least twice."""
    async with plant.running():
        for _ in range(SIZE.rounds):
            await plant.flow()
            plant.note_fault("PubAcks swallowed, then connections reset")
            plant.proxy.swallow_acks(1.0, plant.seed)
            await asyncio.sleep(SIZE.fault_s)
            plant.proxy.cut()
            plant.proxy.swallow_acks(0.0, plant.seed)
            await plant.recovered()
        # All of it was in the stream before, so that recovery says nothing of the connections; and an agent that is
        # told to stop without one keeps its last batches on its disk.
        await plant.flow()
    await plant.holds()
