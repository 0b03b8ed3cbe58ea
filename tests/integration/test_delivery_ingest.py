"""Rules B, C and D of delivery, each on a real stream and a real database.

Long, so that the rules stand in one place and in their order.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec
import pytest
from nats.aio.client import Client
from nats.js import api
from nats.js.errors import KeyNotFoundError

from cncmon_core import identity, names
from cncmon_core.events import Event, encode_event
from cncmon_core.frames import join
from cncmon_core.watermark import Watermark, decode_watermark
from cncmon_ingest import dlq, hold, leader, worker
from cncmon_ingest.advance import advance
from cncmon_ingest.care import care_for_stream
from cncmon_ingest.connection import connect
from cncmon_ingest.decode import Incoming, Limits, decode
from cncmon_ingest.errors import NotConnectedError, OutageError
from cncmon_ingest.migrate import migrate
from cncmon_ingest.store import Store
from cncmon_ingest.suspects import incoming_of
from testkit import ingest
from testkit.acks import Acks
from testkit.fixtures import on_both_servers
from testkit.ingest import (
    EPOCH,
    drained,
    frame,
    publish_batch,
    publish_plain,
    replay_all,
    running_ingest,
    settings_for,
    until,
)
from testkit.servers import Postgres


async def count(database: asyncpg.Connection, table: str = "sensor_data") -> int:
    number: int = await database.fetchval(f"SELECT count(*) FROM {table}")
    return number


def incoming(
    seq: int,
    parts: list[bytes],
    *,
    epoch: int = EPOCH,
    stream_seq: int = 1,
    sha: str | None = None,
    stored_at: datetime | None = None,
) -> Incoming:
    payload = join(parts)
    batch = identity.Identity(epoch, seq, len(parts), 0, sha or identity.digest(payload), "samples")
    headers = batch.to_headers("hall", "e1", None)
    return Incoming("CNC_DATA.hall.e1", headers, payload, stream_seq, stored_at or datetime.now(UTC))


def message(seq: int, parts: list[bytes], **more: Any) -> Any:
    return decode(incoming(seq, parts, **more), Limits.at(datetime.now(UTC), 300, 0))


@contextlib.asynccontextmanager
async def locked_table(dsn: str) -> AsyncIterator[None]:
    """Let every transaction that stores samples wait."""
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE sensor_data IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


# --- B1, B2: one transaction -------------------------------------------------------------------------------------


@on_both_servers
async def test_delivery_b1_a_second_delivery_changes_nothing(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)
    batches = {seq: [frame(seq)] for seq in range(1, 6)}
    for attempt in range(3):
        for seq, parts in batches.items():
            await publish_batch(nats_client, seq, parts, message_id=f"{attempt}-{seq}")
    async with running_ingest(nats_url, settings, workers=3):
        await until(lambda: drained(nats_client))
    assert await count(database) == 5
    assert await count(database, "dead_letters") == 0


@on_both_servers
async def test_delivery_b1_a_stream_whose_clock_jumps_doubles_nothing(
    postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """Ten minutes ahead, and back: the duplicate window is over at once, and what is sent again has other times."""
    store, now = Store(await connect(postgres_dsn), datetime.now(UTC)), datetime.now(UTC)
    parts = {seq: [frame(seq)] for seq in range(1, 8)}
    for stream_seq, minutes in enumerate((0, 10, 10, 0, -10), 1):
        stored_at = now + timedelta(minutes=minutes)
        limits = Limits.at(max(stored_at, now), 300, 0)
        again = [incoming(seq, parts[seq], stream_seq=stream_seq, stored_at=stored_at) for seq in (1, 2)]
        new = incoming(2 + stream_seq, parts[2 + stream_seq], stream_seq=stream_seq, stored_at=stored_at)
        outcome = await store.write([decode(one, limits) for one in (*again, new)])
        assert len(outcome.new) == (3 if stream_seq == 1 else 1)
    store.close()
    assert await count(database) == 2 + 5
    assert await count(database, "dead_letters") == 0


async def test_delivery_b1_nothing_is_acknowledged_before_it_is_committed(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """The transaction waits for a lock: until it has it, all that JetStream hears is that it is being worked on."""
    settings = settings_for(postgres_dsn, ack_wait_ms=3000)
    await ingest.prepare(nats_client, settings)
    acks = await Acks.of(nats_client)
    async with running_ingest(nats_url, settings, leader=False):
        async with locked_table(postgres_dsn):
            await publish_batch(nats_client, 1, [frame(1)])
            bad = {identity.EPOCH: "-5", identity.SEQ: "1"}
            await nats_client.jetstream().publish("CNC_DATA.hall.e1", b"x", headers=bad)
            # On the connection that acknowledgements take, so they would have come before.
            await acks.more("+WPI", 4)
            assert (acks.final(1), acks.final(2)) == ([], [])
        await until(lambda: drained(nats_client))
    assert (acks.final(1), acks.final(2)) == (["+ACK"], ["+TERM"])


@on_both_servers
async def test_delivery_b1_two_workers_with_the_same_message(postgres_dsn: str, database: asyncpg.Connection) -> None:
    stores = [Store(await connect(postgres_dsn), datetime.now(UTC)) for _ in range(2)]
    outcomes = await asyncio.gather(
        *(
            store.write([message(seq, [frame(seq)]) for seq in order])
            for store, order in zip(stores, ((1, 2), (2, 1)), strict=True)
        )
    )
    assert sorted(len(outcome.new) for outcome in outcomes) in ([0, 2], [1, 1])
    assert await count(database) == 2
    for store in stores:
        store.close()


@on_both_servers
async def test_delivery_b1_what_is_at_or_under_the_watermark_is_not_new(
    postgres_dsn: str, database: asyncpg.Connection
) -> None:
    store = Store(await connect(postgres_dsn), datetime.now(UTC))
    await store.write([message(seq, [frame(seq)]) for seq in (1, 2, 3)])
    assert await advance(database) == {names.Origin("hall", "e1")}
    assert await count(database, "ledger") == 0, "pruned"
    outcome = await store.write([message(seq, [frame(seq)]) for seq in (2, 3, 4)])
    assert [m.identity and m.identity.seq for m in outcome.new] == [4]
    assert await count(database) == 4
    assert [row["seq"] for row in await database.fetch("SELECT seq FROM ledger")] == [4]
    store.close()


@on_both_servers
async def test_delivery_b1_prune_between_the_insert_and_the_watermark_read(
    postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """A worker that waits on the ledger's key while the leader prunes that very row must not store it again."""
    store = Store(await connect(postgres_dsn), datetime.now(UTC))
    other = await asyncpg.connect(postgres_dsn)
    transaction = other.transaction()
    await transaction.start()
    await other.execute(
        "INSERT INTO ledger (epoch, seq, sha256, stored, dead, disposition) VALUES ($1, 1, '\\x00', 1, 0, 'stored')",
        EPOCH,
    )
    waiting = asyncio.create_task(store.write([message(1, [frame(1)])]))
    await asyncio.sleep(0.3)
    assert not waiting.done(), "waits for the other transaction"
    await other.execute("INSERT INTO watermarks (epoch, site, edge, seq) VALUES ($1, 'hall', 'e1', 1)", EPOCH)
    await other.execute("DELETE FROM ledger")
    await transaction.commit()
    outcome = await waiting
    assert outcome.new == []
    assert await count(database) == 0
    assert await count(database, "ledger") == 0
    store.close()
    await other.close()


