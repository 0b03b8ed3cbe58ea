"""A board without a clock battery (fault 32), and a clock that is set while the agent runs (fault 7), on real parts.

The simulated machines log the true time of every poll; it is compared with the time that is stored.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import asyncpg
import pytest
from nats.aio.client import Client

from cncmon_agent.agent import Agent
from cncmon_agent.settings import AgentSettings
from cncmon_agent.time_floor import BUILD_NS
from cncmon_agent.unstamped import FLAG
from cncmon_core import nats_link
from cncmon_simulator import Settings, poll_log, running
from cncmon_standalone.proof.accepted import AcceptedLog
from cncmon_standalone.proof.compare import Verdict, Window, compare
from testkit import agent as agents
from testkit import ingest
from testkit.ingest import until
from testkit.servers import Server
from testkit.times import Board

LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
MACHINES = 3
POLL_MS = 50
S_NS = 1_000_000_000


@contextlib.asynccontextmanager
async def running_agent(url: str, settings: AgentSettings, board: Board) -> AsyncIterator[Agent]:
    """Run an agent with the board's clocks until the block ends."""
    link = nats_link.NatsLink(
        nats_link.NatsSettings(servers=(url,), retry_delay_ms_base=20, retry_delay_ms_max=200), "agent"
    )
    agent, stop = Agent(settings, link, source=board), asyncio.Event()
    task = asyncio.create_task(agent.run(stop))
    try:
        yield agent
    finally:
        stop.set()
        await task


def simulated(folder: Path) -> Settings:
    return Settings(
        machines=MACHINES,
        site="hall",
        edge="e1",
        port_base=0,
        control_port=-1,
        poll_interval_ms=POLL_MS,
        poll_log=str(folder / "polls.jsonl"),
        machines_file=str(folder / "machines.yaml"),
    )


def settings_for(folder: Path, **changes: object) -> AgentSettings:
    return agents.settings_for(
        folder,
        machines=(str(folder / "machines.yaml"),),
        accepted_log=str(folder / "accepted.jsonl"),
        sync_interval_ms=50,
        drain_s_max=2.0,
        **changes,
    )


class Stored(NamedTuple):
    """A stored sample: how far its time is off the true one, and whether it says that it may be."""

    off_s: float
    flagged: bool
    true_ns: int
    time: datetime


async def stored(database: asyncpg.Connection, folder: Path) -> list[Stored]:
    """Return every stored sample that a poll answered, in the order of the true times."""
    truth = {(record.machine_id, record.counter): record.t_ns for record in poll_log.read(folder / "polls.jsonl")}
    rows = await database.fetch(
        "SELECT machine_id, time AS at, (extras->>'poll_counter')::bigint AS counter, "
        "coalesce((extras->>$1)::boolean, false) AS flagged FROM sensor_data WHERE extras ? 'poll_counter'",
        FLAG,
    )
    found = []
    for row in rows:
        true_ns = truth[row["machine_id"], row["counter"]]
        found.append(Stored(row["at"].timestamp() - true_ns / S_NS, row["flagged"], true_ns, row["at"]))
    return sorted(found, key=lambda one: one.true_ns)


async def verdict_on(database: asyncpg.Connection, folder: Path) -> Verdict:
    accepted, everything = AcceptedLog(folder / "accepted.jsonl"), Window(0, 2**63 - 1)
    return await compare(database, accepted, folder / "polls.jsonl", everything, LONG_AGO)


async def moved(agent: Agent) -> None:
    async def done() -> bool:
        return agent.mover.done

    await until(done)


async def everything_stored(url: str) -> None:
    client = Client()
    await client.connect(url)
    try:
        await until(lambda: ingest.drained(client))
    finally:
        await client.close()


def at_least(seconds: float) -> int:
    """How many samples so many seconds bring at the very least: a tenth of what is due, for a busy test machine."""
    return int(MACHINES * seconds * 1000 / POLL_MS * 0.1)


OFF_S_MAX = 2.0
"""How far a time may be from that of the machine's answer: what passes between the two on a busy test machine. A clock
that is wrong is so by an hour at least.
"""


