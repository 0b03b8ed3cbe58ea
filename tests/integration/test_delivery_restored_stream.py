"""Rule B3 where the stream was restored: messages without identity keep sequence, time and content, not its creation.

Each on a real stream and a real database.
"""

from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from nats.aio.client import Client

from cncmon_core import names
from cncmon_core.frames import join
from cncmon_ingest import ledger, migrate
from cncmon_ingest.connection import connect
from cncmon_ingest.decode import Incoming, Limits, decode
from cncmon_ingest.store import Store
from testkit import ingest
from testkit.fixtures import on_both_servers
from testkit.ingest import drained, frame, publish_batch, publish_plain, running_ingest, settings_for, until
from testkit.streams import restore_snapshot, take_snapshot


async def count(database: asyncpg.Connection, table: str = "sensor_data") -> int:
    number: int = await database.fetchval(f"SELECT count(*) FROM {table}")
    return number


async def created(client: Client) -> datetime:
    info = await client.jetstream().stream_info(names.STREAM)
    assert info.created is not None
    return info.created


@on_both_servers
async def test_delivery_b3_a_restored_stream_duplicates_nothing(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)
    for number in range(5):
        await publish_plain(nats_client, join([frame(number)]))
    for seq in range(1, 6):
        await publish_batch(nats_client, seq, [frame(10 + seq)])
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
    assert await count(database) == 10
    before = await created(nats_client)
    snapshot = await take_snapshot(nats_client, names.STREAM)
    await nats_client.jetstream().delete_stream(names.STREAM)
    await restore_snapshot(nats_client, snapshot)
    assert await created(nats_client) != before, "the restored stream is another one by its creation time"
    await publish_plain(nats_client, join([frame(20)]))
    # Twice: the second session comes after a leader has swept the ledger for the restored stream.
    for _ in range(2):
        async with running_ingest(nats_url, settings):
            await until(lambda: drained(nats_client))
            await until(lambda: swept(database, nats_client))
        assert await count(database) == 11
        await nats_client.jetstream().delete_consumer(names.STREAM, names.DURABLE)
    assert await count(database, "dead_letters") == 0


async def swept(database: asyncpg.Connection, client: Client) -> bool:
    """Whether a leader wrote down the floor of the stream that is there now; it sweeps right after that."""
    known = await database.fetchval("SELECT stream_created FROM delivery WHERE committed_floor > 0")
    return bool(known == await created(client))


def plain(number: int, stream_seq: int, stored_at: datetime) -> Incoming:
    return Incoming("CNC_DATA.original", {}, join([frame(number)]), stream_seq, stored_at)


