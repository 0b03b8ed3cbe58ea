"""A running agent under load: its four decisions, its stop, a full disk, a start on top of a backlog."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from cncmon_agent import forecast, storage, without_time
from cncmon_agent.agent import Agent
from cncmon_agent.buffer.disk import Disk, DiskCalls
from cncmon_agent.buffer.recovery import Leftover
from cncmon_agent.buffer.spool_settings import SpoolSettings
from cncmon_agent.control import Decision
from cncmon_agent.inspect import verify
from cncmon_agent.inspect.folder import DataFolder as InspectedFolder
from cncmon_agent.settings import AgentSettings
from cncmon_core import frames, identity, names
from cncmon_ingest.migrate import migrate
from cncmon_ingest.reconcile import reconcile
from cncmon_simulator import Settings, running
from robustness.faults.small_disk import fill_up, free_bytes, small_disk
from robustness.traffic.services import AgentProcess
from testkit import agent as agents
from testkit import bulky, ingest
from testkit.bulky import Samples
from testkit.gaps import gaps_of
from testkit.ingest import until
from testkit.servers import Postgres, Server
from testkit.waiting import WAIT_S_MAX

MIB = 1 << 20
CAP = 16 * MIB
"""Four segments: the least that the settings allow."""


def settings_for(folder: Path, **changes: Any) -> AgentSettings:
    return agents.settings_for(folder, **({"sync_interval_ms": 20, "spool_free_bytes_min": 0} | changes))


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of a quarter of the usual size: everything happens with a quarter of the data."""

    usual = storage.spool_settings

    def small(settings: AgentSettings, *, cold: bool = True) -> SpoolSettings:
        return msgspec.structs.replace(usual(settings, cold=cold), segment_bytes=MIB)

    for module in (storage, without_time, bulky):
        monkeypatch.setattr(module, "spool_settings", small)


@contextlib.asynccontextmanager
async def client_of(server: Server) -> AsyncIterator[Client]:
    client = Client()
    await client.connect(f"nats://127.0.0.1:{server.port}", allow_reconnect=False)
    try:
        yield client
    finally:
        await client.close()


def url_of(server: Server) -> str:
    return f"nats://127.0.0.1:{server.port}"


async def true(condition: Callable[[], Any], timeout_s: float = WAIT_S_MAX) -> None:
    async def holds() -> bool:
        return bool(condition())

    await until(holds, timeout_s)


@contextlib.asynccontextmanager
async def published(client: Client) -> AsyncIterator[dict[int, bytes]]:
    """Collect the data of every batch of samples that is published meanwhile, by seq."""
    came: dict[int, bytes] = {}

    async def take(message: Msg) -> None:
        found = identity.identity_of(message.headers)
        if found is not None:
            came[found.seq] = message.data

    subscription = await client.subscribe(names.samples_subject("hall", "e1"), cb=take)
    try:
        yield came
    finally:
        await subscription.unsubscribe()


class Watch:
    """Every decision of an agent's controller, from when this is made."""

    def __init__(self, agent: Agent) -> None:
        self.decisions: list[Decision] = []
        self.fill: list[float] = []
        step = agent.governor.step

        def watched() -> Decision:
            decision = step()
            held = agent.storage.held()
            self.decisions.append(decision)
            self.fill.append((held.warm_bytes + held.cold_bytes) / held.capacity_warm_bytes)
            return decision

        agent.governor.step = watched  # type: ignore[method-assign]

    @property
    def rate(self) -> float:
        return self.decisions[-1].replay_bytes_per_s if self.decisions else 0.0

    def first(self) -> float:
        """Return the rate that replay began with; none is no bound yet."""
        rates = [decision.replay_bytes_per_s for decision in self.decisions if decision.replay_bytes_per_s]
        return rates[0] if rates else float("inf")

    def peak(self) -> float:
        return max((decision.replay_bytes_per_s for decision in self.decisions), default=0.0)


