"""Rule C3 on a real stream and database: what kills whoever takes it is buried, what only met restarts is stored."""

import asyncio
import signal
from asyncio.subprocess import PIPE
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from nats.aio.client import Client

from cncmon_core import names
from cncmon_ingest.generation import Watch
from cncmon_ingest.settings import IngestSettings
from cncmon_ingest.suspects import DYING_S, Suspects
from testkit.ingest import EPOCH, drained, frame, prepare, publish_batch, running_ingest, settings_for, until

KILLING = Path(__file__).parents[1] / "robustness" / "faults" / "killing"
DELIVERIES = 3


@pytest.fixture
def killing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Processes that try a message alone are harmed by it; this one is not. Returns what makes one outage."""
    monkeypatch.setenv("PYTHONPATH", str(KILLING))
    marker = tmp_path / "outage"
    monkeypatch.setenv("CNC_OUTAGE_FILE", str(marker))
    return marker


def short(dsn: str) -> IngestSettings:
    return settings_for(dsn, max_deliver=DELIVERIES, suspect_ms_max=8000, ack_wait_ms=2000)


async def deliver(client: Client, count: int, times: int = DELIVERIES) -> None:
    """Let messages be taken and not acknowledged, as by workers that died of them or beside them."""
    subscription = await client.jetstream().pull_subscribe_bind(names.DURABLE, names.STREAM)
    for _ in range(times):
        for message in await subscription.fetch(count, timeout=5):
            await message.nak()
    await subscription.unsubscribe()


async def stored(database: asyncpg.Connection) -> list[int]:
    rows = await database.fetch("SELECT DISTINCT active_program_line / 10 AS seq FROM sensor_data ORDER BY 1")
    return [row["seq"] for row in rows]


async def letters(database: asyncpg.Connection) -> list[tuple[Any, ...]]:
    rows = await database.fetch("SELECT identity, frame, reason, detail FROM dead_letters")
    assert await database.fetchval("SELECT count(*) FROM suspects") == 0, "a row is there while one is tried"
    return [tuple(row) for row in rows]


async def publish(client: Client, seqs: range, harm: dict[int, str] | None = None) -> None:
    for seq in seqs:
        changes = {"mode": harm[seq]} if harm and seq in harm else {}
        parts = [frame(seq * 10 + number, **changes) for number in range(3)]
        await publish_batch(client, seq, parts, base=(seq - 1) * 3, compress=False)


async def watermark(database: asyncpg.Connection) -> int:
    return int(await database.fetchval("SELECT coalesce(max(seq), 0) FROM watermarks WHERE epoch = $1", EPOCH))


async def at(database: asyncpg.Connection, seq: int) -> bool:
    return await watermark(database) == seq


async def test_delivery_c3_restarts_bury_nothing(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """FAULT 33: taken three times by workers that ended, and stored."""
    settings = short(postgres_dsn)
    await prepare(nats_client, settings)
    await publish(nats_client, range(1, 6))
    await deliver(nats_client, 5)
    async with running_ingest(nats_url, settings):
        await publish(nats_client, range(6, 9))
        await until(lambda: at(database, 8))
        await until(lambda: drained(nats_client))
    assert await stored(database) == list(range(1, 9))
    assert await letters(database) == []


async def test_delivery_c3_what_kills_is_buried_and_the_others_are_stored(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, killing: Path
) -> None:
    """FAULT 19, the last step: innocent messages beside it are stored, those behind it do not wait for it."""
    settings = short(postgres_dsn)
    await prepare(nats_client, settings)
    await publish(nats_client, range(1, 6), {3: "CNC-KILL"})
    await deliver(nats_client, 5)
    async with running_ingest(nats_url, settings):
        await publish(nats_client, range(6, 9))
        await until(lambda: at(database, 8))
        await until(lambda: drained(nats_client))
    assert await stored(database) == [1, 2, 4, 5, 6, 7, 8]
    [(identity, number, reason, detail)] = await letters(database)
    assert (identity, number, reason) == (f"{EPOCH}:3", -1, "poison")
    assert "signal 9" in detail
    row = await database.fetchrow("SELECT batches_stored, batches_dead, samples_stored, samples_dead FROM watermarks")
    assert row is not None
    assert tuple(row) == (7, 1, 21, 3)


async def test_delivery_c3_a_process_does_not_outlive_its_worker(nats_client: Client) -> None:
    """The worker is stopped in the very moment in which it gives a process that hangs the time to die by itself."""
    suspects = Suspects(short("postgresql://nobody@127.0.0.1:1/none"), datetime.now(UTC), Watch(nats_client))
    hanging = await asyncio.create_subprocess_exec("sleep", "600", stdin=PIPE, stdout=PIPE)
    suspects._process = hanging
    ending = asyncio.create_task(suspects._end_process(kill=True))
    await asyncio.sleep(DYING_S / 10)
    ending.cancel()
    await asyncio.wait([ending])
    assert await suspects._end_process(kill=True) == -signal.SIGKILL
    assert hanging.returncode == -signal.SIGKILL


async def test_delivery_c3_what_hangs_is_buried(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, killing: Path
) -> None:
    settings = short(postgres_dsn)
    await prepare(nats_client, settings)
    await publish(nats_client, range(1, 3), {1: "CNC-HANG"})
    await deliver(nats_client, 2)
    async with running_ingest(nats_url, settings):
        await publish(nats_client, range(3, 5))
        await until(lambda: drained(nats_client))
    assert await stored(database) == [2, 3, 4]
    [(_, _, reason, detail)] = await letters(database)
    assert (reason, "did not answer within 8 s" in detail) == ("poison", True)


async def test_delivery_c3_an_outage_is_no_evidence(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, killing: Path
) -> None:
    settings = short(postgres_dsn)
    await prepare(nats_client, settings)
    killing.touch()
    await publish(nats_client, range(1, 2), {1: "CNC-OUTAGE"})
    await deliver(nats_client, 1)
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
    assert not killing.exists()
    assert await stored(database) == [1]
    assert await letters(database) == []


@pytest.mark.parametrize(("unseen", "buried"), [(2, False), (3, True)])
async def test_delivery_c3_attempts_are_counted_before_they_begin(
    nats_client: Client,
    nats_url: str,
    postgres_dsn: str,
    database: asyncpg.Connection,
    unseen: int,
    buried: bool,
) -> None:
    """Of attempts whose end nobody saw, since the worker died with them, only so many are made."""
    settings = short(postgres_dsn)
    await prepare(nats_client, settings)
    await publish(nats_client, range(1, 2))
    await deliver(nats_client, 1)
    created = (await nats_client.jetstream().stream_info(names.STREAM)).created
    await database.execute("INSERT INTO suspects VALUES ($1, 1, $2, now())", created, unseen)
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
    found = await letters(database)
    if buried:
        assert [(reason, "3 attempts" in detail) for _, _, reason, detail in found] == [("poison", True)]
        assert await stored(database) == []
    else:
        assert found == []
        assert await stored(database) == [1]


async def test_delivery_c3_the_consumer_gives_up_nothing_by_itself(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """A limit of an earlier version is taken away: the server would leave such messages undelivered for ever."""
    settings = short(postgres_dsn)
    await prepare(nats_client, settings)
    js = nats_client.jetstream()
    config = (await js.consumer_info(names.STREAM, names.DURABLE)).config
    assert config is not None
    await js.add_consumer(names.STREAM, config.evolve(max_deliver=3))
    await publish(nats_client, range(1, 2))
    await deliver(nats_client, 1, times=2)
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
        await asyncio.sleep(0)
    info = await js.consumer_info(names.STREAM, names.DURABLE)
    assert info.config is not None
    assert info.config.max_deliver == -1
    assert await stored(database) == [1]
