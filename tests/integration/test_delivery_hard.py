"""Sequences that once lost, doubled or blocked samples, or would have: each on real servers.

Long, because a fault found adds its sequence here, beside its like.
"""

import asyncio
import os
import random
import re
import shutil
import signal
import socket
import string
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from nats.aio.client import Client

from cncmon_agent import delivery as agent_delivery
from cncmon_core import frames, identity, names, nats_link
from cncmon_core.events import Event, encode_event
from cncmon_core.frames import join
from cncmon_core.identity import Identity
from cncmon_core.monitor import Health
from cncmon_core.sample import Sample
from cncmon_ingest import leader, store, stream_position, worker
from cncmon_ingest.advance import CANDIDATES, advance
from cncmon_ingest.connection import connect
from cncmon_ingest.decode import Decoded, Incoming, Limits, decode
from cncmon_ingest.errors import NotConnectedError
from cncmon_ingest.main import run_worker
from cncmon_ingest.migrate import migrate
from cncmon_ingest.store import Store
from testkit import agent as agents
from testkit import ingest
from testkit.acks import Acks
from testkit.ingest import drained, frame, publish_batch, publish_plain, replay_all, running_ingest, settings_for, until
from testkit.servers import Postgres, Server
from testkit.waiting import WAIT_S_MAX


async def count(database: asyncpg.Connection, table: str = "sensor_data") -> int:
    number: int = await database.fetchval(f"SELECT count(*) FROM {table}")
    return number


async def connected(server: Server) -> Client:
    client = Client()
    await client.connect(f"nats://127.0.0.1:{server.port}", allow_reconnect=False)
    return client


def raw_publish(port: int, subject: bytes, payload: bytes, headers: dict[str, str] | None = None) -> None:
    """Publish with bytes that no client library would send."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.recv(4096)
        lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {"X": "y"}).items())
        head = f"NATS/1.0\r\n{lines}\r\n".encode()
        sizes = f"{len(head)} {len(head) + len(payload)}".encode()
        connection.sendall(b'CONNECT {"verbose":false,"headers":true}\r\nHPUB ' + subject + b" " + sizes + b"\r\n")
        connection.sendall(head + payload + b"\r\nPING\r\n")
        time.sleep(0.2)
        assert b"-ERR" not in connection.recv(4096)


@contextmanager
def counted_writes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count the transactions of all workers."""
    sizes: list[int] = []
    write = Store.write

    async def counting(self: Store, messages: Sequence[Decoded]) -> store.Outcome:
        sizes.append(len(messages))
        return await write(self, messages)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", counting)
        yield sizes


# --- nothing acknowledged is lost --------------------------------------------------------------------------------


