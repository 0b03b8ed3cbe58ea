"""Rule D3 on real servers: a database that goes back acknowledges nothing until the stream is read again."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from nats.aio.client import Client
from nats.js.errors import KeyNotFoundError

from cncmon_core import names
from cncmon_core.watermark import Watermark, decode_watermark, encode_watermark
from cncmon_ingest import metrics
from cncmon_ingest.adoption import adopt, adoption
from cncmon_ingest.database_identity import DatabaseIdentity, behind
from cncmon_ingest.decode import Decoded
from cncmon_ingest.errors import ForeignError
from cncmon_ingest.generation import Generation
from cncmon_ingest.identity_watch import IdentityWatch
from cncmon_ingest.reconcile import reconcile
from cncmon_ingest.worker import Worker
from testkit.ingest import (
    EPOCH,
    drained,
    frame,
    prepare,
    publish_batch,
    publish_plain,
    running_ingest,
    settings_for,
    until,
)
from testkit.servers import Postgres, running_replica

SETTINGS: dict[str, Any] = {"ack_wait_ms": 1000, "sweep_interval_ms": 100, "hold_retry_ms_max": 200}


async def state_of(dsn: str) -> dict[str, Any]:
    """Return what the database has: samples, distinct samples, generation, whether the stream is read again."""
    connection = await asyncpg.connect(dsn, timeout=5)
    try:
        row = await connection.fetchrow(
            "SELECT (SELECT count(*) FROM sensor_data) AS samples, "
            "(SELECT count(DISTINCT active_program_line) FROM sensor_data) AS lines, "
            "(SELECT seq FROM watermarks WHERE epoch = $1) AS watermark, generation, "
            "reread_from IS NOT NULL AND reread_ended IS NULL AS rereading, reread_from, committed_floor FROM delivery",
            EPOCH,
        )
    finally:
        await connection.close()
    assert row is not None
    return dict(row)


async def is_at(dsn: str, **wanted: Any) -> bool:
    try:
        found = await state_of(dsn)
    except (OSError, asyncpg.PostgresError):
        return False
    return all(found[name] == value for name, value in wanted.items())


def heartbeat(*epochs: dict[str, Any]) -> bytes:
    now = datetime.now(UTC).isoformat()
    return json.dumps({"boot_id": "boot-1", "time": now, "epochs": list(epochs)}).encode()


async def publish(client: Client, seqs: range) -> None:
    for seq in seqs:
        parts = [frame(seq * 10 + number) for number in range(10)]
        await publish_batch(client, seq, parts, base=(seq - 1) * 10)


async def told(client: Client) -> Watermark:
    entry = await (await client.jetstream().key_value(names.KV_WATERMARK)).get("hall.e1")
    return decode_watermark(entry.value or b"")


async def is_told(client: Client, generation: int) -> bool:
    try:
        return (await told(client)).generation == generation
    except KeyNotFoundError:
        return False


async def mirrored(client: Client) -> dict[str, Any]:
    entry = await (await client.jetstream().key_value(names.KV_WATERMARK)).get(names.KV_DATABASE_KEY)
    found: dict[str, Any] = json.loads(entry.value or b"{}")
    return found


async def test_delivery_d3_a_replica_that_lacks_the_last_commits_takes_over(
    nats_client: Client, nats_url: str, migrated: Postgres
) -> None:
    """FAULT 34: nobody does anything, and everything is there once."""
    async with running_replica(migrated) as replica:
        both = f"127.0.0.1:{migrated.port},127.0.0.1:{replica.port}"
        dsn = migrated.dsn.replace(f"127.0.0.1:{migrated.port}", both) + "?target_session_attrs=read-write"
        settings = settings_for(dsn, **SETTINGS)
        await prepare(nats_client, settings)
        async with running_ingest(nats_url, settings, workers=2):
            await publish(nats_client, range(1, 21))
            await publish_plain(nats_client, b"".join([len(part).to_bytes(4, "big") + part for part in [frame(7000)]]))
            await until(lambda: is_at(migrated.dsn, samples=201, watermark=20))
            await asyncio.sleep(0.3)
            await replica.caught_up(migrated)
            await replica.cut_off()
            await publish(nats_client, range(21, 41))
            await publish_plain(nats_client, b"".join([len(part).to_bytes(4, "big") + part for part in [frame(7001)]]))
            await until(lambda: is_at(migrated.dsn, samples=402, watermark=40))
            await until(lambda: drained(nats_client))
            await asyncio.sleep(0.3)
            assert (await told(nats_client)).epochs[EPOCH] == 40
            migrated.kill()
            await replica.promote()
            assert (await state_of(replica.dsn))["samples"] == 201, "it lacks what came last"
            await publish(nats_client, range(41, 51))
            await until(lambda: is_at(replica.dsn, samples=502, lines=502, watermark=50, generation=2, rereading=False))

            async def is_reported() -> bool:
                document = await told(nats_client)
                return (document.generation, document.epochs[EPOCH]) == (2, 50)

            await until(is_reported)
            assert (await mirrored(nats_client))["generation"] == 2
            consumers = await nats_client.jetstream().consumers_info(names.STREAM)
            assert [info.name for info in consumers] == [names.DURABLE]
            migrated.stop()


async def test_delivery_d3_an_older_disk_is_restored(nats_client: Client, nats_url: str, migrated: Postgres) -> None:
    """Same server, same timeline: the shorter log tells."""
    settings = settings_for(migrated.dsn, **SETTINGS)
    await prepare(nats_client, settings)
    async with running_ingest(nats_url, settings):
        await publish(nats_client, range(1, 11))
        await until(lambda: is_at(migrated.dsn, samples=100, watermark=10))
        backup = await asyncio.to_thread(migrated.back_up)
        await publish(nats_client, range(11, 31))
        await until(lambda: is_at(migrated.dsn, samples=300, watermark=30))
        await until(lambda: drained(nats_client))
        await asyncio.sleep(1.2)
        migrated.kill()
        await asyncio.to_thread(migrated.restore, backup)
        await until(lambda: is_at(migrated.dsn, samples=300, lines=300, watermark=30, generation=2, rereading=False))


async def test_delivery_d3_what_nobody_has_any_more_is_a_gap(
    nats_client: Client, nats_url: str, migrated: Postgres
) -> None:
    """The stream was purged of what the restored database lacks; the edge has freed it, and said so."""
    settings = settings_for(migrated.dsn, **SETTINGS, edges_interval_ms=50)
    await prepare(nats_client, settings)
    js = nats_client.jetstream()
    async with running_ingest(nats_url, settings):
        await publish(nats_client, range(1, 11))
        await until(lambda: is_at(migrated.dsn, samples=100, watermark=10))
        backup = await asyncio.to_thread(migrated.back_up)
        await publish(nats_client, range(11, 31))
        await until(lambda: is_at(migrated.dsn, samples=300, watermark=30))
        await until(lambda: drained(nats_client))
        await asyncio.sleep(1.2)
        migrated.kill()
        await js.purge_stream(names.STREAM, seq=26)
        await asyncio.to_thread(migrated.restore, backup)
        status = await js.key_value(names.KV_STATUS)
        epoch = {"epoch": EPOCH, "first_seq": 26, "last_seq": 30, "freed_seq": 25, "acked_seq": 30}

        async def balanced() -> bool:
            await status.put("hall.e1", heartbeat(epoch | {"accepted_samples": 300}))
            return await is_at(migrated.dsn, samples=150, lines=150, watermark=30, generation=2, rereading=False)

        # 11 to 25 are gone for good; 26 to 30 are in the stream.
        await until(balanced)
    connection = await asyncpg.connect(migrated.dsn)
    gap = await connection.fetchrow("SELECT seq_from, seq_to, samples, reason, state FROM gaps")
    assert gap is not None
    assert tuple(gap) == (11, 25, 150, "database_went_back", "passed")
    books = await reconcile(connection, timedelta(seconds=900))
    assert (books.balanced, books.stored_samples, books.gap_samples) == (True, 150, 150)
    await connection.close()


async def test_delivery_d3_epochs_that_only_the_watermarks_knew_of_are_looked_after(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """An empty database in the place of the old one, and an edge that has drained and forgotten its epoch."""
    settings = settings_for(postgres_dsn, **SETTINGS, edges_interval_ms=50, abandon_grace_s=0.2, adopt_database=True)
    await prepare(nats_client, settings)
    bucket = await nats_client.jetstream().key_value(names.KV_WATERMARK)
    await bucket.put("hall.e1", encode_watermark(Watermark(3, "", 77, {EPOCH: 40})))
    await bucket.put(names.KV_DATABASE_KEY, json.dumps(life(generation=3)).encode())
    status = await nats_client.jetstream().key_value(names.KV_STATUS)
    async with running_ingest(nats_url, settings):

        async def abandoned() -> bool:
            await status.put("hall.e1", heartbeat())
            return bool(await database.fetchval("SELECT count(*) FROM gaps"))

        await until(abandoned)
    row = await database.fetchrow("SELECT epoch, seq_from, seq_to, reason, state FROM gaps")
    assert row is not None
    assert tuple(row) == (EPOCH, 1, 40, "epoch_abandoned", "abandoned")
    assert await database.fetchval("SELECT generation FROM delivery") == 4


ANOTHER = "7000000000000000001/00000001/16384"


def life(**changes: Any) -> dict[str, Any]:
    return {"generation": 1, "server": ANOTHER, "stream_created": "", "floor": 0, "lsn": 0} | changes


async def test_delivery_d3_nothing_is_acknowledged_for_a_past_life(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """A worker that is still connected to the old primary neither commits there nor acknowledges."""
    settings = settings_for(postgres_dsn, **SETTINGS)
    await prepare(nats_client, settings)
    js = nats_client.jetstream()
    bucket = await js.key_value(names.KV_WATERMARK)
    async with running_ingest(nats_url, settings, leader=False):
        await publish(nats_client, range(1, 3))
        await until(lambda: drained(nats_client))
        await bucket.put(names.KV_DATABASE_KEY, json.dumps(life(generation=2)).encode())
        holds = metrics.HOLDS._value.get()
        await publish(nats_client, range(3, 5))

        async def holding() -> bool:
            return bool(metrics.HOLDS._value.get() > holds)

        await until(holding)
        # Longer than ack_wait: it is not given back either.
        await asyncio.sleep(2)
        assert not await drained(nats_client)
        info = await js.consumer_info(names.STREAM, names.DURABLE)
        assert info.ack_floor is not None
        assert info.ack_floor.stream_seq == 2
        assert await database.fetchval("SELECT count(*) FROM sensor_data") == 20
        # The leader comes, and does not take this database for the stream's before somebody adopts it.
        async with running_ingest(nats_url, settings):
            await until(lambda: is_refused(database))
            assert await is_at(postgres_dsn, generation=1, samples=20)
            await adopt(database)
            await until(lambda: is_at(postgres_dsn, generation=3, rereading=False))
            await until(lambda: drained(nats_client))
    assert await database.fetchval("SELECT count(*) FROM sensor_data") == 40
    assert await adoption(database) == (None, None)


async def test_delivery_d3_a_generation_that_begins_after_the_commit_is_seen_before_the_acknowledgement(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the transaction itself compares was true then: the backup may have been restored since."""
    settings = settings_for(postgres_dsn, **SETTINGS)
    await prepare(nats_client, settings)
    js = nats_client.jetstream()
    bucket = await js.key_value(names.KV_WATERMARK)
    commit = Worker._commit

    async def commit_before(self: Worker, decoded: Sequence[Decoded]) -> None:
        await commit(self, decoded)
        await bucket.put(names.KV_DATABASE_KEY, json.dumps(life(generation=2)).encode())
        watch = self._watch
        assert watch is not None
        await until(lambda: watch.mirror and watch.mirror.generation == 2)

    monkeypatch.setattr(Worker, "_commit", commit_before)
    holds = metrics.HOLDS._value.get()
    async with running_ingest(nats_url, settings, leader=False):
        await publish(nats_client, range(1, 3))

        async def held_or_acknowledged() -> bool:
            return metrics.HOLDS._value.get() > holds or await drained(nats_client)

        await until(held_or_acknowledged)
        assert await is_at(postgres_dsn, samples=20)
        info = await js.consumer_info(names.STREAM, names.DURABLE)
    assert info.ack_floor is not None
    assert info.ack_floor.stream_seq == 0, "acknowledged for a past life"


