"""One sender's input is bounded: dead letters by message, their bytes and their age (rule C4), heartbeats, machines.

Each on a real stream and a real database.
"""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import asyncpg
import pytest
from nats.aio.client import Client

from cncmon_core.frames import join, split_numbered
from cncmon_core.identity import Identity, digest
from cncmon_ingest import dead_letters, dlq, leader, maintenance, retention
from cncmon_ingest.connection import connect
from cncmon_ingest.decode import Decoded, Incoming, Limits, buried, decode
from cncmon_ingest.edges import ROWS_MAX, Edges
from cncmon_ingest.reconcile import reconcile
from cncmon_ingest.steps import MORE
from cncmon_ingest.store import Store
from testkit import ingest
from testkit.fixtures import on_both_servers
from testkit.ingest import drained, frame, publish_batch, publish_plain, replay_all, running_ingest, settings_for, until


async def count(database: asyncpg.Connection, table: str = "sensor_data") -> int:
    number: int = await database.fetchval(f"SELECT count(*) FROM {table}")
    return number


async def totals(database: asyncpg.Connection) -> tuple[int, int]:
    """Return the samples stored and dead by the books."""
    books = await reconcile(database, timedelta(0))
    assert books.balanced
    return books.stored_samples, books.dead_samples


async def deliver(client: Client, url: str, dsn: str, parts: list[bytes], retention_days: int = 0) -> None:
    settings = settings_for(dsn, retention_days=retention_days)
    await ingest.prepare(client, settings)
    await publish_batch(client, 1, parts)
    async with running_ingest(url, settings):
        await until(lambda: drained(client))


