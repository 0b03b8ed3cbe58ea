"""Rules B9 and B10: whose a machine is, judged at the sample's time, and how many machines there may be.

Each on a real database; where messages travel, on a real stream.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from nats.aio.client import Client

from cncmon_core import identity
from cncmon_core.frames import join
from cncmon_core.identity import Identity
from cncmon_core.names import Origin
from cncmon_ingest import dlq, machines, migrate, owners
from cncmon_ingest.connection import connect
from cncmon_ingest.decode import Decoded, Incoming, Limits, decode
from cncmon_ingest.machines import Bounds
from cncmon_ingest.reconcile import reconcile
from cncmon_ingest.store import Store
from testkit import ingest
from testkit.fixtures import on_both_servers
from testkit.ingest import drained, frame, publish_batch, publish_plain, replay_all, running_ingest, settings_for, until

NOON = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=6)
"""Samples' times are counted from here, in seconds; far enough in the past that none is of the future."""


class Hand:
    """Messages as they come to a store, each in an epoch of its own."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._epoch = 0
        self.stores: list[Store] = []

    async def store(self, bounds: Bounds = Bounds()) -> Store:  # noqa: B008 immutable
        self.stores.append(Store(await connect(self.dsn), NOON, bounds=bounds))
        return self.stores[-1]

    def message(self, origin: str, *samples: tuple[str, float]) -> Decoded:
        """Return a batch of an edge, "hall.e1", or a plain message of nobody, "": samples are (machine, second)."""
        self._epoch += 1
        times = [(machine_id, (NOON + timedelta(seconds=second)).isoformat()) for machine_id, second in samples]
        payload = join(frame(n, machine_id=m, timestamp=at) for n, (m, at) in enumerate(times))
        headers = {}
        if origin:
            batch = Identity(self._epoch, 1, len(samples), 0, identity.digest(payload), "samples")
            headers = batch.to_headers(origin.split(".")[0], origin.split(".")[1], None)
        subject = f"CNC_DATA.{origin}" if origin else "CNC_DATA.original"
        now = datetime.now(UTC)
        return decode(Incoming(subject, headers, payload, self._epoch, now), Limits.at(now, 300, 0))


@pytest.fixture
async def hand(postgres_dsn: str) -> AsyncIterator[Hand]:
    made = Hand(postgres_dsn)
    yield made
    for store in made.stores:
        store.close()


async def stored(database: asyncpg.Connection) -> Counter[tuple[str, float]]:
    """Return how often each sample is stored."""
    rows = await database.fetch("SELECT machine_id, extract(epoch FROM time - $1)::float AS s FROM sensor_data", NOON)
    return Counter((row["machine_id"], row["s"]) for row in rows)


async def letters(database: asyncpg.Connection, state: str = "dead") -> dict[str, int]:
    """Return the dead frames by reason."""
    return {one.reason: one.frames for one in await dlq.counts(database, dlq.Which(state=state))}


async def owners_of(database: asyncpg.Connection, machine_id: str = "m1") -> list[tuple[float | None, str, str]]:
    """Return (from second, None for always; site; edge) of a machine's owners."""
    rows = await database.fetch(
        "SELECT CASE WHEN from_time = '-infinity' THEN NULL ELSE extract(epoch FROM from_time - $2)::float END AS s, "
        "site, edge FROM machine_owners WHERE machine_id = $1 ORDER BY from_time",
        *(machine_id, NOON),
    )
    return [tuple(row) for row in rows]