async def test_delivery_b1_synchronous_commit_off_is_refused(postgres_dsn: str, database: asyncpg.Connection) -> None:
    name = postgres_dsn.rsplit("/", 1)[1]
    await database.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    with pytest.raises(OutageError, match="synchronous_commit is 'off'"):
        await connect(postgres_dsn)


@on_both_servers
async def test_delivery_b2_same_identity_with_another_hash_is_a_conflict(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)
    # seq 1 is missing, so the watermark can't prune seq 2 and its hash stays known.
    await publish_batch(nats_client, 2, [frame(1)])
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
        await publish_batch(nats_client, 2, [frame(2), frame(3)], message_id="clone")
        await until(lambda: drained(nats_client))
    assert await count(database) == 1
    letter = await database.fetchrow("SELECT * FROM dead_letters")
    assert letter is not None
    assert (letter["reason"], letter["frame"]) == ("identity_conflict", -1)


@on_both_servers
async def test_delivery_b2_two_batches_in_hand_under_one_identity(
    postgres_dsn: str, database: asyncpg.Connection
) -> None:
    store = Store(await connect(postgres_dsn), datetime.now(UTC))
    await store.write([message(1, [frame(1)], stream_seq=1), message(1, [frame(2)], stream_seq=2)])
    assert await count(database) == 1
    assert await database.fetchval("SELECT reason FROM dead_letters") == "identity_conflict"
    store.close()