async def test_delivery_b3_a_sequence_given_out_twice_is_two_messages(
    own_nats: Server, tmp_path: Path, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """NATS comes back without its tail, with the same creation time: the next messages get the lost ones' sequences."""
    url = f"nats://127.0.0.1:{own_nats.port}"
    settings = settings_for(postgres_dsn)
    client = await connected(own_nats)
    await ingest.prepare(client, settings)
    for number in range(5):
        await publish_plain(client, join([frame(number)]))
    await client.close()
    own_nats.stop()
    shutil.copytree(tmp_path / "nats", tmp_path / "backup")
    await asyncio.to_thread(own_nats.start)
    client = await connected(own_nats)
    for number in range(5, 10):
        await publish_plain(client, join([frame(number)]))
    async with running_ingest(url, settings):
        await until(lambda: drained(client))
    await client.close()
    own_nats.kill()
    shutil.rmtree(tmp_path / "nats")
    shutil.copytree(tmp_path / "backup", tmp_path / "nats")
    await asyncio.to_thread(own_nats.start)
    client = await connected(own_nats)
    assert [await publish_plain(client, join([frame(number)])) for number in range(100, 105)] == [6, 7, 8, 9, 10]
    async with running_ingest(url, settings):
        await until(lambda: drained(client))
    await client.close()
    assert await database.fetchval("SELECT count(*) FROM sensor_data WHERE active_program_line >= 100") == 5
    assert await count(database) == 15


async def test_delivery_b8_a_frozen_database_costs_no_delivery(
    own_postgres: Postgres, nats_client: Client, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is there and answers nothing, for longer than ack_wait and than all deliveries together."""
    monkeypatch.setattr(store, "TRANSACTION_S_MAX", 3.0)
    connection = await asyncpg.connect(own_postgres.dsn)
    await migrate(connection)
    await connection.close()
    settings = settings_for(own_postgres.dsn, ack_wait_ms=4500)
    await ingest.prepare(nats_client, settings)
    acks = await Acks.of(nats_client)
    async with running_ingest(nats_url, settings):
        await publish_plain(nats_client, join([frame(0)]))
        await until(lambda: drained(nats_client))
        own_postgres.pause()
        try:
            for number in range(1, 6):
                await publish_plain(nats_client, join([frame(number)]))
            # Five messages, kept every third of ack_wait, for twice as long as it.
            await acks.more("+WPI", 5 * 6)
            info = await nats_client.jetstream().consumer_info(names.STREAM, names.DURABLE)
            assert (info.num_redelivered, acks.count("-NAK")) == (0, 0)
        finally:
            own_postgres.resume()
        await until(lambda: drained(nats_client))
    connection = await asyncpg.connect(own_postgres.dsn)
    assert await count(connection) == 6
    await connection.close()


async def test_delivery_b8_a_late_write_of_the_leader_is_no_sign_that_others_commit(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(postgres_dsn, ack_wait_ms=1500, hold_retry_ms_max=300)
    await ingest.prepare(nats_client, settings)
    acks = await Acks.of(nats_client)
    away = False
    write = Store.write

    async def writing(self: Store, messages: Sequence[Decoded]) -> store.Outcome:
        if away:
            raise NotConnectedError("away")
        return await write(self, messages)

    monkeypatch.setattr(Store, "write", writing)
    async with running_ingest(nats_url, settings, workers=4, leader=False):
        await publish_plain(nats_client, join([frame(0)]))
        await until(lambda: drained(nats_client))
        away = True
        for number in range(1, 21):
            await publish_plain(nats_client, join([frame(number)]))
        await asyncio.sleep(0.3)
        await (await nats_client.jetstream().key_value(names.KV_WATERMARK)).put("hall.e1", b"late")
        # Twenty messages, kept every third of ack_wait: long enough for several looks at what others do.
        await acks.more("+WPI", 20 * 8)
        assert acks.count("-NAK") == 0
        away = False
        await until(lambda: drained(nats_client))
    assert await count(database) == 21


async def test_delivery_b8_portions_one_after_another_cost_no_delivery(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is shorter than a third of ack_wait, all together are longer than it."""
    monkeypatch.setattr(worker, "PORTION_BYTES_MAX", 1)
    write = Store.write

    async def slowly(self: Store, messages: Sequence[Decoded]) -> store.Outcome:
        await asyncio.sleep(0.2)
        return await write(self, messages)

    monkeypatch.setattr(Store, "write", slowly)
    settings = settings_for(postgres_dsn, ack_wait_ms=1200)
    await ingest.prepare(nats_client, settings)
    for number in range(20):
        await publish_batch(nats_client, number + 1, [frame(number)])
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
        info = await nats_client.jetstream().consumer_info(names.STREAM, names.DURABLE)
        assert info.delivered is not None
        assert info.delivered.consumer_seq == 20
    assert await count(database) == 20


async def test_delivery_b8_one_row_that_fails_strangely_takes_no_neighbour_along(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """A damaged page, say: no data error, no outage. Workers must not pass the messages round until none is left."""
    await database.execute(
        """
        CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.active_program_line = 0 THEN RAISE EXCEPTION 'no' USING ERRCODE = 'XX001'; END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER no BEFORE INSERT ON sensor_data FOR EACH ROW EXECUTE FUNCTION no()
        """
    )
    settings = settings_for(postgres_dsn, ack_wait_ms=1200, hold_retry_ms_max=200, fetch_messages=50)
    await ingest.prepare(nats_client, settings)
    acks = await Acks.of(nats_client)
    for number in range(20):
        await publish_batch(nats_client, number + 1, [frame(number)])
    seq = 21
    async with running_ingest(nats_url, settings, workers=2):
        for _ in range(60):
            await publish_batch(nats_client, seq, [frame(seq)])
            seq += 1
            await asyncio.sleep(0.1)
        assert await count(database) >= 40, "others go on"
        assert acks.count("-NAK") == 0, "the fault goes along with the messages"
        await database.execute("DROP TRIGGER no ON sensor_data")
        await until(lambda: drained(nats_client))
    assert await count(database) == seq - 1


async def test_delivery_a5_a_document_never_says_that_the_consumers_passed_what_is_committed(
    nats_client: Client,
    nats_url: str,
    postgres_dsn: str,
    database: asyncpg.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a network between leader and NATS, a floor read after the watermarks would make agents send again."""
    monkeypatch.setattr(agent_delivery, "MARGIN_S", 0.0)
    place = stream_position.committed_position

    async def slowly(js: Any, created: datetime) -> Any:
        await asyncio.sleep(0.02)
        found = await place(js, created)
        await asyncio.sleep(0.02)
        return found

    monkeypatch.setattr(leader, "committed_position", slowly)
    settings = settings_for(postgres_dsn, leader_interval_ms=50, fetch_messages=20)
    await ingest.prepare(nats_client, settings)
    async with agents.running_agent(nats_url, agents.settings_for(tmp_path, duplicate_window_s=1)) as agent:
        for number in range(3000):
            agent.batcher.add(Sample("m", datetime.now(UTC), 1.0, 2.0))
            agent.batcher.cut()
            if number % 10 == 0:
                await asyncio.sleep(0.001)

        async def published() -> bool:
            return not agent.deliveries.unacknowledged()

        async def freed() -> bool:
            return agent.storage.buffer.stats().batches == 0

        await until(published)
        await asyncio.sleep(1.5)
        async with running_ingest(nats_url, settings):
            await until(freed)
        assert agent.deliveries.resent == 0
    assert await count(database) == 3000


# --- one message never blocks or ends the service ----------------------------------------------------------------

NESTED = b'{"machine_id":"a","timestamp":"2026-01-01T00:00:00Z","temperature":1,"spindle_speed":1,"extras":{"x":%s}}'
LONG = "".join(random.Random(1).choices(string.ascii_letters, k=3500))

HARD_SUBJECTS = {
    "NUL in the site": b"CNC_DATA.a\0b.c",
    "not UTF-8": b"CNC_DATA.\xff\xfe.e1",
    "a site of 3,500 characters": b"CNC_DATA." + LONG.encode() + b".e1",
    "what can be no key of a bucket": "CNC_DATA.halle:süd.e1".encode(),
}


@pytest.mark.parametrize("identified", [True, False], ids=["batch", "plain"])
@pytest.mark.parametrize("subject", HARD_SUBJECTS.values(), ids=HARD_SUBJECTS)
async def test_any_subject_is_stored_and_blocks_nobody(
    nats_client: Client,
    nats_server: Server,
    nats_url: str,
    postgres_dsn: str,
    database: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    subject: bytes,
    identified: bool,
) -> None:
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)
    payload = join([frame(1)])
    headers = Identity(3, 1, 1, 0, identity.digest(payload), "samples").to_headers("a", "b", None)
    raw_publish(nats_server.port, subject, payload, headers if identified else None)
    await publish_batch(nats_client, 1, [frame(2)])
    before = nats_link.CONNECTS._value.get()
    with counted_writes(monkeypatch) as writes:
        async with running_ingest(nats_url, settings):
            await until(lambda: drained(nats_client))
            await asyncio.sleep(1)
    assert await count(database) == 2
    assert len(writes) < 10
    assert nats_link.CONNECTS._value.get() - before == 1, "one session, not a storm of them"


HARD_FRAMES = {
    "nested 500 deep around a NUL": (NESTED % (b"[" * 500 + b'"\\u0000"' + b"]" * 500), 0),
    "nested 900 deep": (NESTED % (b"[" * 900 + b"1" + b"]" * 900), 1),
}


@pytest.mark.parametrize(("bad", "stored"), HARD_FRAMES.values(), ids=HARD_FRAMES)
async def test_deep_nesting_is_data_like_any_other(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, bad: bytes, stored: int
) -> None:
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)
    await publish_plain(nats_client, join([bad, frame(1)]))
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
    assert await count(database) == stored + 1
    assert await count(database, "dead_letters") == 1 - stored


async def test_a_dead_letter_that_the_database_refuses_is_a_hold_not_a_loop(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await database.execute("ALTER TABLE dead_letters ADD CHECK (octet_length(payload) < 10)")
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)
    await publish_plain(nats_client, b"rubbish rubbish rubbish")
    with counted_writes(monkeypatch) as writes:
        async with running_ingest(nats_url, settings) as (worker,):
            # While it is tried again nothing is held.
            await until(lambda: "refuses a dead letter" in (worker.check() or ""))
            await asyncio.sleep(2)
            await until(lambda: "refuses a dead letter" in (worker.check() or ""))
    assert 1 < len(writes) < 60


async def test_a_damaged_watermark_document_is_written_anew(
    nats_client: Client, nats_url: str, postgres_dsn: str
) -> None:
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)
    bucket = await nats_client.jetstream().key_value(names.KV_WATERMARK)
    await bucket.put("hall.e1", b"{}")
    await publish_batch(nats_client, 1, [frame(1)])

    async def written() -> bool:
        return b"epochs" in ((await bucket.get("hall.e1")).value or b"")

    async with running_ingest(nats_url, settings):
        await until(written)


async def test_a_message_larger_than_a_fetch_neither_spins_nor_blocks(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    settings = settings_for(postgres_dsn, fetch_bytes=1 << 20)
    await ingest.prepare(nats_client, settings)
    await nats_client.jetstream().publish("CNC_DATA.x", bytes((1 << 20) - 60))
    await publish_plain(nats_client, join([frame(2)]))
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
    assert await count(database) == 1


async def test_bombs_are_committed_in_portions(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """600 bytes on the wire may be 15 MiB: what is in memory at once is bounded all the same."""
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)
    data = frames.compress(join([bytes(1 << 20)] * 15))
    for _ in range(12):
        await nats_client.jetstream().publish("CNC_DATA.x", data, headers={identity.ENCODING: "zstd"})
    with counted_writes(monkeypatch) as writes:
        async with running_ingest(nats_url, settings):
            await until(lambda: drained(nats_client))
    assert sum(writes) == 12
    assert max(writes) <= 3
    assert await count(database, "dead_letters") == 12 * 15


# --- the leader --------------------------------------------------------------------------------------------------


async def test_delivery_d1_watermarks_advance_while_workers_are_busy(
    postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """Workers that always overlap must not keep the leader from its turn."""
    await database.execute("INSERT INTO watermarks (epoch, site, edge) VALUES (1, 'h', 'e')")
    await database.execute(
        "INSERT INTO ledger (epoch, seq, sha256, stored, dead, disposition) VALUES (1, 1, '\\x00', 1, 0, 'stored')"
    )
    done = asyncio.Event()

    async def sharer(delay_s: float) -> None:
        connection = await asyncpg.connect(postgres_dsn)
        await asyncio.sleep(delay_s)
        while not done.is_set():
            async with connection.transaction():
                await connection.fetch("SELECT seq FROM watermarks WHERE epoch = 1 FOR SHARE")
                await asyncio.sleep(0.05)
        await connection.close()

    sharers = [asyncio.create_task(sharer(number * 0.0125)) for number in range(4)]
    await asyncio.sleep(0.3)
    try:
        async with asyncio.timeout(WAIT_S_MAX):
            assert await advance(database) == {names.Origin("h", "e")}
    finally:
        done.set()
        await asyncio.gather(*sharers)


async def test_delivery_d1_a_hole_costs_no_round_a_look_at_all_above_it(database: asyncpg.Connection) -> None:
    await database.execute("INSERT INTO watermarks (epoch, site, edge) VALUES (1, 'h', 'e')")
    await database.execute(
        "INSERT INTO ledger (epoch, seq, sha256, stored, dead, disposition) "
        "SELECT 1, number, '\\x00', 1, 0, 'stored' FROM generate_series(2, 20000) AS number"
    )
    await database.execute("ANALYZE ledger")
    plan = "\n".join(row[0] for row in await database.fetch(f"EXPLAIN (ANALYZE, BUFFERS) {CANDIDATES}"))
    assert await advance(database) == set()
    assert "Seq Scan on ledger" not in plan, plan
    assert not re.search(r"actual time=\S+ rows=19999", plan), plan


# --- stopping ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", ["commit", "hold"])
async def test_a_worker_stops_whatever_the_database_does(
    own_postgres: Postgres, nats_client: Client, nats_url: str, frozen: str
) -> None:
    connection = await asyncpg.connect(own_postgres.dsn)
    await migrate(connection)
    await connection.close()
    await ingest.prepare(nats_client, settings_for(own_postgres.dsn))
    environ = os.environ | {"CNCMON_INGEST_DATABASE_DSN": own_postgres.dsn, "CNCMON_NATS_SERVERS": nats_url}
    process = subprocess.Popen(
        [sys.executable, "-m", "cncmon_ingest.main", "run"], env=environ, stderr=subprocess.DEVNULL
    )
    black_hole = socket.socket()
    try:
        await publish_plain(nats_client, join([frame(0)]))
        await until(lambda: drained(nats_client))
        if frozen == "commit":
            own_postgres.pause()
        else:
            own_postgres.kill()
            black_hole.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            black_hole.bind(("127.0.0.1", own_postgres.port))
            black_hole.listen(50)
        await publish_plain(nats_client, join([frame(1)]))
        await asyncio.sleep(2)
        # The server stays frozen: whoever waits for it waits for ever.
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, WAIT_S_MAX) == 0
    finally:
        process.kill()
        black_hole.close()
        if frozen == "commit":
            own_postgres.resume()


async def test_a_worker_stops_when_both_servers_are_silent(
    own_nats: Server, own_postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = await asyncpg.connect(own_postgres.dsn)
    await migrate(connection)
    await connection.close()
    monkeypatch.setenv("CNCMON_INGEST_DATABASE_DSN", own_postgres.dsn)
    monkeypatch.setenv("CNCMON_NATS_SERVERS", f"nats://127.0.0.1:{own_nats.port}")
    client = await connected(own_nats)
    await ingest.prepare(client, settings_for(own_postgres.dsn))
    began, stop, write = asyncio.Event(), asyncio.Event(), Store.write

    async def silent(self: Store, messages: Sequence[Decoded]) -> store.Outcome:
        own_postgres.pause()
        own_nats.pause()
        began.set()
        return await write(self, messages)

    monkeypatch.setattr(Store, "write", silent)
    running = asyncio.create_task(run_worker(Health(), stop))
    await asyncio.sleep(1)
    await publish_batch(client, 1, [frame(1)])
    await asyncio.wait_for(began.wait(), WAIT_S_MAX)
    stop.set()
    try:
        await asyncio.wait({running}, timeout=WAIT_S_MAX)
        assert running.done()
    finally:
        own_postgres.resume()
        own_nats.resume()
    await client.close()


# --- dead letters, the agent -------------------------------------------------------------------------------------


async def test_delivery_c2_a_buried_message_of_events_is_replayed_as_events(
    postgres_dsn: str, database: asyncpg.Connection
) -> None:
    writer = Store(await connect(postgres_dsn), datetime.now(UTC))
    payload = join([encode_event(Event("alarm", datetime.now(UTC), "m1", data={"code": 1}))])
    headers = Identity(9, 1, 1, 0, identity.digest(payload), "events").to_headers("hall", "e1", None)
    now = datetime.now(UTC)
    message = decode(Incoming("CNC_DATA.hall.e1.events", headers, payload, 1, now), Limits.at(now, 300, 0))
    message.bury("refused_by_database", "as a test")
    await writer.write([message])
    writer.close()
    (result,) = await replay_all(database, settings_for(postgres_dsn))
    assert (result.samples, result.error) == (1, None)
    assert await database.fetchval("SELECT machine_id FROM events") == "m1"


async def test_an_agent_cuts_batches_that_fit_the_servers_messages(tmp_path: Path, postgres_dsn: str) -> None:
    """max_payload of 64 KiB: what does not fit is told, what is cut afterwards fits."""
    from testkit.servers import running_nats

    with running_nats(tmp_path, max_payload="64KB") as server:
        client = await connected(server)
        await ingest.prepare(client, settings_for(postgres_dsn))
        before = nats_link.CONNECTS._value.get()
        async with agents.running_agent(f"nats://127.0.0.1:{server.port}", agents.settings_for(tmp_path)) as agent:
            await asyncio.sleep(0.5)
            for _ in range(40):
                noise = os.urandom(3000).hex()
                agent.batcher.add(Sample("m", datetime.now(UTC), 1.0, 2.0, extras={"noise": noise}))

            async def published() -> bool:
                return not agent.deliveries.unacknowledged()

            await until(published)
            agent.batcher.add(Sample("m", datetime.now(UTC), 1.0, 2.0, extras={"noise": os.urandom(100_000).hex()}))
            agent.batcher.cut()
            agent.batcher.add(Sample("m", datetime.now(UTC), 1.0, 2.0))
            agent.batcher.cut()

            async def all_but_that_one() -> bool:
                return agent.deliveries.unacknowledged() == 1

            await until(all_but_that_one)
            assert "does not fit the server's max_payload" in (agent.publisher.stream_error or "")
            assert nats_link.CONNECTS._value.get() - before == 1, "no storm of connections"
        await client.close()