@pytest.mark.parametrize("restarted", [False, True], ids=["one process", "agent restarted"])
async def test_fault_32_booted_in_1970_without_network(
    own_nats: Server, postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path, restarted: bool
) -> None:
    url, board = f"nats://127.0.0.1:{own_nats.port}", Board()
    ours, settings = ingest.settings_for(postgres_dsn), settings_for(tmp_path)
    own_nats.kill()
    async with running(simulated(tmp_path)):
        if restarted:
            async with running_agent(url, settings, board):
                await asyncio.sleep(1)
        async with running_agent(url, settings, board) as agent:
            await asyncio.sleep(1.5)
            assert not agent.clock.settled
            assert agent.batcher.samples == 0
            await asyncio.to_thread(own_nats.start)
            async with ingest.running_ingest(url, ours):
                board.learn_time()
                await moved(agent)
                await asyncio.sleep(1)
                assert (agent.clock.known, agent.clock.steps) == (True, 1)
                await everything_stored(url)
    async with ingest.running_ingest(url, ours):
        await everything_stored(url)
    samples, found = await stored(database, tmp_path), await verdict_on(database, tmp_path)
    assert found.holds, found.examples
    assert len(samples) >= at_least(3.5 if restarted else 2.5)
    assert max(abs(one.off_s) for one in samples) <= OFF_S_MAX
    assert not any(one.flagged for one in samples)


async def test_fault_32_a_clockless_boot_before_is_bounded_and_flagged(
    own_nats: Server, postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path
) -> None:
    url, board = f"nats://127.0.0.1:{own_nats.port}", Board()
    ours, settings = ingest.settings_for(postgres_dsn), settings_for(tmp_path)
    async with running(simulated(tmp_path)), ingest.running_ingest(url, ours):
        board.learn_time()
        async with running_agent(url, settings, board):
            await asyncio.sleep(1)
            good = datetime.now(UTC)
        await asyncio.sleep(1)
        board.boot()
        own_nats.kill()
        async with running_agent(url, settings, board):
            await asyncio.sleep(1)
        clockless_until = datetime.now(UTC)
        board.boot()
        await asyncio.to_thread(own_nats.start)
        async with running_agent(url, settings, board) as agent:
            await asyncio.sleep(0.5)
            board.learn_time()
            await moved(agent)
            await asyncio.sleep(0.5)
        await everything_stored(url)
    samples, found = await stored(database, tmp_path), await verdict_on(database, tmp_path)
    assert found.holds, found.examples
    clockless = [one for one in samples if good.timestamp() + 0.5 < one.true_ns / S_NS < clockless_until.timestamp()]
    assert len(clockless) >= at_least(0.8)
    assert all(one.flagged for one in clockless)
    # Not later than it was, and not before the last time that was known: that is written rarely, here at its beginning.
    assert all(one.off_s <= 0 and one.time >= good - timedelta(seconds=2) for one in clockless)
    others = [one for one in samples if one not in clockless]
    assert max(abs(one.off_s) for one in others) <= OFF_S_MAX
    assert not any(one.flagged for one in others)


async def test_who_waits_too_long_stamps_by_the_server_and_says_so(
    own_nats: Server, postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path
) -> None:
    url, board = f"nats://127.0.0.1:{own_nats.port}", Board()
    settings = settings_for(tmp_path, clock_wait_s_max=1.0)
    async with running(simulated(tmp_path)), ingest.running_ingest(url, ingest.settings_for(postgres_dsn)):
        async with running_agent(url, settings, board) as agent:
            await moved(agent)
            await asyncio.sleep(1)
            assert (agent.clock.known, agent.clock.uncertain) == (False, True)
        await everything_stored(url)
    samples, found = await stored(database, tmp_path), await verdict_on(database, tmp_path)
    assert found.holds, found.examples
    assert len(samples) >= at_least(2)
    assert all(one.flagged for one in samples)
    assert max(abs(one.off_s) for one in samples) <= OFF_S_MAX
    assert samples[0].time.timestamp() > BUILD_NS / S_NS


@pytest.mark.parametrize("step_s", [-3600, 86_400], ids=["-1 h", "+1 d"])
async def test_fault_7_a_clock_that_is_set_loses_and_doubles_nothing(
    own_nats: Server, postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path, step_s: int
) -> None:
    url, board = f"nats://127.0.0.1:{own_nats.port}", Board()
    board.learn_time()
    async with running(simulated(tmp_path)), ingest.running_ingest(url, ingest.settings_for(postgres_dsn)):
        async with running_agent(url, settings_for(tmp_path), board) as agent:
            await asyncio.sleep(1)
            board.step_s(step_s)
            await asyncio.sleep(1)
            board.step_s(-step_s)
            await asyncio.sleep(1)
            assert (agent.clock.known, agent.clock.steps) == (True, 2)
        await everything_stored(url)
    samples, found = await stored(database, tmp_path), await verdict_on(database, tmp_path)
    assert found.holds, found.examples
    off = [round(one.off_s, 1) for one in samples]
    if step_s > 0:
        # A time of tomorrow is refused by ingest and kept as a dead letter.
        assert found.dead_lettered >= at_least(0.8)
        assert max(map(abs, off)) <= OFF_S_MAX
    else:
        assert sum(abs(one - step_s) <= OFF_S_MAX for one in off) >= at_least(0.8) // 2
        assert found.dead_lettered == 0
    assert not any(one.flagged for one in samples)