async def test_delivery_b2_payload_that_is_not_what_was_hashed(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)
    await publish_batch(nats_client, 1, [frame(1)], sha256="0" * 64)
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
        await until(lambda: watermark_is(database, 1))
    assert await database.fetchval("SELECT reason FROM dead_letters") == "hash_mismatch"
    assert await database.fetchval("SELECT batches_dead FROM watermarks") == 1


async def watermark_is(database: asyncpg.Connection, seq: int, epoch: int = EPOCH) -> bool:
    return bool(await database.fetchval("SELECT seq FROM watermarks WHERE epoch = $1", epoch) == seq)


# --- B3: the original system's form ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "subject", ["CNC_DATA.a", "CNC_DATA.hall.e1", "CNC_DATA.a.b.c.d", "CNC_DATA.Line 1".replace(" ", "_")]
)
async def test_delivery_b3_original_messages_on_any_subject(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, subject: str
) -> None:
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)
    for number in range(50):
        await publish_plain(nats_client, join([frame(number)]), subject)
    async with running_ingest(nats_url, settings, workers=2):
        await until(lambda: drained(nats_client))
    assert await count(database) == 50


async def test_delivery_b3_original_edge_subjects_where_a_setting_lists_them(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    await ingest.prepare(nats_client, settings_for(postgres_dsn))
    settings = settings_for(postgres_dsn, extra_subjects=["CNC.EDGE.*"])
    async with running_ingest(nats_url, settings):

        async def captured() -> bool:
            info = await nats_client.jetstream().stream_info(names.STREAM)
            return "CNC.EDGE.*" in (info.config.subjects or [])

        await until(captured)
        await publish_plain(nats_client, join([frame(1)]), "CNC.EDGE.pi-7")
        await until(lambda: drained(nats_client))
    assert await count(database) == 1
    assert await database.fetchval("SELECT edge FROM machines") == "pi-7"


async def test_delivery_b3_a_header_less_message_twice_delivered_is_stored_once(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)
    await publish_plain(nats_client, join([frame(1)]))
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
    await nats_client.jetstream().delete_consumer(names.STREAM, names.DURABLE)
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
    assert await count(database) == 1


async def test_delivery_b3_a_stream_made_anew_counts_from_one_again(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    settings = settings_for(postgres_dsn)
    for number in range(2):
        await ingest.prepare(nats_client, settings)
        assert await publish_plain(nats_client, join([frame(number)])) == 1
        async with running_ingest(nats_url, settings):
            await until(lambda: drained(nats_client))
        await nats_client.jetstream().delete_stream(names.STREAM)
    assert await count(database) == 2


# --- B6, B7: judging data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("right", ["stream", "database"])
async def test_delivery_b6_now_is_the_later_of_stream_and_database(
    nats_client: Client,
    nats_url: str,
    postgres_dsn: str,
    database: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    right: str,
) -> None:
    """An ingest pod whose clock is a day slow must not refuse a plant, even if one of the two others is as slow."""
    day = timedelta(days=1)
    place = incoming_of

    class Slow(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Slow":
            return super().now(tz) - day

    def slow_stream(message: Any) -> Incoming:
        return place(message)._replace(stored_at=place(message).stored_at - day)

    async def slow_database(_store: Store) -> timedelta:
        return timedelta(0)

    monkeypatch.setattr("cncmon_ingest.worker.datetime", Slow)
    monkeypatch.setattr("cncmon_ingest.store.datetime", Slow)
    if right == "database":
        monkeypatch.setattr(worker, "incoming_of", slow_stream)
    else:
        monkeypatch.setattr(Store, "clock_offset", slow_database)
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)
    await publish_plain(nats_client, join([frame(1, timestamp=datetime.now(UTC).isoformat())]))
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
    assert await count(database) == 1


async def test_delivery_b6_too_old(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    settings = settings_for(postgres_dsn, retention_days=30)
    await ingest.prepare(nats_client, settings)
    old = (datetime.now(UTC) - timedelta(days=31)).isoformat()
    await publish_plain(nats_client, join([frame(1, timestamp=old), frame(2)]))
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
    assert await count(database) == 1
    assert await database.fetchval("SELECT reason FROM dead_letters") == "too_old"


@on_both_servers
async def test_delivery_b7_what_the_database_refuses_is_found_and_buried(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """A constraint that our decoder does not know: only the frames that break it are dead, nobody is blocked."""
    await database.execute("ALTER TABLE sensor_data ADD CHECK (part_count < 1000)")
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)
    bad = frame(7, part_count=5000)
    await publish_batch(nats_client, 1, [frame(n) for n in range(100)])
    await publish_batch(nats_client, 2, [*(frame(n) for n in range(250)), bad, *(frame(n) for n in range(200)), bad])
    await publish_batch(nats_client, 3, [frame(n) for n in range(100)])
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
        await until(lambda: watermark_is(database, 3))
    assert await count(database) == 650
    letters = await database.fetch("SELECT frame, reason, detail, payload FROM dead_letters ORDER BY frame")
    assert [(row["frame"], row["reason"]) for row in letters] == [
        (250, "refused_by_database"),
        (451, "refused_by_database"),
    ]
    assert all(row["payload"] == bad and "23514" in row["detail"] for row in letters)
    row = await database.fetchrow("SELECT samples_stored, samples_dead FROM watermarks")
    assert row is not None
    assert tuple(row) == (650, 2)


async def test_delivery_b7_a_frame_that_the_decoder_refused_shifts_no_number(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """Rows are fewer than frames then: the letter of a row has the number and the bytes of its own frame."""
    await database.execute("ALTER TABLE sensor_data ADD CHECK (part_count < 1000)")
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)
    bad = frame(3, part_count=5000)
    await publish_batch(nats_client, 1, [b"{", frame(1), frame(2), bad, frame(4), b"}", frame(6)])
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
    rows = await database.fetch("SELECT active_program_line AS line FROM sensor_data ORDER BY 1")
    assert [row["line"] for row in rows] == [1, 2, 4, 6]
    letters = await database.fetch("SELECT frame, reason, payload FROM dead_letters ORDER BY frame")
    assert [(row["frame"], row["reason"]) for row in letters] == [
        (0, "malformed_json"),
        (3, "refused_by_database"),
        (5, "malformed_json"),
    ]
    assert [row["payload"] for row in letters] == [b"{", bad, b"}"]


# --- B8: hold ----------------------------------------------------------------------------------------------------


async def test_delivery_b8_database_away_is_a_hold_and_nothing_else(
    nats_client: Client, nats_url: str, own_postgres: Postgres
) -> None:
    dsn = own_postgres.dsn
    connection = await asyncpg.connect(dsn)
    await migrate(connection)
    await connection.close()
    settings = settings_for(dsn, ack_wait_ms=1000, hold_retry_ms_max=200)
    await ingest.prepare(nats_client, settings)
    js = nats_client.jetstream()
    async with running_ingest(nats_url, settings) as (worker,):
        await publish_batch(nats_client, 1, [frame(1)])
        await until(lambda: drained(nats_client))
        await asyncio.to_thread(own_postgres.kill)
        for seq in range(2, 30):
            await publish_batch(nats_client, seq, [frame(seq)])
        await asyncio.sleep(5)
        assert worker.check() is not None
        info = await js.consumer_info(names.STREAM, names.DURABLE)
        assert not info.num_redelivered, "held messages are kept with in_progress(), never delivered again"
        assert info.num_ack_pending, "what is in hand is kept"
        await asyncio.to_thread(own_postgres.start)
        await until(lambda: drained(nats_client))
        assert worker.check() is None
    connection = await asyncpg.connect(dsn)
    assert await count(connection) == 29
    assert await count(connection, "dead_letters") == 0
    await connection.close()


async def test_delivery_b8_what_is_held_is_kept_and_nothing_is_fetched(
    nats_client: Client, nats_url: str, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is in hand is kept with in_progress; what comes meanwhile stays for others, in the stream."""
    settings = settings_for(postgres_dsn, ack_wait_ms=4500, hold_retry_ms_max=200)
    await ingest.prepare(nats_client, settings)
    acks = await Acks.of(nats_client)

    async def away(*_: Any) -> None:
        raise NotConnectedError("the database is away")

    async with running_ingest(nats_url, settings, leader=False) as (one,):
        await publish_batch(nats_client, 1, [frame(1)])
        await until(lambda: drained(nats_client))
        with monkeypatch.context() as patch:
            patch.setattr(one, "_connected", away)
            await publish_batch(nats_client, 2, [frame(2)])
            # A third of ack_wait apart: the pull request is withdrawn by then.
            await acks.more("+WPI", 3)
            for seq in range(3, 8):
                await publish_batch(nats_client, seq, [frame(seq)])
            await acks.more("+WPI", 2)
            info = await nats_client.jetstream().consumer_info(names.STREAM, names.DURABLE)
            assert (info.num_pending, info.num_ack_pending, info.num_redelivered) == (5, 1, 0)
            assert acks.final(2) == []
        await until(lambda: drained(nats_client))
    assert [acks.final(seq) for seq in range(2, 8)] == [["+ACK"]] * 6


async def test_delivery_b8_one_delivery_is_no_sign_that_others_commit(nats_client: Client, postgres_dsn: str) -> None:
    """A worker that has not noticed the outage yet may be given something once."""
    await ingest.prepare(nats_client, settings_for(postgres_dsn))
    js = nats_client.jetstream()
    others = hold._Progress(js, names.DURABLE, 0.0)
    subscription = await js.pull_subscribe_bind(names.DURABLE, names.STREAM)
    for seq in range(1, 6):
        await publish_batch(nats_client, seq, [frame(seq)])
    seen = []
    for takes in (False, True, False, True, True):
        if takes:
            await subscription.fetch(1, timeout=30)
        seen.append(await others.seen())
    assert seen == [False, False, False, False, True], "two looks in a row that find more"


async def test_delivery_b8_a_worker_is_given_more_than_it_commits_at_once(
    nats_client: Client, postgres_dsn: str
) -> None:
    """With one fetch in hand and none on the way, each commit would wait for the network."""
    await ingest.prepare(nats_client, settings_for(postgres_dsn, fetch_messages=10, workers_max=1))
    for seq in range(1, 31):
        await publish_batch(nats_client, seq, [frame(seq)])
    subscription = await nats_client.jetstream().pull_subscribe_bind(names.DURABLE, names.STREAM)
    taken = [*await subscription.fetch(10, timeout=30), *await subscription.fetch(10, timeout=30)]
    # Not the first ten again, once their time is over.
    assert [message.metadata.sequence.stream for message in taken] == list(range(1, 21))


async def test_delivery_b8_a_worker_cut_off_alone_gives_its_messages_back(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    good = settings_for(postgres_dsn, ack_wait_ms=1500)
    cut_off = settings_for(postgres_dsn, ack_wait_ms=1500, hold_retry_ms_max=200)
    await ingest.prepare(nats_client, good)
    async with running_ingest(nats_url, cut_off, leader=False) as (worker,):
        await publish_batch(nats_client, 1, [frame(1)])
        await until(lambda: drained(nats_client))

        async def away() -> None:
            raise NotConnectedError("this worker alone is cut off")

        worker._connected = away  # type: ignore[method-assign]  # cut off by hand
        for seq in range(2, 20):
            await publish_batch(nats_client, seq, [frame(seq)])
        await asyncio.sleep(0.5)
        async with running_ingest(nats_url, good):
            seq = 20

            async def all_stored() -> bool:
                """Others go on: that is what shows this worker that it alone is cut off."""
                nonlocal seq
                await publish_batch(nats_client, seq, [frame(seq)])
                seq += 1
                return bool(await database.fetchval("SELECT count(*) >= 19 FROM sensor_data WHERE temperature < 45"))

            await until(all_stored)


# --- C: dead letters ---------------------------------------------------------------------------------------------


async def test_delivery_c1_bad_identity_is_kept_and_blocks_nothing(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)
    js = nats_client.jetstream()
    await js.publish("CNC_DATA.hall.e1", b"xyz", headers={identity.EPOCH: "-5", identity.SEQ: "1", "X": "a\tb"})
    await publish_batch(nats_client, 1, [frame(1)])
    acks = await Acks.of(nats_client)
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
    assert [acks.final(seq) for seq in (1, 2)] == [["+TERM"], ["+ACK"]]
    delivered = (await js.consumer_info(names.STREAM, names.DURABLE)).delivered
    assert delivered is not None
    assert delivered.consumer_seq == 2, "a message came a second time"
    letter = await database.fetchrow("SELECT * FROM dead_letters")
    assert letter is not None
    assert (letter["reason"], letter["frame"], letter["payload"]) == ("bad_identity", -1, b"xyz")
    assert json.loads(letter["headers"])[identity.EPOCH] == "-5"
    assert await count(database, "ledger_unidentified") == 1
    assert await count(database) == 1


async def are_waiting(database: asyncpg.Connection, number: int) -> bool:
    """Whether so many sessions wait for a lock of another."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0"
    return bool(await database.fetchval(waiting) == number)


@on_both_servers
async def test_delivery_c2_replay_stores_once_and_only_what_can_be_stored_now(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    strict, lenient = settings_for(postgres_dsn, retention_days=1), settings_for(postgres_dsn)
    await ingest.prepare(nats_client, strict)
    old = (datetime.now(UTC) - timedelta(days=3)).isoformat()
    await publish_batch(nats_client, 1, [frame(1, timestamp=old), b"{", frame(2)])
    async with running_ingest(nats_url, strict):
        await until(lambda: drained(nats_client))
    assert await count(database) == 1
    listed = await dlq.list_(database)
    assert {row["reason"] for row in listed} == {"too_old", "malformed_json"}
    ids = [row["id"] for row in listed]

    async def replay(connection: asyncpg.Connection) -> list[dlq.Replayed]:
        return [one async for one in dlq.replay(connection, ids, lenient)]

    first, second = [await asyncpg.connect(postgres_dsn) for _ in range(2)]
    # Both have begun before either can end.
    async with database.transaction():
        await database.execute("SELECT FROM dead_letters FOR UPDATE")
        replaying = asyncio.gather(replay(first), replay(second))
        await until(lambda: are_waiting(database, 2))
    results = await replaying
    assert sum(item.samples for result in results for item in result) == 1
    assert {one.samples for one in await replay(first)} == {0}
    await first.close()
    await second.close()
    assert await count(database) == 2
    states = {row["reason"]: row["state"] for row in await dlq.list_(database, dlq.Which(state=None))}
    assert states == {"too_old": "replayed", "malformed_json": "dead"}
    shown = await dlq.show(database, listed[0]["id"])
    assert shown is not None
    assert shown["headers"][identity.EPOCH] == str(EPOCH)


async def test_dead_letters_are_chosen_counted_and_given_up(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    settings = settings_for(postgres_dsn, retention_days=1)
    await ingest.prepare(nats_client, settings)
    old = (datetime.now(UTC) - timedelta(days=3)).isoformat()
    await publish_batch(nats_client, 1, [frame(1, timestamp=old), b"{", b"{", frame(2)])
    await nats_client.jetstream().publish("CNC_DATA.hall.other", b"no frames")
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
    site, edge = (await dlq.list_(database, dlq.Which(reasons=("too_old",))))[0]["subject"].split(".")[1:3]
    mine = dlq.Which(edge=(site, edge))
    found = {(one.reason, one.state): one.letters for one in await dlq.counts(database, mine)}
    assert found == {("malformed_json", "dead"): 2, ("too_old", "dead"): 1}
    assert [one.letters for one in await dlq.counts(database, dlq.Which(edge=("hall", "other")))] == [1]
    assert await dlq.list_(database, dlq.Which(age_max=timedelta(0))) == []
    assert len(await dlq.list_(database, dlq.Which(age_max=timedelta(hours=1)))) == 4
    assert len(await dlq.list_(database, mine, limit=2)) == 2

    assert await dlq.drop(database, dlq.Which(reasons=("malformed_json",), edge=(site, edge))) == 2
    assert await dlq.drop(database, dlq.Which(reasons=("malformed_json",), edge=(site, edge))) == 0, "given up already"
    assert {row["reason"] for row in await dlq.list_(database, mine)} == {"too_old"}
    dropped = await dlq.list_(database, dlq.Which(state="dropped"))
    # What is given up is not stored by anybody any more.
    again = [one async for one in dlq.replay(database, [row["id"] for row in dropped], settings_for(postgres_dsn))]
    assert {one.error for one in again} == {"not there, or not dead any more"}
    assert [one.samples for one in await replay_all(database, settings_for(postgres_dsn)) if not one.error] == [1]


# --- D1: the watermark -------------------------------------------------------------------------------------------


async def told(client: Client, key: str = "hall.e1") -> Watermark | None:
    try:
        entry = await (await client.jetstream().key_value(names.KV_WATERMARK)).get(key)
    except KeyNotFoundError:
        return None
    return decode_watermark(entry.value or b"")


@on_both_servers
async def test_delivery_d1_the_watermark_is_contiguous_and_told(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)
    heard: list[Watermark] = []

    async def on_republished(message: Any) -> None:
        heard.append(decode_watermark(message.data))

    await nats_client.subscribe(names.republish_subject(names.KV_WATERMARK, "hall", "e1"), cb=on_republished)
    async with running_ingest(nats_url, settings):
        for seq in (1, 2, 4, 5):
            await publish_batch(nats_client, seq, [frame(seq)])

        async def is_two() -> bool:
            document = await told(nats_client)
            return document is not None and document.epochs.get(EPOCH) == 2 and document.committed_floor == 4

        await until(is_two)
        assert await count(database, "ledger") == 2
        await publish_batch(nats_client, 3, [frame(3)])

        async def is_five() -> bool:
            document = await told(nats_client)
            return document is not None and document.epochs.get(EPOCH) == 5

        await until(is_five)
    assert heard[-1].epochs[EPOCH] == 5
    seqs = [document.epochs[EPOCH] for document in heard if EPOCH in document.epochs]
    assert seqs == sorted(seqs)
    row = await database.fetchrow("SELECT batches_stored, samples_stored FROM watermarks WHERE epoch = $1", EPOCH)
    assert row is not None
    assert tuple(row) == (5, 5)
    assert await count(database, "ledger") == 0


async def test_delivery_d1_told_again_when_the_bucket_lost_it(
    nats_client: Client, nats_url: str, postgres_dsn: str
) -> None:
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)
    async with running_ingest(nats_url, settings):
        await publish_batch(nats_client, 1, [frame(1)])

        async def is_told() -> bool:
            document = await told(nats_client)
            return document is not None and set(document.epochs.values()) == {1}

        # Nothing else will change in it that would have it written.
        await until(is_told)
        await (await nats_client.jetstream().key_value(names.KV_WATERMARK)).purge("hall.e1")
        await until(is_told)


async def test_delivery_d1_a_dead_leader_is_followed(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)
    async with running_ingest(nats_url, settings), running_ingest(nats_url, settings):
        await publish_batch(nats_client, 1, [frame(1)])
        await until(lambda: watermark_is(database, 1))
        killed = await database.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objid = $1",
            leader.LOCK_KEY & 0xFFFFFFFF,
        )
        assert len(killed) == 1
        await publish_batch(nats_client, 2, [frame(2)])
        await until(lambda: watermark_is(database, 2))


@on_both_servers
async def test_delivery_a1_epoch_closings_are_written_down(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)
    closing = Event("epoch_closed", datetime.now(UTC), data={"epoch": 77, "last_seq": 12, "samples": 345})
    await publish_batch(nats_client, 1, [encode_event(closing), b'{"type": "epoch_closed"}'], kind="events")
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
    row = await database.fetchrow("SELECT site, edge, closed_seq, closed_samples FROM watermarks WHERE epoch = 77")
    assert row is not None
    assert tuple(row) == ("hall", "e1", 12, 345)
    assert await database.fetchval("SELECT type FROM events") == "epoch_closed"
    assert await database.fetchval("SELECT reason FROM dead_letters") == "invalid_field"
    assert await count(database) == 0


# --- D2: room in the stream --------------------------------------------------------------------------------------


async def test_delivery_d2_committed_messages_make_room_and_no_edge_is_refused(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    settings = settings_for(postgres_dsn, stream_messages_max=1000)
    await ingest.prepare(nats_client, settings)
    async with running_ingest(nats_url, settings):
        for seq in range(1, 2501):
            while True:
                try:
                    await publish_batch(nats_client, seq, [frame(seq)])
                    break
                except Exception as error:
                    raise AssertionError(f"edge refused at seq {seq}: {error}") from error
            if seq % 100 == 0:
                await asyncio.sleep(0.1)
        await until(lambda: drained(nats_client))
    assert await count(database) == 2500
    state = (await nats_client.jetstream().stream_info(names.STREAM)).state
    assert state.messages <= 1000


async def test_delivery_d2_nothing_uncommitted_is_purged(nats_client: Client, nats_url: str, postgres_dsn: str) -> None:
    settings = settings_for(postgres_dsn, stream_messages_max=1000)
    await ingest.prepare(nats_client, settings)
    for seq in range(1, 901):
        await publish_batch(nats_client, seq, [frame(seq)])
    await care_for_stream(nats_client.jetstream(), settings, floor=0)
    state = (await nats_client.jetstream().stream_info(names.STREAM)).state
    assert (state.first_seq, state.messages) == (1, 900)
    await care_for_stream(nats_client.jetstream(), settings, floor=50)
    state = (await nats_client.jetstream().stream_info(names.STREAM)).state
    assert (state.first_seq, state.messages) == (51, 850)


async def test_delivery_d5_a_consumer_ahead_of_its_stream_is_made_again(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)
    js = nats_client.jetstream()
    await js.delete_consumer(names.STREAM, names.DURABLE)
    await js.add_consumer(
        names.STREAM,
        api.ConsumerConfig(
            durable_name=names.DURABLE,
            ack_policy=api.AckPolicy.EXPLICIT,
            deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=1000,
        ),
    )
    await publish_batch(nats_client, 1, [frame(1)])
    async with running_ingest(nats_url, settings):
        await until(lambda: _stored(database, 1))


async def _stored(database: asyncpg.Connection, number: int) -> bool:
    return await count(database) == number


def test_watermark_document_round_trip() -> None:
    document = Watermark(1, "2026-01-01T00:00:00+00:00", 5, {2**62: 7})
    assert decode_watermark(msgspec.json.encode(document)) == document
