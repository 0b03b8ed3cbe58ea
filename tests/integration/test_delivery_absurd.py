"""Rule D8: numbers from NATS that can't be true stop nobody, free nothing and purge nothing."""

import json
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec
import pytest
from nats.aio.client import Client
from nats.js import api
from nats.js.kv import KeyValue

from cncmon_core import names
from cncmon_core.watermark import Watermark, encode_watermark
from cncmon_ingest import metrics
from cncmon_ingest.adoption import adoption, refuse
from cncmon_ingest.connection import connect
from cncmon_ingest.errors import ForeignError, OutageError
from cncmon_ingest.generation import Generation
from cncmon_ingest.identity_mirror import read_mirror
from cncmon_ingest.leader import leading
from cncmon_ingest.stream_position import StreamPosition, committed_position, stream_state
from testkit.ingest import EPOCH, drained, frame, prepare, publish_batch, running_ingest, settings_for, until

SETTINGS: dict[str, Any] = {"ack_wait_ms": 1000, "sweep_interval_ms": 100, "hold_retry_ms_max": 200}


async def bucket_of(client: Client) -> KeyValue:
    return await client.jetstream().key_value(names.KV_WATERMARK)


async def settled(client: Client, connection: asyncpg.Connection) -> Generation:
    generation = Generation(connection, client.jetstream(), await bucket_of(client))
    await generation.settle()
    return generation


def absurd_mirrors(created: datetime) -> dict[str, dict[str, Any] | bytes]:
    return {
        "generation": {"generation": 2**63 - 1},
        "generation within a bigint": {"generation": 10**9},
        "generation 0": {"generation": 0},
        "counter": {"counter": 1 << 50},
        "log": {"lsn": 1 << 60},
        "floor": {"floor": 10**6, "stream_created": created.astimezone(UTC).isoformat()},
        "floor below 0": {"floor": -1},
        "server": {"server": "promoted"},
        "time": {"stream_created": "yesterday"},
        "no JSON": b"\xff{",
        "too deep": b"[" * 100_000,
        "nothing": b"",
    }


@pytest.mark.parametrize("which", absurd_mirrors(datetime.now(UTC)))
async def test_delivery_d8_an_absurd_mirror_is_replaced_and_all_is_read_again(
    nats_client: Client, postgres_dsn: str, database: asyncpg.Connection, which: str
) -> None:
    await prepare(nats_client, settings_for(postgres_dsn))
    bucket, js = await bucket_of(nats_client), nats_client.jetstream()
    created, _ = await stream_state(js)
    await publish_batch(nats_client, 1, [frame(1)])
    generation = await settled(nats_client, database)
    await generation.record(StreamPosition(created, 1))
    true = (await read_mirror(bucket)).identity
    absurd = absurd_mirrors(created)[which]
    if isinstance(absurd, dict):
        absurd = json.dumps(msgspec.to_builtins(true) | absurd).encode()
    await bucket.put(names.KV_DATABASE_KEY, absurd)
    counted = metrics.MIRROR_ABSURD._value.get()
    # The leader that is there steps down, the next one settles it.
    with pytest.raises(OutageError, match="the mirror of the database is absurd"):
        await generation.check()
    await settled(nats_client, database)
    row = await database.fetchrow("SELECT generation, committed_floor, reread_from, reread_to FROM delivery")
    assert row is not None
    assert tuple(row) == (2, 0, 1, 1)
    assert metrics.MIRROR_ABSURD._value.get() == counted + 1
    found = (await read_mirror(bucket)).identity
    assert found is not None
    assert (found.generation, found.floor) == (2, 0)
    await settled(nats_client, database)
    assert await database.fetchval("SELECT generation FROM delivery") == 2


