"""Rules D1 to D3 round by round: the leader's order of doing things, and what holds while the stream is read again."""

import asyncio
from collections.abc import Awaitable
from datetime import UTC, datetime

import asyncpg
import msgspec
import pytest
from nats.aio.client import Client

from cncmon_core import frames, names
from cncmon_core.names import Origin
from cncmon_core.watermark import Watermark, decode_watermark, encode_watermark
from cncmon_ingest import generation as generation_module
from cncmon_ingest import identity_watch, leader
from cncmon_ingest.adoption import adopt
from cncmon_ingest.advance import advance
from cncmon_ingest.connection import connect
from cncmon_ingest.database_identity import check_complete, identity_of
from cncmon_ingest.errors import ForeignError, NotConnectedError, OutageError
from cncmon_ingest.generation import Generation
from cncmon_ingest.identity_mirror import read_mirror
from cncmon_ingest.identity_watch import IdentityWatch
from cncmon_ingest.leader import Leader, leading
from cncmon_ingest.stream_position import StreamPosition, committed_position, stream_state
from cncmon_ingest.watermark_documents import WatermarkDocuments
from testkit.ingest import EPOCH, drained, frame, prepare, publish_batch, running_ingest, settings_for, until

HOURS_MS = 10 * 3600 * 1000


async def document_of(client: Client, edge: str = "e1") -> Watermark:
    entry = await (await client.jetstream().key_value(names.KV_WATERMARK)).get(f"hall.{edge}")
    return decode_watermark(entry.value or b"")


async def passed_by_a_past_life(client: Client, messages: int) -> None:
    """Fill the stream and let the shared consumer pass all of it, as workers did whose database is no more."""
    js = client.jetstream()
    await publish_batch(client, 1, [frame(0)])
    for number in range(1, messages):
        await client.publish("CNC_DATA.original", frames.join([frame(number)]))
    await client.flush()

    async def arrived() -> bool:
        return (await js.stream_info(names.STREAM)).state.messages == messages

    await until(arrived)
    subscription = await js.pull_subscribe("", durable=names.DURABLE, stream=names.STREAM)
    left = messages
    while left:
        batch = await subscription.fetch(min(left, 200), timeout=20)
        for message in batch:
            await message.ack()
        left -= len(batch)
    await until(lambda: drained(client))