@on_both_servers
async def test_delivery_c4_many_dead_frames_of_a_message_are_one_letter(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """It holds just them: the good ones between them are stored, and stay stored once however it is replayed."""
    old = (datetime.now(UTC) - timedelta(days=3)).isoformat()
    parts = [frame(n, timestamp=old) if n % 3 == 0 else b"{" if n % 3 == 1 else frame(n) for n in range(600)]
    await deliver(nats_client, nats_url, postgres_dsn, parts, retention_days=1)
    assert await count(database) == 200
    (letter,) = await dlq.list_(database)
    assert (letter["frame"], letter["frames"], letter["reason"]) == (-2, 400, "several_reasons")
    assert "200 too_old" in letter["detail"]
    assert "200 malformed_json" in letter["detail"]
    assert await totals(database) == (200, 400)

    strict = settings_for(postgres_dsn, retention_days=1)
    (refused,) = await replay_all(database, strict)
    assert (refused.samples, await count(database)) == (0, 200)
    assert "200 too_old" in str(refused.error)

    lenient = settings_for(postgres_dsn, retention_days=0)
    (partly,) = await replay_all(database, lenient)
    assert partly.samples == 200
    assert "200 malformed_json" in str(partly.error)
    assert await count(database) == 400
    lines = await database.fetch("SELECT active_program_line AS n, count(*) AS times FROM sensor_data GROUP BY 1")
    assert {row["n"]: row["times"] for row in lines} == {n: 1 for n in range(600) if n % 3 != 1}
    (left,) = await dlq.list_(database)
    assert (left["state"], left["frames"], left["reason"]) == ("dead", 200, "malformed_json")
    (again,) = await replay_all(database, lenient)
    assert (again.samples, await count(database)) == (0, 400)
    assert await dlq.drop(database, dlq.DEAD) == 1
    assert [(one.letters, one.frames, one.state) for one in await dlq.counts(database, dlq.Which(state=None))] == [
        (1, 200, "dropped")
    ]


async def test_delivery_c4_garbage_is_one_letter(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """The most dead frames that a message can have, and a tail: two letters, not ten thousand, and none is lost."""
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)
    garbage = join([b"%d" % number for number in range(10_000)]) + b"\0\0"
    await publish_plain(nats_client, garbage)
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
    letters = await database.fetch("SELECT frame, frames, payload FROM dead_letters ORDER BY frame")
    assert [(row["frame"], row["frames"]) for row in letters] == [(-2, 10_000), (10_000, 1)]
    assert split_numbered(letters[0]["payload"]) == [(number, b"%d" % number) for number in range(10_000)]
    assert await database.fetchval("SELECT dead FROM ledger_unidentified") == 10_001
    assert sum(len(row["payload"]) for row in letters) < len(garbage)
    (again, tail) = await replay_all(database, settings)
    assert (again.samples, tail.samples, await count(database)) == (0, 0, 0)


@pytest.mark.parametrize(("frames", "letters"), [(100, 100), (101, 1)])
def test_delivery_c4_a_hundred_dead_frames_are_letters_of_their_own(frames: int, letters: int) -> None:
    decoded = plain([b"{"] * frames)
    found = dead_letters.letters_of(decoded)
    assert (len(found), sum(letter.frames for letter in found)) == (letters, frames)


async def test_delivery_c4_a_letters_headers_and_detail_are_bounded(
    postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """What a replay needs of the headers is kept first."""
    store = Store(await connect(postgres_dsn), datetime.now(UTC))
    payload = join([b"{"])
    batch = Identity(1, 1, 1, 0, digest(payload), "samples")
    headers = {f"A{number}": "x" * 1000 for number in range(100)} | batch.to_headers("hall", "e1", None)
    await store.write(
        [buried(Incoming("CNC_DATA.hall.e1", headers, payload, 1, datetime.now(UTC)), "poison", "y" * 9999)]
    )
    store.close()
    row = await database.fetchrow("SELECT headers, detail FROM dead_letters")
    assert row is not None
    # PostgreSQL writes a space after each colon and comma.
    assert len(row["headers"]) < dead_letters.HEADER_BYTES_MAX * 1.01
    assert batch.to_headers("hall", "e1", None).items() <= json.loads(row["headers"]).items()
    assert row["detail"] == "y" * dead_letters.DETAIL_CHARS_MAX


async def test_delivery_c1_dead_letters_are_committed_with_the_ledger(
    postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """While the letter can't be written nobody sees the message as handled: a crash there would lose its bytes."""
    store = Store(await connect(postgres_dsn), datetime.now(UTC))
    holder = await asyncpg.connect(postgres_dsn)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("LOCK TABLE dead_letters IN ACCESS EXCLUSIVE MODE")
    writing = asyncio.create_task(store.write([plain([frame(1), b"{"])]))

    async def waits() -> bool:
        return bool(await database.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

    await until(waits, 60)
    assert await count(database, "ledger_unidentified") == 0
    await transaction.rollback()
    await holder.close()
    await writing
    assert (await count(database, "ledger_unidentified"), await count(database, "dead_letters")) == (1, 1)
    store.close()


@pytest.mark.parametrize("frames", [1, 200])
async def test_delivery_c2_a_replay_marks_what_it_stores(
    postgres_dsn: str, database: asyncpg.Connection, frames: int
) -> None:
    """Or rollups and states of that time would never be computed with it."""
    old = datetime.now(UTC) - timedelta(days=3)
    store = Store(await connect(postgres_dsn), datetime.now(UTC))
    strict = Limits.at(datetime.now(UTC), 300, 1)
    parts = [frame(number, timestamp=old.isoformat()) for number in range(frames)]
    await store.write([decode(Incoming("CNC_DATA.x", {}, join(parts), 1, datetime.now(UTC)), strict)])
    store.close()
    assert await count(database, "dirty_ranges") == 0
    (done,) = await replay_all(database, settings_for(postgres_dsn, retention_days=0))
    assert done.samples == frames
    row = await database.fetchrow("SELECT machine_ids, from_time, to_time FROM dirty_ranges")
    assert row is not None
    assert row["machine_ids"] == ["cnc-001"]
    assert row["from_time"] <= old < row["to_time"]


@on_both_servers
async def test_delivery_c4_letters_past_their_retention_leave_their_totals(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In portions, each letter either there or in the totals; the books do not change."""
    monkeypatch.setattr(dead_letters, "EXPIRE_ROWS", 3)
    await deliver(nats_client, nats_url, postgres_dsn, [b"{"] * 20 + [frame(1)] * 3)
    await database.execute("INSERT INTO edges VALUES ('hall', 'e1', 'b', now(), now(), '{}')")
    before = await totals(database)
    await database.execute("UPDATE dead_letters SET created = now() - INTERVAL '31 days' WHERE frame < 10")
    await database.execute("UPDATE dead_letters SET created = now() - INTERVAL '29 days' WHERE frame >= 10")
    await database.execute("UPDATE dead_letters SET state = 'dropped' WHERE frame = 0")
    await database.execute("UPDATE dead_letters SET subject = 'CNC_DATA.hall.nobody' WHERE frame = 1")
    settings = settings_for(postgres_dsn, retention_dead_letters_days=30)
    for expected in (10, 0):
        assert await dead_letters.expire(database, settings.retention_dead_letters_days) == expected
    assert await count(database, "dead_letters") == 10
    rows = await database.fetch("SELECT state, edge, letters, frames, bytes FROM dead_letter_totals ORDER BY letters")
    assert sorted(tuple(row) for row in rows) == [
        ("dead", "", 1, 1, 1),
        ("dead", "e1", 8, 8, 8),
        ("dropped", "e1", 1, 1, 1),
    ]
    assert await totals(database) == before == (3, 20)
    assert [(one.state, one.letters) for one in await dlq.expired(database)] == [("dead", 9)]
    of_edge = dlq.Which(edge=("hall", "e1"), state=None, reasons=("malformed_json",))
    assert [(one.state, one.letters) for one in await dlq.expired(database, of_edge)] == [("dead", 8), ("dropped", 1)]
    # Once more: the totals add up.
    await database.execute("UPDATE dead_letters SET created = now() - INTERVAL '31 days'")
    assert await dead_letters.expire(database, 30) == 10
    assert await database.fetchval("SELECT sum(letters) FROM dead_letter_totals") == 20


async def test_delivery_c4_a_turn_expires_a_bounded_number_and_comes_again_at_once(
    database: asyncpg.Connection, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Millions that pass their retention on one day keep no rollup waiting."""
    monkeypatch.setattr(dead_letters, "EXPIRE_ROWS", 3)
    monkeypatch.setattr(dead_letters, "EXPIRE_ROWS_MAX", 6)
    created = datetime.now(UTC)
    store = Store(await connect(postgres_dsn), created)
    await store.write([plain([b"{"] * 8)])
    store.close()
    await database.execute("UPDATE dead_letters SET created = now() - INTERVAL '31 days'")
    await database.execute("UPDATE dead_letters SET state = 'dropped' WHERE frame = 0")
    all_steps = maintenance.steps_of(settings_for(postgres_dsn, retention_dead_letters_days=30))
    (step,) = [one for one in all_steps if one.name == "retention_dead_letters"]
    turns = [(await step.work(database), await count(database, "dead_letters")) for _ in range(3)]
    assert turns == [(MORE, 2), (retention.INTERVAL_S, 0), (retention.INTERVAL_S, 0)]


def plain(parts: list[bytes], stream_seq: int = 1) -> Decoded:
    now = datetime.now(UTC)
    return decode(Incoming("CNC_DATA.original", {}, join(parts), stream_seq, now), Limits.at(now, 300, 0))


def beat(boot: str, *reports: dict[str, int]) -> bytes:
    return json.dumps({"boot_id": boot, "time": "2026-11-24T10:00:00Z", "epochs": reports}).encode()


async def test_delivery_a6_a_round_writes_a_bounded_part_of_the_heartbeats(database: asyncpg.Connection) -> None:
    """The watermarks wait for no more than that; what is left is written next, and nobody is overtaken for ever."""
    edges = Edges()
    now = datetime.now(UTC)
    epochs = 500

    def send(edge: int, freed_seq: int) -> None:
        reports = [{"epoch": edge * epochs + n + 1, "last_seq": 5, "freed_seq": freed_seq} for n in range(epochs)]
        edges.take(f"hall.e{edge}", beat("b", *reports), now, 0.0)

    for edge in range(25):
        send(edge, 1)
    seen: list[int] = []
    while not seen or edges.behind:
        await edges.write(database, 0.0)
        seen.append(await count(database, "edge_epochs"))
        # Edges that send again keep their turn.
        for edge in range(25):
            if len(seen) == 1:
                send(edge, 2)
    await edges.write(database, 0.0)
    assert seen[0] == 9 * epochs <= ROWS_MAX
    assert max(after - before for before, after in pairwise(seen)) <= ROWS_MAX
    assert (await count(database, "edges"), await count(database, "edge_epochs")) == (25, 25 * epochs)
    assert await database.fetchval("SELECT count(*) FROM edge_epochs WHERE freed_seq = 2") == 25 * epochs


async def test_delivery_a6_the_later_of_two_heartbeats_in_one_round_counts(database: asyncpg.Connection) -> None:
    """Two processes under one name that list one epoch, taken in out of order; and an epoch that is listed twice."""
    edges = Edges()
    now = datetime.now(UTC)
    later, earlier = now, now - timedelta(seconds=5)
    edges.take("hall.e1", beat("first", {"epoch": 7, "last_seq": 3, "accepted_samples": 30}), earlier, 0.0)
    second = beat("second", {"epoch": 7, "last_seq": 1}, {"epoch": 7, "last_seq": 9, "accepted_samples": 90})
    edges.take("hall.e1", second, earlier + timedelta(seconds=1), 0.0)
    edges.take("hall.e1", beat("first", {"epoch": 7, "last_seq": 5, "accepted_samples": 50}), later, 0.0)
    await edges.write(database, 0.0)
    assert not edges.behind
    assert await database.fetchval("SELECT boot_id FROM edges") == "first"
    row = await database.fetchrow("SELECT boot_id, last_seq, accepted_samples, listed FROM edge_epochs")
    assert row is not None
    assert tuple(row) == ("first", 9, 90, later)


async def test_delivery_a6_heartbeats_of_many_processes_under_one_name_wait(database: asyncpg.Connection) -> None:
    edges = Edges()
    now = datetime.now(UTC)
    for boot in range(20):
        edges.take("hall.e1", beat(f"b{boot}"), now + timedelta(seconds=boot), 0.0)
    edges.take("hall.e2", beat("b"), now, 0.0)
    await edges.write(database, 0.0)
    left = edges.behind
    assert left
    assert await count(database, "edges") == 2, "they do not keep another edge waiting"
    while edges.behind:
        await edges.write(database, 0.0)
    assert await database.fetchval("SELECT boot_id FROM edges WHERE edge = 'e1'") == "b19"


async def test_delivery_a6_the_leader_goes_on_with_what_is_left(
    nats_client: Client, postgres_dsn: str, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its next rounds, whenever heartbeats are due again: each round writes a part, and looks at the watermarks."""
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)
    edges = Edges()
    for edge in range(25):
        reports = [{"epoch": edge * 500 + n + 1} for n in range(500)]
        edges.take(f"hall.e{edge}", beat("b", *reports), datetime.now(UTC), 0.0)
    monkeypatch.setattr(leader, "Edges", lambda: edges)
    connection = await connect(postgres_dsn)
    async with leader.leading(settings, connection, nats_client) as rounds:
        for written in (9, 18, 25, 25):
            await rounds.next(0.0)
            assert await count(database, "edges") == written
    connection.terminate()