async def stored(database: asyncpg.Connection, expected: int) -> None:
    """Wait until so many samples are stored, as long as any are, and check that it stays at that."""
    found = 0

    async def are_more() -> bool:
        nonlocal found
        before, found = found, await database.fetchval("SELECT count(*) FROM sensor_data")
        return bool(found > before)

    while found < expected:
        await until(are_more, what=lambda: f"more of {expected} samples stored than {found}", every_s=0.05)
    assert found == expected
    assert await database.fetchval("SELECT count(*) FROM dead_letters") == 0
    distinct = "SELECT count(DISTINCT (machine_id, active_program_line)) FROM sensor_data"
    assert await database.fetchval(distinct) == expected


async def test_replay_rises_with_the_backlog_and_falls_while_the_database_is_away(
    nats_client: Client, nats_url: str, own_postgres: Postgres, tmp_path: Path
) -> None:
    connection = await asyncpg.connect(own_postgres.dsn)
    ours = ingest.settings_for(own_postgres.dsn)
    await migrate(connection)
    await ingest.prepare(nats_client, ours)
    settings = settings_for(tmp_path, replay_bytes_per_s_max=2 * MIB)
    filled = bulky.fill(settings, 16 * MIB)
    async with ingest.running_ingest(nats_url, ours), agents.running_agent(nats_url, settings) as agent:
        watch = Watch(agent)
        await true(lambda: watch.peak() > 4 * watch.first())
        own_postgres.pause()
        try:
            # Far enough that eight times as much is no more than half of what was reached before.
            await true(lambda: watch.rate < watch.peak() / 16)
            lowest = watch.rate
            assert lowest >= 4096, "it never stands still"
            assert agent.deliveries.backlog() > filled.batches / 4, "it was the database, not the end of the backlog"
        finally:
            own_postgres.resume()
        await true(lambda: watch.rate > 8 * lowest)
        await stored(connection, filled.samples)
        await true(lambda: watch.rate == 0)
    await connection.close()