async def test_delivery_d2_while_the_stream_is_read_again_nothing_of_it_is_purged(
    nats_client: Client, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """What the consumers passed in a past life is missing still: neither stream nor database loses it."""
    settings = settings_for(postgres_dsn, stream_messages_max=1000, sweep_interval_ms=100, ack_wait_ms=HOURS_MS)
    await prepare(nats_client, settings)
    js = nats_client.jetstream()
    await passed_by_a_past_life(nats_client, 800)
    created, _ = await stream_state(js)
    await database.execute(
        "UPDATE delivery SET generation = 5, counter = 7, stream_created = $1, committed_floor = 0, "
        "reread_from = 1, reread_to = 800, reread_begun = now()",
        created,
    )
    await database.execute(
        "INSERT INTO watermarks (epoch, site, edge, seq, advanced) VALUES ($1, 'hall', 'e1', 0, now())", EPOCH
    )
    # An edge has freed it: that is a gap only if it is still missing once all is read again.
    await database.execute(
        "INSERT INTO edge_epochs (epoch, site, edge, boot_id, last_seq, freed_seq, listed) "
        "VALUES ($1, 'hall', 'e1', 'b', 1, 1, now())",
        EPOCH,
    )
    rival = await asyncpg.connect(postgres_dsn)
    connection = await connect(postgres_dsn)
    try:
        # The reader waits for this lock at its first COPY; the leader's own statements do not.
        transaction = rival.transaction()
        await transaction.start()
        await rival.execute("LOCK TABLE sensor_data IN ACCESS EXCLUSIVE MODE")
        async with leading(settings, connection, nats_client) as rounds:
            second = 0.0

            async def round_() -> None:
                nonlocal second
                second += 1.0
                await rounds.next(second)

            for _ in range(5):
                await round_()
            assert (await js.stream_info(names.STREAM)).state.first_seq == 1, "purged what is missing"
            assert await database.fetchval("SELECT committed_floor FROM delivery") == 0, "a second fail-over skips it"
            assert (await document_of(nats_client)).committed_floor == 0
            assert await database.fetchval("SELECT count(*) FROM gaps") == 0, "what is read again is no gap"
            await transaction.rollback()

            async def all_is_read() -> bool:
                await round_()
                return bool(await database.fetchval("SELECT committed_floor FROM delivery") >= 800)

            await until(all_is_read)
            for _ in range(3):
                await round_()
            # Until all workers have heard of this generation they may acknowledge what they committed in the last one.
            assert await database.fetchval("SELECT reread_ended FROM delivery") is None
            await database.execute("UPDATE delivery SET reread_begun = now() - INTERVAL '1 day'")

            async def ended() -> bool:
                await round_()
                return await database.fetchval("SELECT reread_ended FROM delivery") is not None

            await until(ended)
            for _ in range(2):
                await round_()
        assert (await js.stream_info(names.STREAM)).state.first_seq > 1, "there is room again"
        assert await database.fetchval("SELECT count(DISTINCT active_program_line) FROM sensor_data") == 800
        assert await database.fetchval("SELECT count(*) FROM gaps") == 0
    finally:
        await rival.close()
        connection.terminate()


async def test_delivery_d1_a_floor_is_read_before_the_watermarks(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that is committed and acknowledged between the two reads: a document may lack both, never only it."""
    settings = settings_for(postgres_dsn)
    await prepare(nats_client, settings)
    async with running_ingest(nats_url, settings, leader=False):
        for seq in (1, 2):
            await publish_batch(nats_client, seq, [frame(seq)])
        await until(lambda: drained(nats_client))
        connection = await connect(postgres_dsn)
        async with leading(settings, connection, nats_client) as rounds:
            await rounds.next(1.0)
            # From here on: after the first of the two reads of a round nothing, then a commit before the second.
            published = 2

            async def commit_one() -> None:
                nonlocal published
                published += 1
                await publish_batch(nats_client, published, [frame(published)])
                await until(lambda: drained(nats_client))

            position, move, looks = committed_position, advance, 0

            async def after[T](work: Awaitable[T]) -> T:
                nonlocal looks
                found = await work
                looks += 1
                if looks % 2:
                    await commit_one()
                return found

            monkeypatch.setattr(leader, "committed_position", lambda *args: after(position(*args)))
            monkeypatch.setattr(leader, "advance", lambda *args: after(move(*args)))
            await commit_one()
            for number in range(2, 6):
                await rounds.next(float(number))
                document = await document_of(nats_client)
                assert document.epochs[EPOCH] >= document.committed_floor, "the consumers passed what is not in it"
        connection.terminate()


async def test_delivery_d1_a_document_is_written_by_compare_and_set(
    nats_client: Client, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """A leader that was overtaken writes nothing over what the next one wrote."""
    await prepare(nats_client, settings_for(postgres_dsn))
    bucket = await nats_client.jetstream().key_value(names.KV_WATERMARK)
    documents = WatermarkDocuments(database, bucket, bytes_max=0)
    await database.execute(
        "INSERT INTO watermarks (epoch, site, edge, seq, advanced) VALUES ($1, 'hall', 'e1', 5, now())", EPOCH
    )
    place = StreamPosition(datetime.now(UTC), 5)
    await documents.write({Origin("hall", "e1")}, place)
    assert (await document_of(nats_client)).epochs == {EPOCH: 5}
    newer = Watermark(2, "", 9, {EPOCH: 9})
    await bucket.put("hall.e1", encode_watermark(newer))
    await database.execute("UPDATE watermarks SET seq = 6")
    await documents.write({Origin("hall", "e1")}, place)
    assert await document_of(nats_client) == newer


async def test_delivery_d1_one_leads_at_a_time(
    nats_client: Client, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    settings = settings_for(postgres_dsn)
    await prepare(nats_client, settings)
    bucket = await nats_client.jetstream().key_value(names.KV_WATERMARK)

    async def mirrored() -> bool:
        return (await read_mirror(bucket)).identity is not None

    tries: set[datetime] = set()

    async def tried() -> bool:
        for row in await database.fetch(
            "SELECT query_start FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND query LIKE '%pg_try_advisory_lock%'"
        ):
            tries.add(row["query_start"])
        return len(tries) >= 3 or await mirrored()

    await database.fetchval("SELECT pg_advisory_lock($1)", leader.LOCK_KEY)
    second = asyncio.create_task(Leader(settings).session(nats_client))
    try:
        await until(tried)
        assert not await mirrored(), "it leads beside another one"
        await database.fetchval("SELECT pg_advisory_unlock($1)", leader.LOCK_KEY)
        await until(mirrored)
    finally:
        second.cancel()
        await asyncio.wait([second])


async def test_delivery_d1_a_frozen_leader_is_followed(
    nats_client: Client, postgres_dsn: str, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there, and says nothing for hours: the database ends its session, and with that its lock."""
    monkeypatch.setattr(leader, "IDLE_MS_MAX", 500)
    settings = settings_for(postgres_dsn, leader_interval_ms=HOURS_MS)
    await prepare(nats_client, settings)

    async def holder() -> int | None:
        found: int | None = await database.fetchval(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND "
            "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        return found

    frozen = asyncio.create_task(Leader(settings).session(nats_client))
    try:
        await until(holder)

        async def free() -> bool:
            return await holder() is None

        await until(free, what="the lock of the frozen leader is free")
    finally:
        frozen.cancel()
        await asyncio.wait([frozen])


async def test_delivery_d3_a_mirror_that_was_not_pushed_is_read(
    nats_client: Client, postgres_dsn: str, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is pushed may be lost: before an acknowledgement the mirror is read again, every few seconds."""
    monkeypatch.setattr(identity_watch, "LOOK_S", 1e-9)
    await prepare(nats_client, settings_for(postgres_dsn))
    bucket = await nats_client.jetstream().key_value(names.KV_WATERMARK)
    await Generation(database, nats_client.jetstream(), bucket).settle()
    watch = IdentityWatch(nats_client)
    await watch.open()
    identity = await watch.admit(database)
    for subscription in list(nats_client._subs.values()):
        if subscription.subject.endswith(names.KV_DATABASE_KEY):
            await subscription.unsubscribe()
    await watch.may_acknowledge(identity)
    later = msgspec.structs.replace(identity, generation=2)
    await bucket.put(names.KV_DATABASE_KEY, msgspec.json.encode(later))
    with pytest.raises(NotConnectedError, match="generation 2 of the database has begun"):
        await watch.may_acknowledge(identity)


async def test_delivery_d3_a_generation_counts_once_it_is_announced(
    nats_client: Client, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """Others may still commit to the old database and acknowledge it: what comes until then is read again."""
    await prepare(nats_client, settings_for(postgres_dsn))
    bucket = await nats_client.jetstream().key_value(names.KV_WATERMARK)
    generation = Generation(database, nats_client.jetstream(), bucket)
    await generation.settle()
    watch = IdentityWatch(nats_client)
    await watch.open()
    await watch.admit(database)
    await database.execute("UPDATE delivery SET generation = 2")
    with pytest.raises(NotConnectedError, match="its new generation is not announced yet"):
        await watch.admit(database)


@pytest.mark.parametrize("way", ["check", "record"])
async def test_delivery_d3_a_leader_whose_connection_leads_elsewhere_steps_down(
    nats_client: Client, postgres_dsn: str, database: asyncpg.Connection, way: str
) -> None:
    """A proxy in between may connect the same session to another server."""
    await prepare(nats_client, settings_for(postgres_dsn))
    js = nats_client.jetstream()
    bucket = await js.key_value(names.KV_WATERMARK)
    generation = Generation(database, js, bucket)
    await generation.settle()
    ours = await identity_of(database)
    generation._ours = msgspec.structs.replace(ours, server="7000000000000000001/00000001/16384")
    with pytest.raises(OutageError, match="leads to another server than it did"):
        await (generation.check() if way == "check" else generation.record(StreamPosition(datetime.now(UTC), 0)))


async def test_delivery_d3_a_leader_sees_that_its_database_was_exchanged(
    nats_client: Client, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """Before it writes the floor of the one into the other."""
    await prepare(nats_client, settings_for(postgres_dsn))
    js = nats_client.jetstream()
    generation = Generation(database, js, await js.key_value(names.KV_WATERMARK))
    await generation.settle()
    created, _ = await stream_state(js)
    await generation.record(StreamPosition(created, 3))
    await generation.record(StreamPosition(created, 4))
    await database.execute("UPDATE delivery SET counter = counter - 1, committed_floor = 3")
    with pytest.raises(OutageError, match="the database regressed"):
        await generation.check()
    with pytest.raises(OutageError, match="the database regressed"):
        await generation.record(StreamPosition(created, 5))
    assert await database.fetchval("SELECT committed_floor FROM delivery") == 3


async def test_delivery_d3_the_mirror_comes_before_what_edges_are_told(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edge frees what it is told of: a database that lacks it must be known to by then."""
    settings = settings_for(postgres_dsn)
    await prepare(nats_client, settings)
    bucket = await nats_client.jetstream().key_value(names.KV_WATERMARK)
    write, mirrored = WatermarkDocuments.write, []

    async def noted(self: WatermarkDocuments, edges: set[Origin], place: StreamPosition) -> None:
        if edges:
            identity = (await read_mirror(bucket)).identity
            assert identity is not None
            mirrored.append((identity.counter, identity.floor, place.floor))
        await write(self, edges, place)

    monkeypatch.setattr(WatermarkDocuments, "write", noted)
    async with running_ingest(nats_url, settings, leader=False):
        connection = await connect(postgres_dsn)
        async with leading(settings, connection, nats_client) as rounds:
            for seq in range(1, 5):
                await publish_batch(nats_client, seq, [frame(seq)])
                await until(lambda: drained(nats_client))
                await rounds.next(0.0)
        connection.terminate()
    assert len(mirrored) >= 4
    counters = [counter for counter, _, _ in mirrored]
    assert counters == sorted(set(counters)), "each change has a counter of its own"
    assert all(floor == reported for _, floor, reported in mirrored)


async def test_delivery_d3_no_generation_begins_before_a_restore_is_complete(
    nats_client: Client, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """pg_restore adds keys last: rows that came before would keep it from that."""
    await prepare(nats_client, settings_for(postgres_dsn))
    js = nats_client.jetstream()
    bucket = await js.key_value(names.KV_WATERMARK)
    generation = Generation(database, js, bucket)
    await generation.settle()
    await generation.record(StreamPosition((await stream_state(js))[0], 0))
    await database.execute("UPDATE delivery SET counter = 0")
    key = await database.fetchval(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'watermarks'::regclass AND contype = 'p'"
    )
    await database.execute("ALTER TABLE watermarks DROP CONSTRAINT watermarks_pkey")
    try:
        with pytest.raises(NotConnectedError, match=r"a backup is being restored .*no primary key yet: watermarks"):
            await Generation(database, js, bucket).settle()
        assert await database.fetchval("SELECT generation FROM delivery") == 1
    finally:
        await database.execute(f"ALTER TABLE watermarks ADD CONSTRAINT watermarks_pkey {key}")
    row = await database.fetchrow("DELETE FROM delivery RETURNING *")
    assert row is not None
    with pytest.raises(NotConnectedError, match="a backup is being restored"):
        await Generation(database, js, bucket).settle()
    await database.execute("INSERT INTO delivery DEFAULT VALUES")
    await Generation(database, js, bucket).settle()
    assert await database.fetchval("SELECT generation FROM delivery") == 2


async def test_delivery_d3_no_generation_begins_in_an_exchanged_database(
    nats_client: Client, postgres_dsn: str, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Restored again while its leader was looking at what the last restore had left."""
    await prepare(nats_client, settings_for(postgres_dsn))
    js = nats_client.jetstream()
    generation = Generation(database, js, await js.key_value(names.KV_WATERMARK))
    await generation.settle()
    for _ in range(3):
        await generation.record(StreamPosition((await stream_state(js))[0], 0))
    await database.execute("UPDATE delivery SET counter = 1")
    complete = check_complete

    async def exchanged(connection: asyncpg.Connection) -> None:
        await complete(connection)
        await connection.execute("UPDATE delivery SET counter = 0")

    monkeypatch.setattr(generation_module, "check_complete", exchanged)
    with pytest.raises(OutageError, match="exchanged while a generation began"):
        await generation.settle()
    assert await database.fetchval("SELECT generation FROM delivery") == 1


async def test_delivery_d7_a_copy_of_an_adopted_database_is_not_adopted(
    nats_client: Client, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """What was adopted is named: a dump that was taken before it led carries that along."""
    await prepare(nats_client, settings_for(postgres_dsn))
    js = nats_client.jetstream()
    bucket = await js.key_value(names.KV_WATERMARK)
    ours = await identity_of(database)
    another = "7000000000000000001/00000001/16384"
    await bucket.put(names.KV_DATABASE_KEY, msgspec.json.encode(msgspec.structs.replace(ours, server=another)))
    await database.execute("UPDATE delivery SET adopted = '7000000000000000002/00000001/16384'")
    with pytest.raises(ForeignError, match="it is of another cluster"):
        await Generation(database, js, bucket).settle()
    await adopt(database)
    await Generation(database, js, bucket).settle()
    assert await database.fetchval("SELECT generation FROM delivery") == 2
