"""Agents are killed, cloned, lose their disk."""

import asyncio
import shutil

import asyncpg
import pytest

from cncmon_core import names
from robustness.scenarios.plant import Plant
from robustness.scenarios.size import SIZE
from robustness.traffic.services import AgentProcess
from robustness.validate.promised import newest
from testkit.waiting import WAIT_S_MAX


async def accepts_anew(agent: AgentProcess, before: tuple[int, int] | None) -> None:
    """Wait until an agent that was started has accepted its first batch."""
    async with asyncio.timeout(WAIT_S_MAX):
        while (found := newest(agent.accepted)) is None or (before is not None and found[0] == before[0]):
            if not agent.runs:
                raise AssertionError(f"{agent.name} has ended: {agent.tail()}")
            await asyncio.sleep(0.02)


async def test_agent_killed_in_a_loop(plant: Plant) -> None:
    """kill -9 at random moments; what was synced or acknowledged before is in the database."""
    async with plant.running(edges=1, agent={"linger_ms": 50}):
        agent = plant.agents[0]
        for _ in range(SIZE.kills):
            await plant.flow(plant.dice.uniform(0.0, 1.0))
            before = newest(agent.accepted)
            plant.note_fault("agent kill -9")
            agent.kill()
            agent.start()
            await accepts_anew(agent, before)
        await plant.recovered()
    await plant.holds()


async def test_agent_killed_at_once_after_publishing(plant: Plant) -> None:
    """FAULT 36: the stream may have batches that the killed agent never knew of; none clashes with a new one."""
    async with plant.running(edges=1, agent={"linger_ms": 20}):
        agent = plant.agents[0]
        for _ in range(SIZE.kills):
            await plant.flow(0.2)
            before = newest(agent.accepted)
            while newest(agent.accepted) == before:
                await asyncio.sleep(0.001)
            plant.note_fault("agent kill -9 after a publish")
            agent.kill()
            before = newest(agent.accepted)
            agent.start()
            await accepts_anew(agent, before)
        await plant.recovered()
    await plant.holds()


async def test_agent_killed_during_an_outage(plant: Plant) -> None:
    """Without NATS, killed and started again: it reads its machines at once, and nothing synced is lost."""
    async with plant.running(edges=1):
        agent = plant.agents[0]
        for _ in range(SIZE.freezes):
            await plant.flow()
            plant.note_fault("NATS away")
            await plant.proxy.refuse()
            for _ in range(2):
                await asyncio.sleep(SIZE.fault_s)
                before = newest(agent.accepted)
                plant.note_fault("agent kill -9")
                agent.kill()
                agent.start()
                await accepts_anew(agent, before)
            await asyncio.sleep(SIZE.fault_s)
            await plant.proxy.open()
            await plant.recovered()
    await plant.holds()


async def test_agents_stopped_and_started_during_an_outage(plant: Plant) -> None:
    """A stop in order syncs everything: what was accepted before it is there after the next start."""
    async with plant.running(edges=2):
        for _ in range(SIZE.freezes):
            await plant.flow()
            plant.note_fault("NATS away")
            await plant.proxy.refuse()
            await asyncio.sleep(SIZE.fault_s)
            for agent in plant.agents:
                before = newest(agent.accepted)
                plant.note_fault("agent stopped and started")
                await agent.stop()
                agent.start()
                await accepts_anew(agent, before)
            await asyncio.sleep(SIZE.fault_s)
            await plant.proxy.open()
            await plant.recovered()
    await plant.holds()


async def test_what_is_kept_at_the_last_stop_is_delivered_by_another_start(plant: Plant) -> None:
    """A stop without NATS keeps its last batches; the plant's end, which demands them, starts the agent once more."""
    async with plant.running(edges=1):
        agent = plant.agents[0]
        await plant.flow()
        plant.note_fault("NATS away")
        await plant.proxy.refuse()
        await asyncio.sleep(SIZE.fault_s)
        await agent.stop()
        assert agent.kept() > 0
        await plant.proxy.open()
    assert agent.log.read_text().count("agent made") > 1
    await plant.holds()


async def test_cloned_edge(plant: Plant) -> None:
    """FAULT 31: an SD card is cloned with what it had not delivered; both edges' samples are stored."""
    async with plant.running(edges=1):
        first = plant.agents[0]
        await plant.flow()
        plant.note_fault("NATS away")
        await plant.proxy.refuse()
        await asyncio.sleep(SIZE.fault_s)
        await first.stop()
        plant.note_fault("data folder cloned")
        clone = plant.add_agent(plant.machines[0], folder=plant.folder / "clone")
        shutil.copytree(first.data, clone.data)
        first.start()
        clone.start()
        await asyncio.sleep(SIZE.fault_s * 2)
        await plant.proxy.open()
        await plant.flow()
        await plant.recovered()
        async with asyncio.timeout(WAIT_S_MAX):
            while not await alerted(plant.dsn):
                await asyncio.sleep(0.2)
    await plant.holds()


async def alerted(dsn: str) -> bool:
    connection = await asyncpg.connect(dsn)
    try:
        found: bool = await connection.fetchval(
            "SELECT EXISTS (SELECT FROM events WHERE type = 'edge_cloned' AND site = 'hall' AND edge = 'e1')"
        )
    finally:
        await connection.close()
    return found


@pytest.mark.parametrize("away", [False, True], ids=["ingest_there", "ingest_away"])
async def test_data_folder_lost_for_good(plant: Plant, away: bool) -> None:
    """FAULT 35: what a heartbeat told of and nobody has any more stands in `gaps`, with its number of samples.

    Ingest away: none ever hears the heartbeats of before; the first of the new folder passes on what they told of.
    """
    quick = {"abandon_grace_s": 1.0, "edges_interval_ms": 100, "sweep_interval_ms": 200}
    async with plant.running(edges=1, ingest=quick):
        agent = plant.agents[0]
        for _ in range(SIZE.freezes):
            await plant.flow()
            await plant.recovered()
            if away:
                plant.ingest.kill()
            plant.note_fault("publishes swallowed")
            # No batch arrives any more, and every heartbeat tells of more that waits.
            plant.proxy.swallow_publishes(names.SUBJECT_PREFIX)
            await asyncio.sleep(SIZE.fault_s * 2)
            before = newest(agent.accepted)
            plant.note_fault("data folder lost")
            agent.kill()
            await plant.lose_disk(agent)
            plant.proxy.swallow_publishes(None)
            agent.start()
            await accepts_anew(agent, before)
            if away:
                plant.ingest.start()
            await plant.recovered()
    finding = await plant.holds(gaps=True)
    assert finding.excuses.reasons == {"epoch_abandoned"}
    assert finding.verdict.gaps > 0