async def is_refused(database: asyncpg.Connection) -> bool:
    return (await adoption(database)).refused is not None


async def test_delivery_d3_the_stream_is_read_again_when_asked(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """Rows that somebody deleted by hand with their ledger come back; what is there is not doubled."""
    settings = settings_for(postgres_dsn, **SETTINGS)
    await prepare(nats_client, settings)
    async with running_ingest(nats_url, settings):
        await publish(nats_client, range(1, 21))
        await until(lambda: is_at(postgres_dsn, samples=200, watermark=20))
        await database.execute("DELETE FROM sensor_data WHERE active_program_line >= 100")
        await database.execute("UPDATE watermarks SET seq = 9, base = 90, batches_stored = 9, samples_stored = 90")
        command = [sys.executable, "-m", "cncmon_standalone.cli", "reconcile", "--reread", "--dsn", postgres_dsn]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert "20 stored, 0 dead, 0 in gaps" in done.stdout
        await until(lambda: is_at(postgres_dsn, samples=200, lines=200, watermark=20, generation=2, rereading=False))


async def test_delivery_d3_the_next_leader_goes_on_reading(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    settings = settings_for(postgres_dsn, **SETTINGS | {"ack_wait_ms": 3000})
    await prepare(nats_client, settings)
    await publish(nats_client, range(1, 31))
    await database.execute(
        "UPDATE delivery SET generation = 5, reread_from = 11, reread_to = 30, reread_begun = now(), "
        "committed_floor = 10, stream_created = $1",
        (await nats_client.jetstream().stream_info(names.STREAM)).created,
    )
    async with running_ingest(nats_url, settings):
        await until(lambda: is_at(postgres_dsn, samples=300, watermark=30, rereading=True))
        await until(lambda: is_told(nats_client, 5))
    async with running_ingest(nats_url, settings):
        await until(lambda: is_at(postgres_dsn, samples=300, rereading=False, generation=5))


@pytest.mark.parametrize(
    ("found", "was", "said"),
    [
        ({}, {}, None),
        ({"lsn": 9}, {"lsn": 8}, None),
        ({"floor": 8, "stream_created": "a"}, {"floor": 9, "stream_created": "a"}, None),
        ({"counter": 9}, {"counter": 9}, None),
        ({"counter": 9}, {"counter": 8}, None),
        ({"generation": 3, "counter": 1}, {"generation": 2, "counter": 5}, None),
        ({"counter": 8}, {"counter": 9}, "its counter is 8, and was 9"),
        ({"server": "7/00000002/16384"}, {"server": "7/00000001/16384"}, "another timeline"),
        ({"generation": 1}, {"generation": 2}, "generation 1, and 2 has begun"),
        ({"lsn": 8}, {"lsn": 9}, "1 bytes shorter"),
    ],
)
def test_delivery_d3_how_a_database_that_went_back_is_told(
    found: dict[str, Any], was: dict[str, Any], said: str | None
) -> None:
    why = behind(DatabaseIdentity(**life(**found)), DatabaseIdentity(**life(**was)))
    assert (said is None and why is None) or (said and why and said in why), why


def test_delivery_d3_without_a_mirror_nothing_is_known() -> None:
    assert behind(DatabaseIdentity(**life()), None) is None


async def test_delivery_d3_a_leader_of_a_past_life_steps_down(
    nats_client: Client, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    await prepare(nats_client, settings_for(postgres_dsn))
    js = nats_client.jetstream()
    bucket = await js.key_value(names.KV_WATERMARK)
    generation = Generation(database, js, bucket)
    await generation.settle()
    await bucket.put(names.KV_DATABASE_KEY, json.dumps(life(generation=2)).encode())
    watch = IdentityWatch(nats_client)
    await watch.open()
    with pytest.raises(ForeignError, match=r"of another cluster: system identifier .* run: cncmon db adopt"):
        await watch.admit(database)
    with pytest.raises(ForeignError, match="another database leads: it is of another cluster"):
        await generation.check()
    # It was told so for good: what it was is the past, whatever the mirror says later.
    await bucket.delete(names.KV_DATABASE_KEY)
    with pytest.raises(ForeignError, match="another database leads"):
        await Generation(database, js, bucket).settle()