@on_both_servers
async def test_delivery_b3_sequence_time_and_content_are_the_key(
    postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """One of them another is another message, in hand as in the ledger; only the stream's creation does not count."""
    now = datetime.now(UTC).replace(microsecond=0)
    limits = Limits.at(now, 300, 0)
    first = plain(1, 7, now)
    others = [
        first._replace(stored_at=now + timedelta(microseconds=1)),
        first._replace(stream_seq=8),
        first._replace(data=join([frame(2)])),
    ]
    messages = [first, *others]
    for stream_created in (now - timedelta(days=1), now):
        store = Store(await connect(postgres_dsn), stream_created)
        for one in messages:
            await store.write([decode(one, limits)])
        # All in hand at once, each twice.
        await store.write([decode(one, limits) for one in (*messages, *messages)])
        store.close()
        assert await count(database, "ledger_unidentified") == await count(database) == 4
    assert await count(database, "dead_letters") == 0


@on_both_servers
async def test_delivery_b3_in_hand_together_they_are_told_apart(
    postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """A stream that lost its tail gives a sequence out again: both messages may be in hand, even with one content."""
    now = datetime.now(UTC)
    store = Store(await connect(postgres_dsn), now)
    one = plain(1, 7, now)
    later = one._replace(stored_at=now + timedelta(seconds=1))
    outcome = await store.write([decode(each, Limits.at(now, 300, 0)) for each in (one, later)])
    assert len(outcome.new) == await count(database) == 2
    assert await count(database, "dead_letters") == 0
    store.close()


async def test_delivery_b3_rows_of_another_stream_go_by_age(postgres_dsn: str, database: asyncpg.Connection) -> None:
    now = datetime.now(UTC)
    here, before = now, now - timedelta(days=30)
    max_age = timedelta(days=1)
    kept = now - max_age - ledger.RESTORE_MARGIN + timedelta(minutes=5)
    old = now - max_age - ledger.RESTORE_MARGIN - timedelta(minutes=5)
    messages = [plain(1, 5, old), plain(2, 7, kept)]
    for created_at in (before, here):
        store = Store(await connect(postgres_dsn), created_at)
        await store.write([decode(message, Limits.at(now, 300, 0)) for message in messages])
        store.close()
    # Known there, so the second stream's are none of their own.
    assert await count(database, "ledger_unidentified") == 2
    assert await ledger.forget_restored(database, max_age) == 0, "which stream is there now is not known yet"
    await database.execute("UPDATE delivery SET stream_created = $1", here)
    assert await ledger.forget_dropped(database, here, 1000) == 0, "of the stream that is there now there are none"
    assert await ledger.forget_restored(database, max_age) == 1
    assert [row["stored_at"] for row in await database.fetch("SELECT stored_at FROM ledger_unidentified")] == [kept]


async def test_delivery_b3_what_the_stream_dropped_is_forgotten_in_portions(
    postgres_dsn: str, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "FORGET_ROWS", 3)
    monkeypatch.setattr(ledger, "FORGET_STATEMENTS", 2)
    now = datetime.now(UTC)
    store = Store(await connect(postgres_dsn), now)
    await store.write([decode(plain(number, number, now), Limits.at(now, 300, 0)) for number in range(1, 11)])
    store.close()
    assert [await ledger.forget_dropped(database, now, 9) for _ in range(3)] == [6, 2, 0]
    left = await database.fetch("SELECT stream_seq FROM ledger_unidentified ORDER BY 1")
    assert [row["stream_seq"] for row in left] == [9, 10]


async def test_delivery_b3_programs_of_before_go_by_the_new_key(database: asyncpg.Connection) -> None:
    """What a restored stream was stored twice as is one row after the upgrade, and an older program adds no other."""
    await database.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    shipped = migrate.shipped()
    number = next(migration.number for migration in shipped if migration.name == "unidentified_by_content")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrate, "shipped", lambda: shipped[: number - 1])
        await migrate.migrate(database)
    rows = [("2026-01-01", 7, b"a"), ("2026-02-01", 7, b"a"), ("2026-02-01", 8, b"a")]
    for created_at, stream_seq, sha256 in rows:
        await database.execute(OF_BEFORE, datetime.fromisoformat(f"{created_at}T00:00:00Z"), stream_seq, sha256)
    await migrate.migrate(database)
    left = await database.fetch("SELECT stream_created, stream_seq FROM ledger_unidentified ORDER BY 2")
    assert [(row["stream_created"].month, row["stream_seq"]) for row in left] == [(1, 7), (2, 8)]
    for created_at, stream_seq, sha256 in rows:
        again = await database.fetch(OF_BEFORE, datetime.fromisoformat(f"{created_at}T01:00:00Z"), stream_seq, sha256)
        assert again == []


OF_BEFORE = (
    "INSERT INTO ledger_unidentified "
    "(stream, stream_created, stream_seq, sha256, stored, dead, disposition, stored_at) "
    "SELECT 'CNC_DATA', $1, $2, $3, 1, 0, 'stored', '2026-01-01 00:00:00Z' "
    "ON CONFLICT DO NOTHING RETURNING stream_seq, stored_at"
)
"""As workers write it that know no migration after the fourth."""