async def test_delivery_d8_ingest_goes_on_after_an_absurd_mirror(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """Written while all is quiet, and again while it works: each time all is stored, and acknowledged."""
    settings = settings_for(postgres_dsn, **SETTINGS)
    await prepare(nats_client, settings)
    bucket = await bucket_of(nats_client)

    async def stored(samples: int, generation: int) -> bool:
        row = await database.fetchrow(
            "SELECT (SELECT count(*) FROM sensor_data), (SELECT count(DISTINCT active_program_line) FROM sensor_data), "
            "generation, reread_from IS NULL OR reread_ended IS NOT NULL FROM delivery"
        )
        return row is not None and tuple(row) == (samples, samples, generation, True) and await drained(nats_client)

    async with running_ingest(nats_url, settings, workers=2):
        for seq in range(1, 6):
            await publish_batch(nats_client, seq, [frame(seq)])
        await until(lambda: stored(5, 1))
        for turn in range(2):
            true = (await read_mirror(bucket)).identity
            absurd = msgspec.to_builtins(true) | {"generation": 2**63 - 1}
            if turn:
                await publish_batch(nats_client, 6, [frame(6)])
            await bucket.put(names.KV_DATABASE_KEY, json.dumps(absurd).encode())
            await until(lambda turn=turn: stored(5 + turn, 2 + turn))  # type: ignore[misc] # mypy can't infer a lambda with a default


async def test_delivery_d8_an_absurd_mirror_lets_no_foreign_database_lead(
    nats_client: Client, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    await prepare(nats_client, settings_for(postgres_dsn))
    await refuse(database, "it is of another cluster")
    await (await bucket_of(nats_client)).put(names.KV_DATABASE_KEY, b"{")
    with pytest.raises(ForeignError, match="it is of another cluster"):
        await settled(nats_client, database)
    assert (await adoption(database)).refused == "it is of another cluster"
    assert await database.fetchval("SELECT generation FROM delivery") == 1


async def test_delivery_d8_watermark_documents_count_within_their_bounds(
    nats_client: Client, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """A generation begins above what edges were told; what they can't have been told is skipped."""
    await prepare(nats_client, settings_for(postgres_dsn))
    bucket = await bucket_of(nats_client)
    await settled(nats_client, database)
    for edge, document in {
        "e1": Watermark(7, "", 0, {EPOCH: 40}),
        "e2": Watermark(2**63 - 1, "", 0, {5: 1}),
        "e3": Watermark(1, "", 0, {6: 2**63 - 1}),
        "e4": Watermark(1, "", 0, {-7: 1}),
        "e5": Watermark(1, "", 0, {2**64: 1}),
        "e6": Watermark(1, "", 0, {8: -1}),
    }.items():
        await bucket.put(f"hall.{edge}", encode_watermark(document))
    await bucket.put("hall.e7", b"{")
    await database.execute("UPDATE delivery SET reread_asked = true")
    counted = metrics.DOCUMENTS_ABSURD._value.get()
    generation = await settled(nats_client, database)
    assert await generation.begin_if_asked()
    assert await database.fetchval("SELECT generation FROM delivery") == 8
    assert metrics.DOCUMENTS_ABSURD._value.get() == counted + 5
    claimed = await database.fetch("SELECT epoch, last_seq FROM edge_epochs")
    assert [tuple(row) for row in claimed] == [(EPOCH, 40)]


async def test_delivery_d8_the_floor_of_a_consumer_ahead_of_its_stream_counts_as_0(
    nats_client: Client, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """The stream lost its tail: the same sequences are of other messages now, which nobody has committed."""
    settings = settings_for(postgres_dsn, stream_messages_max=1000, sweep_interval_ms=100)
    await prepare(nats_client, settings)
    js = nats_client.jetstream()
    await js.delete_consumer(names.STREAM, names.DURABLE)
    await js.add_consumer(
        names.STREAM,
        api.ConsumerConfig(
            durable_name=names.DURABLE,
            ack_policy=api.AckPolicy.EXPLICIT,
            deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=5000,
        ),
    )
    for number in range(750):
        await nats_client.publish("CNC_DATA.original", frame(number))
    await nats_client.flush()

    async def arrived() -> bool:
        return (await js.stream_info(names.STREAM)).state.messages == 750

    await until(arrived)
    info = await js.consumer_info(names.STREAM, names.DURABLE)
    assert info.ack_floor is not None
    assert info.ack_floor.stream_seq == 4999
    created, _ = await stream_state(js)
    assert await committed_position(js, created) == (created, 0)
    connection = await connect(postgres_dsn)
    async with leading(settings, connection, nats_client) as rounds:
        for number in range(3):
            await rounds.next(float(number))
    connection.terminate()
    assert (await js.stream_info(names.STREAM)).state.first_seq == 1, "purged what nobody has committed"
    assert await database.fetchval("SELECT committed_floor FROM delivery") == 0


async def test_delivery_d8_the_databases_own_floor_counts_up_to_the_streams_end(
    nats_client: Client, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """A floor above it is of a tail that the stream lost: a new generation reads from the beginning."""
    await prepare(nats_client, settings_for(postgres_dsn))
    js = nats_client.jetstream()
    for seq in (1, 2, 3):
        await publish_batch(nats_client, seq, [frame(seq)])
    created, _ = await stream_state(js)
    for floor, begins in ((2, 3), (9, 1)):
        await (await settled(nats_client, database)).record(StreamPosition(created, 1))
        # As after the restore of a backup.
        await database.execute("UPDATE delivery SET counter = counter - 1, committed_floor = $1", floor)
        await settled(nats_client, database)
        assert await database.fetchval("SELECT reread_from FROM delivery") == begins