@on_both_servers
async def test_delivery_b9_one_machine_id_at_two_sites(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """The second site's samples are dead letters with an alarm, whole or in part of a batch, and the books balance."""
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)
    async with running_ingest(nats_url, settings, workers=2):
        await publish_batch(nats_client, 1, [frame(n) for n in range(4)])
        await until(lambda: drained(nats_client))
        for seq in range(1, 4):
            parts = [frame(seq, temperature=-1.0), frame(seq, machine_id="yard-1"), frame(seq, temperature=-1.0)]
            await publish_batch(nats_client, seq, parts, epoch=77, site="yard", edge="e9", base=3 * (seq - 1))
        await until(lambda: drained(nats_client))

        async def counted() -> bool:
            return (await reconcile(database, timedelta(0))).dead_samples == 6

        await until(counted)
    rows = await database.fetch("SELECT machine_id, count(*) AS n, min(temperature) AS t FROM sensor_data GROUP BY 1")
    assert {row["machine_id"]: row["n"] for row in rows} == {"cnc-001": 4, "yard-1": 3}
    assert all(row["t"] > 0 for row in rows)
    assert await letters(database) == {"foreign_machine": 6}
    assert await database.fetchval("SELECT count(*) FROM dead_letters") == 3, "one of each message"
    rows = await database.fetch("SELECT site, edge, machine_id, data FROM events WHERE type = 'foreign_machine'")
    assert {tuple(row)[:3] for row in rows} == {("yard", "e9", "cnc-001")}
    assert 1 <= len(rows) <= 2, "once in an hour from each worker"
    assert "belongs to hall/e1" in json.loads(rows[0]["data"])["detail"]
    books = await reconcile(database, timedelta(0))
    assert (books.balanced, books.stored_samples, books.dead_samples) == (True, 7, 6)
    shown = await database.fetch("SELECT machine_id, site, edge FROM machines ORDER BY 1")
    assert [tuple(row) for row in shown] == [("cnc-001", "hall", "e1"), ("yard-1", "yard", "e9")]