@pytest.mark.usefixtures("small_segments")
async def test_before_the_limit_segments_are_compressed_harder_and_arrive_byte_for_byte(
    own_nats: Server, postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "BUCKET_S", 0.5)
    own_nats.kill()
    settings = settings_for(tmp_path, spool_bytes_max=8 * MIB, horizon_h=8760, cpu_share_budget=16)
    samples = Samples()
    async with agents.running_agent(url_of(own_nats), settings) as agent:
        watch = Watch(agent)
        given = await bulky.feed(agent, samples, MIB // 4)
        await true(lambda: watch.decisions)
        assert not watch.decisions[0].to_cold
        assert watch.decisions[0].compression_level == 1
        while not watch.decisions[-1].to_cold:
            given += await bulky.feed(agent, samples, MIB // 8)
            await asyncio.sleep(0.05)
        assert watch.fill[-1] < 0.8, "the forecast came before the limit"
        given += await bulky.feed(agent, samples, 3 * MIB // 2)
        spool = agent.storage.spool
        assert spool is not None
        hashes = {batch.identity.seq: batch.identity.sha256 for batch in agent.storage.buffer}
        sizes = {batch.identity.seq: len(batch.data) for batch in agent.storage.buffer}
        async with asyncio.timeout(WAIT_S_MAX):
            # The forecast follows what comes in: were nothing to come, a slow machine had no reason to move any more.
            while sum(one.tier == "cold" for one in spool.segments()) < 2:
                given += await bulky.feed(agent, samples, MIB // 64)
                await asyncio.sleep(0.2)
        assert max(decision.compression_level for decision in watch.decisions) > 1
        assert agent.storage.recompress_gain is not None
        assert agent.storage.recompress_gain > 0.01
        held = agent.storage.buffer
        smaller = [one.identity.seq for one in held if len(one.data) < sizes.get(one.identity.seq, 0)]
        assert len(smaller) > 50
        assert spool.stats().dropped_batches == 0
        await asyncio.to_thread(own_nats.start)
        async with (
            client_of(own_nats) as client,
            published(client) as came,
            ingest.running_ingest(url_of(own_nats), ingest.settings_for(postgres_dsn)),
        ):
            await stored(database, given)
            assert {seq: identity.digest(frames.decompress(came[seq])) for seq in hashes} == hashes
            assert sum(len(came[seq]) < sizes[seq] for seq in smaller) > 50, (
                "what was compressed harder is what is sent"
            )
            await true(lambda: agent.storage.held().cold_bytes == 0)


async def test_what_the_stream_has_goes_first_until_the_stream_lost_something(
    own_nats: Server, postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path
) -> None:
    ours = ingest.settings_for(postgres_dsn)
    settings = settings_for(tmp_path, spool_bytes_max=CAP, replay_bytes_per_s_max=4096, drain_s_max=0)
    own = Samples("earlier")
    earlier = bulky.fill(settings, 5 * MIB, own)
    samples = Samples("current")
    async with client_of(own_nats) as client:
        await ingest.prepare(client, ours)
        async with agents.running_agent(url_of(own_nats), settings) as agent:
            watch, spool = Watch(agent), agent.storage.spool
            assert spool is not None
            await true(lambda: agent.batcher.online and agent.storage.recovered)
            given = await bulky.feed(agent, samples, 6 * MIB)
            await true(lambda: watch.decisions[-1].shed == "taken_first")
            given += await bulky.feed(agent, samples, 6 * MIB)
            await true(lambda: spool.stats().dropped_batches > 100)
            assert {one.epoch for one in spool.segments()} >= {earlier.epoch}
            log = spool.earlier[earlier.epoch]
            assert log.range()[0] == 1, "nothing of what only this disk has is gone"
            assert agent.storage.buffer.range()[0] > 100

            # The database is back: what was dropped comes from the stream, and nothing is missing.
            async with ingest.running_ingest(url_of(own_nats), ours):
                await true(lambda: agent.epochs.current.freed_seq == agent.epochs.current.acked_seq)
            assert await database.fetchval("SELECT count(*) FROM sensor_data WHERE machine_id = 'current'") == given
            assert await gaps_of(database, agent.epochs.current.epoch) == []

            # The database is away again, and now the stream is lost.
            given += await bulky.feed(agent, samples, 3 * MIB)
            await true(lambda: agent.deliveries.current.unacknowledged() == 0)
            await true(lambda: watch.decisions[-1].shed == "taken_first")
            await client.jetstream().delete_stream(names.STREAM)
            await ingest.prepare(client, ours)
            await bulky.feed(agent, samples, MIB // 4)
            await true(lambda: watch.decisions[-1].shed == "oldest")
            await bulky.feed(agent, samples, 10 * MIB)
            await true(lambda: log.range()[0] > 1)
            assert watch.decisions[-1].shed == "oldest"


async def test_a_stop_in_the_middle_of_a_replay_is_quick_and_the_next_start_loses_nothing(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path
) -> None:
    ours = ingest.settings_for(postgres_dsn)
    await ingest.prepare(nats_client, ours)
    agent = AgentProcess(
        tmp_path, nats_url, edge="e1", spool_free_bytes_min=0, replay_bytes_per_s_max=250_000, drain_s_max=5.0
    )
    filled = bulky.fill(agent.settings, 5 * MIB)
    epochs = set()
    async with ingest.running_ingest(nats_url, ours):
        for _ in range(2):
            # What comes from here on is what this start has sent.
            await until(lambda: ingest.drained(nats_client))
            before = await database.fetchval("SELECT count(*) FROM sensor_data")
            agent.start()

            async def replaying(before: int = before) -> bool:
                return bool(await database.fetchval("SELECT count(*) FROM sensor_data") > before)

            await until(replaying)
            await agent.stop()
            assert "agent stopped" in agent.tail()
            assert "Traceback" not in agent.tail()
            verdict = verify.check(InspectedFolder(agent.data, None), Disk())
            assert verdict.problems == []
            assert verdict.notes == [], "not half a record: all of it is synced"
            assert await database.fetchval("SELECT count(*) FROM sensor_data") < filled.samples, "it was stopped before"
            epochs.add(agent.tail().split('"epoch":')[-1].split(",")[0])
        assert len(epochs) == 2
        agent.start()
        await stored(database, filled.samples)
        await agent.stop()
        await until(lambda: ingest.drained(nats_client))
    assert await database.fetchval("SELECT count(*) FROM gaps") == 0


@pytest.mark.needs("root")
async def test_a_disk_that_others_fill_costs_the_oldest_and_the_books_balance(
    own_nats: Server, postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path
) -> None:
    own_nats.kill()
    ours = ingest.settings_for(postgres_dsn, edges_interval_ms=100)
    samples = Samples()
    with small_disk(tmp_path / "disk", 24 * MIB) as disk:
        settings = settings_for(tmp_path, data_dir=str(disk / "agent"), state_save_ms=100)
        async with agents.running_agent(url_of(own_nats), settings) as agent:
            given = await bulky.feed(agent, samples, 10 * MIB)
            fill_up(disk / "others")
            assert free_bytes(disk) == 0
            given += await bulky.feed(agent, samples, 14 * MIB)
            # The state files can't be written now: that ends nobody.
            await asyncio.sleep(0.5)
            assert agent.batcher.refused == 0, "the oldest make room for the newest"
            dropped = agent.storage.held().dropped_samples
            assert dropped > 0
            assert agent.stuck() is None
            await asyncio.to_thread(own_nats.start)
            async with ingest.running_ingest(url_of(own_nats), ours):
                await stored(database, given - dropped)
                epoch = agent.epochs.current.epoch

                async def declared() -> bool:
                    return bool(await gaps_of(database, epoch))

                await until(declared)
                gaps = await gaps_of(database, epoch)
                assert sum(found or 0 for _, _, found in gaps) == dropped
                assert gaps[0][0] == 1

                async def balanced() -> bool:
                    books = await reconcile(database, timedelta(hours=1))
                    return books.balanced and not books.pending_batches and books.gap_samples == dropped

                await until(balanced)
            assert given - dropped == await database.fetchval("SELECT count(*) FROM sensor_data")


@pytest.mark.usefixtures("small_segments")
async def test_live_samples_go_first_and_machines_are_read_before_all_else(
    own_nats: Server, postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated = Settings(
        machines=3,
        site="hall",
        edge="e1",
        port_base=0,
        control_port=-1,
        poll_interval_ms=100,
        machines_file=str(tmp_path / "machines.yaml"),
    )
    ours = ingest.settings_for(postgres_dsn)
    settings = settings_for(tmp_path, machines=(str(tmp_path / "machines.yaml"),))
    filled = bulky.fill(settings, 9 * MIB // 4)
    assert filled.segments >= 3
    may_go_on = asyncio.Event()
    loop = asyncio.get_running_loop()
    scan = Leftover.scan

    def slow(leftover: Leftover, disk: DiskCalls) -> None:
        # A disk on which a file is read for as long as nobody says that live samples are stored.
        asyncio.run_coroutine_threadsafe(may_go_on.wait(), loop).result(WAIT_S_MAX)
        scan(leftover, disk)

    monkeypatch.setattr(Leftover, "scan", slow)
    own_nats.kill()
    async with running(simulated), agents.running_agent(url_of(own_nats), settings) as agent:
        try:
            await true(lambda: agent.batcher.samples >= 6)
            assert all(report.state == "connected" for report in agent.machines.reports())
            await asyncio.to_thread(own_nats.start)
            async with ingest.running_ingest(url_of(own_nats), ours):
                await lives(database)
                assert not agent.storage.recovered
                assert agent.deliveries.earlier == {}
                may_go_on.set()
                await true(lambda: agent.storage.recovered)

                async def delivered() -> bool:
                    query = "SELECT count(*) FROM sensor_data WHERE machine_id = 'backlog'"
                    return bool(await database.fetchval(query) == filled.samples)

                await until(delivered, every_s=0.1)
        finally:
            may_go_on.set()


async def lives(database: asyncpg.Connection) -> None:
    """Wait until live samples of machines are stored."""

    async def found() -> bool:
        return bool(await database.fetchval("SELECT count(*) FROM sensor_data WHERE machine_id <> 'backlog'") > 3)

    await until(found)