@on_both_servers
async def test_delivery_b9_after_a_hand_over_each_site_has_its_time(
    hand: Hand, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """Judged at the sample's time: the old edge's backlog stays its own, and what was refused is stored by a replay."""
    store = await hand.store()
    await store.write([hand.message("hall.e1", ("m1", 0), ("m1", 1))])
    await store.write([hand.message("yard.e9", ("m1", 99), ("m1", 100), ("m1", 101))])
    assert await letters(database) == {"foreign_machine": 3}
    at = NOON + timedelta(seconds=100)
    assert await owners.hand_over(database, ["m1", "nobody"], Origin("yard", "e9"), at) == ["m1"]
    assert await owners_of(database) == [(None, "hall", "e1"), (100.0, "yard", "e9")]
    # No wait for the worker to read it: a look at the database comes before every refusal.
    await store.write([hand.message("yard.e9", ("m1", 102))])
    await store.write([hand.message("hall.e1", ("m1", 50), ("m1", 99.5), ("m1", 200))])
    expected = {("m1", second): 1 for second in (0, 1, 102, 50, 99.5)}
    store = await hand.store()
    await store.write([hand.message("hall.e1", ("m1", 51), ("m1", 100), ("m1", 201))])
    expected |= {("m1", 51): 1}
    assert await letters(database) == {"foreign_machine": 3 + 1 + 2}
    replayed = await replay_all(database, settings_for(postgres_dsn))
    by_samples = sorted(one.samples for one in replayed)
    assert by_samples[-1] == 2, "100 and 101 of the yard are its own now; 99 is not"
    assert sum(by_samples) == 2
    found = await stored(database)
    assert found == expected | {("m1", 100): 1, ("m1", 101): 1}
    assert await database.fetchval("SELECT site || '/' || edge FROM machines") == "yard/e9"


async def test_delivery_b9_workers_follow_a_hand_over(
    hand: Hand, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old owner's samples of after it are refused by a worker that knew it as the owner."""
    store = await hand.store()
    await store.write([hand.message("hall.e1", ("m1", 0))])
    await owners.hand_over(database, ["m1"], Origin("yard", "e9"), NOON + timedelta(seconds=100))
    monkeypatch.setattr(machines, "REFRESH_S", -1.0)
    await store.write([hand.message("hall.e1", ("m1", 99), ("m1", 101))])
    await store.write([hand.message("yard.e9", ("m1", 102), ("m1", 98))])
    assert await stored(database) == {("m1", 0): 1, ("m1", 99): 1, ("m1", 102): 1}
    assert await letters(database) == {"foreign_machine": 2}


async def test_delivery_b9_a_machine_moves_between_edges_of_a_site_by_itself(
    hand: Hand, database: asyncpg.Connection
) -> None:
    """Nothing is refused: not what both read for a while, not the old edge's backlog, nor that of a renamed edge."""
    store = await hand.store()
    sent = [
        ("hall.e1", (0, 10, 20)),
        ("hall.e2", (1000, 1001)),
        ("hall.e1", (1015, 1016)),
        ("hall.e1", (500, 600)),
        ("hall.e2", (1004,)),
        ("hall.e3", (5, 700)),
    ]
    for origin, seconds in sent:
        # By a worker that knows it all, and one that has just begun.
        fresh = await hand.store()
        earliest, *rest = seconds
        await fresh.write([hand.message(origin, ("m1", earliest))])
        await store.write([hand.message(origin, *(("m1", second) for second in rest))] if rest else [])
    assert await letters(database) == {}
    assert await stored(database) == {("m1", second): 1 for _, seconds in sent for second in seconds}
    (first, moved) = await owners_of(database)
    assert first == (None, "hall", "e1")
    assert moved[1:] == ("hall", "e2")
    assert 990 <= (moved[0] or 0) <= 1000, "the tick of its first sample"
    assert await database.fetchval("SELECT edge FROM machines") == "e2"
    assert await database.fetchval("SELECT count(*) FROM events") == 0
    # And back, for good: a move like any other.
    await store.write([hand.message("hall.e1", ("m1", 3000))])
    assert await database.fetchval("SELECT edge FROM machines") == "e1"
    assert await database.fetchval("SELECT count(*) FROM events") == 0


async def test_delivery_b9_two_edges_of_a_site_that_read_one_machine_raise_an_alarm(
    hand: Hand, database: asyncpg.Connection
) -> None:
    """They can't be told from moves by one sample; again and again they can. Nothing is refused, little is recorded."""
    store = await hand.store()
    for minute in range(30):
        for edge in ("e1", "e2"):
            await store.write([hand.message(f"hall.{edge}", ("m1", 60.0 * minute + (edge == "e2")))])
    assert sum((await stored(database)).values()) == 60
    assert await letters(database) == {}
    rows = await database.fetch("SELECT type, machine_id, data FROM events")
    assert [(row["type"], row["machine_id"]) for row in rows] == [("machine_contended", "m1")] * len(rows)
    assert 1 <= len(rows) <= 2
    assert "e1, e2" in rows[0]["data"]
    assert len(await owners_of(database)) <= 2 + owners.CONTENDED_MOVES


async def test_delivery_b9_what_moved_costs_no_transaction_a_message(
    hand: Hand, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the new edge's samples nor the old one's backlog do, nor those of two edges that read one machine."""
    monkeypatch.setattr(machines, "REFRESH_S", 1e9)
    connection = await connect(hand.dsn)
    store = Store(connection, NOON)
    hand.stores.append(store)
    asked: list[str] = []
    connection.add_query_logger(lambda record: asked.append(record.query))

    async def judged(edge: str, *seconds: float) -> int:
        """Write a message of two machines for each time; return for how many the database was asked about them."""
        asked.clear()
        for second in seconds:
            await store.write([hand.message(f"hall.{edge}", ("m1", second), ("m2", second))])
        return asked.count("BEGIN") - len(seconds)

    await judged("e1", 0)
    assert await judged("e2", 1000), "the move"
    assert await judged("e2", 1001, 2000, 1) == 0
    assert await judged("e1", 100, 999, 1040) == 0, "what the old edge still has"
    assert await judged("e3", 10) == 0
    assert await judged("e1", 2000), "back"
    assert await judged("e2", 2100), "and forth"
    assert await judged("e1", 2200), "contended"
    assert await judged("e1", 2300, 2301, 9000) == 0
    assert await judged("e2", 2300, 100) == 0
    assert await database.fetchval("SELECT edge FROM machines WHERE machine_id = 'm1'") == "e2"
    # Once the owners are read again, the edge that goes on alone has them.
    monkeypatch.setattr(machines, "REFRESH_S", -1.0)
    assert await judged("e1", 9100)
    assert await database.fetchval("SELECT edge FROM machines WHERE machine_id = 'm1'") == "e1"
    assert await letters(database) == {}
    assert sum((await stored(database)).values()) == 2 * 18


async def test_delivery_b9_machines_that_move_together_cost_the_statements_of_one(
    hand: Hand, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "REFRESH_S", 1e9)
    asked: list[str] = []
    costs = []
    for number in (1, 50):
        connection = await connect(hand.dsn)
        store = Store(connection, NOON)
        hand.stores.append(store)
        moving = [f"{number}-{n}" for n in range(number)]
        await store.write([hand.message("hall.e1", *((m, 0) for m in moving))])
        connection.add_query_logger(lambda record: asked.append(record.query))
        asked.clear()
        await store.write([hand.message("hall.e2", *((m, 1000) for m in moving))])
        costs.append(len(asked))
        assert await database.fetchval("SELECT count(*) FROM machines WHERE edge = 'e2'") == sum((1, 50)[: len(costs)])
    assert costs[0] == costs[1]
    assert await database.fetchval("SELECT count(*) FROM machine_owners") == 2 * 51


async def test_delivery_b9_two_edges_that_read_one_machine_have_no_part_of_another_sites_time(
    hand: Hand, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "REFRESH_S", 1e9)
    await (await hand.store()).write([hand.message("hall.e1", ("m1", 0))])
    await owners.hand_over(database, ["m1"], Origin("yard", "e1"), NOON + timedelta(seconds=100))
    store = await hand.store()
    for second, edge in ((200, "e2"), (300, "e1"), (400, "e2")):
        await store.write([hand.message(f"yard.{edge}", ("m1", second))])
    assert await database.fetchval("SELECT count(*) FROM events WHERE type = 'machine_contended'") == 1
    await store.write([hand.message("yard.e2", ("m1", 600), ("m1", 100))])
    assert await letters(database) == {}
    await store.write([hand.message("yard.e2", ("m1", 50), ("m1", 700))])
    assert await letters(database) == {"foreign_machine": 1}


@on_both_servers
async def test_delivery_b9_senders_without_a_site_stay_valid(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """They own nothing and are refused nothing, before and after a site owns the machine; a site then owns it whole."""
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)
    async with running_ingest(nats_url, settings):
        await publish_plain(nats_client, join([frame(1)]))
        await until(lambda: drained(nats_client))
        assert await database.fetchval("SELECT count(*) FROM machine_owners") == 0
        assert await database.fetchval("SELECT site || '/' || edge FROM machines") == "/"
        await publish_batch(nats_client, 1, [frame(2)])
        await until(lambda: drained(nats_client))
        assert await database.fetchval("SELECT site || '/' || edge FROM machines") == "hall/e1"
        await publish_plain(nats_client, join([frame(3)]))
        await publish_batch(nats_client, 1, [frame(4)], epoch=78, site="yard")
        await until(lambda: drained(nats_client))
    assert await database.fetchval("SELECT count(*) FROM sensor_data") == 3
    assert await letters(database) == {"foreign_machine": 1}
    assert await database.fetchval("SELECT site || '/' || edge FROM machines") == "hall/e1"


async def test_delivery_b9_two_sites_that_are_first_at_once(hand: Hand, database: asyncpg.Connection) -> None:
    """One of them owns the machine, for both workers."""
    stores = [await hand.store() for _ in range(4)]
    sites = ("hall", "yard", "dock", "roof")
    messages = [hand.message(f"{site}.e", ("m1", 1), (f"own-{site}", 1)) for site in sites]
    await asyncio.gather(*(store.write([message]) for store, message in zip(stores, messages, strict=True)))
    assert len(await owners_of(database)) == 1
    found = await stored(database)
    assert found["m1", 1] == 1
    assert sum(found.values()) == 1 + 4
    assert await letters(database) == {"foreign_machine": 3}


async def test_delivery_b9_machines_of_before_belong_to_who_sent_them_last(database: asyncpg.Connection) -> None:
    await database.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    shipped = migrate.shipped()
    number = next(migration.number for migration in shipped if migration.name == "machine_owners")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrate, "shipped", lambda: shipped[: number - 1])
        await migrate.migrate(database)
    await database.execute("INSERT INTO machines VALUES ('m1', 'hall', 'e1'), ('m2', '', ''), ('m3', '', 'e3')")
    await migrate.migrate(database)
    assert [
        tuple(row)
        for row in await database.fetch("SELECT machine_id, site, edge, from_time = '-infinity' FROM machine_owners")
    ] == [("m1", "hall", "e1", True)]


# --- B10 ---------------------------------------------------------------------------------------------------------


@on_both_servers
async def test_delivery_b10_a_machine_beyond_the_bound_is_a_dead_letter(
    hand: Hand, postgres_dsn: str, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await hand.store(Bounds(in_all=5, of_edge=3))
    await store.write([hand.message("hall.e1", *((f"a{n}", 1) for n in range(5)), ("a0", 2))])
    assert await letters(database) == {"too_many_machines": 2}
    await store.write([hand.message("hall.e2", *((f"b{n}", 1) for n in range(3)))])
    await store.write([hand.message("", ("c0", 1), ("a0", 3))])
    # Known machines are never too many, whoever counts.
    other = await hand.store(Bounds(in_all=1, of_edge=1))
    await other.write([hand.message("hall.e1", ("a0", 4), ("a1", 4))])
    found = await stored(database)
    assert sorted({m for m, _ in found}) == ["a0", "a1", "a2", "b0", "b1"]
    assert (sum(found.values()), await letters(database)) == (9, {"too_many_machines": 4})
    assert await database.fetchval("SELECT count(*) FROM machines") == 5
    alarms = await database.fetch("SELECT edge FROM events WHERE type = 'too_many_machines'")
    assert {row["edge"] for row in alarms} == {"e1", "e2", ""}
    refused = await replay_all(database, settings_for(postgres_dsn, machines_max=5))
    assert {one.samples for one in refused} == {0}
    replayed = await replay_all(database, settings_for(postgres_dsn, machines_max=9, machines_per_edge_max=5))
    assert sum(one.samples for one in replayed) == 4
    assert await letters(database) == {}
    assert await database.fetchval("SELECT count(*) FROM machines") == 9
    # Refused for a while without another count; then the worker follows.
    store = await hand.store(Bounds(in_all=9))
    await store.write([hand.message("hall.e1", ("z", 1))])
    await database.execute("DELETE FROM machines WHERE machine_id = 'c0'")
    await store.write([hand.message("hall.e1", ("z", 2))])
    assert await letters(database) == {"too_many_machines": 2}
    monkeypatch.setattr(machines, "REFUSED_S", 0.0)
    store = await hand.store(Bounds(in_all=9))
    await store.write([hand.message("hall.e1", ("z", 3))])
    assert await letters(database) == {"too_many_machines": 2}


async def test_delivery_b10_workers_count_one_after_another(hand: Hand, database: asyncpg.Connection) -> None:
    stores = [await hand.store(Bounds(in_all=10)) for _ in range(4)]
    messages = [hand.message(f"hall.e{n}", *((f"m{n}-{k}", 1) for k in range(8))) for n in range(4)]
    await asyncio.gather(*(store.write([message]) for store, message in zip(stores, messages, strict=True)))
    assert await database.fetchval("SELECT count(*) FROM machines") == sum((await stored(database)).values()) == 10
    assert await letters(database) == {"too_many_machines": 22}
