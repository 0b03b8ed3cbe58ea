"""Rules A6 and D4 on a real database and stream: heartbeats, twins, and epochs that their edge has no more."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from nats.aio.client import Client
from prometheus_client import REGISTRY

from cncmon_core import names
from cncmon_core.events import Event, encode_event
from cncmon_core.names import Origin
from cncmon_ingest import forks
from cncmon_ingest.abandoned import Abandoned
from cncmon_ingest.advance import advance
from cncmon_ingest.connection import connect
from cncmon_ingest.edges import Edges
from cncmon_ingest.reconcile import reconcile
from cncmon_ingest.store import Store
from testkit import ingest
from testkit.fixtures import on_both_servers
from testkit.gaps import batch, declaration, gap_frame, gaps_of, ledger_of, message, new_seqs, watermark_of
from testkit.ingest import EPOCH, drained, frame, publish_batch, running_ingest, settings_for, until

NEXT = 5555
"""The epoch of the edge's next start."""


def epoch(number: int, last_seq: int, samples: int | None = None, **more: int) -> dict[str, Any]:
    counts = {"first_seq": 1, "last_seq": last_seq, "freed_seq": 0, "acked_seq": 0, "accepted_samples": samples}
    return {"epoch": number} | counts | more


def heartbeat(*epochs: dict[str, Any], boot_id: str = "boot-1", **more: Any) -> bytes:
    now = datetime.now(UTC).isoformat()
    return json.dumps({"boot_id": boot_id, "time": now, "epochs": list(epochs)} | more).encode()


class Plant:
    """A leader's look at heartbeats, step by step, with times of the test's choice."""

    def __init__(self, database: asyncpg.Connection, store: Store) -> None:
        self.database = database
        self.store = store
        self.edges = Edges()
        self.abandoned = Abandoned(600.0)
        self.start = datetime.now(UTC)

    async def hear(self, at_s: float, *epochs: dict[str, Any], edge: str = "e1", **more: Any) -> None:
        self.edges.take(f"hall.{edge}", heartbeat(*epochs, **more), self.start + timedelta(seconds=at_s), at_s)
        await self.edges.write(self.database, at_s)

    async def look(self, last_seq: int = 0, floor: int = 0) -> None:
        await self.abandoned.look(self.database, last_seq, floor)

    async def reasons(self) -> dict[str, str]:
        rows = await self.database.fetch("SELECT DISTINCT reason, state FROM gaps WHERE epoch = $1", EPOCH)
        return {row["reason"]: row["state"] for row in rows}


@pytest.fixture
async def plant(postgres_dsn: str, database: asyncpg.Connection) -> AsyncIterator[Plant]:
    store = Store(await connect(postgres_dsn), datetime.now(UTC))
    yield Plant(database, store)
    store.close()


# --- A6: heartbeats ----------------------------------------------------------------------------------------------


@on_both_servers
async def test_delivery_a6_heartbeats_are_written_down(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    settings = settings_for(postgres_dsn, edges_interval_ms=50)
    await ingest.prepare(nats_client, settings)
    bucket = await nats_client.jetstream().key_value(names.KV_STATUS)
    await bucket.put("hall.early", heartbeat(epoch(1, 10, 100)))
    bad = REGISTRY.get_sample_value("cncmon_ingest_heartbeats_bad_total") or 0
    async with running_ingest(nats_url, settings):

        async def known() -> list[tuple[Any, ...]]:
            rows = await database.fetch("SELECT edge, boot_id, document -> 'x' AS x FROM edges ORDER BY edge")
            return [tuple(row) for row in rows]

        await until(lambda: _is(known, [("early", "boot-1", None)]))
        await bucket.put("hall.rubbish", b"{")
        await bucket.put("hall.late", heartbeat(epoch(2, 5), boot_id="boot-2", x=[1, "ü"]))
        await bucket.put("hall.early", heartbeat(epoch(1, 12, 120), epoch(3, 1, 9)))
        await until(lambda: _is(known, [("early", "boot-1", None), ("late", "boot-2", '[1, "ü"]')]))

        async def epochs() -> list[tuple[Any, ...]]:
            rows = await database.fetch("SELECT epoch, edge, last_seq, accepted_samples FROM edge_epochs ORDER BY 1")
            return [tuple(row) for row in rows]

        await until(lambda: _is(epochs, [(1, "early", 12, 120), (2, "late", 5, None), (3, "early", 1, 9)]))
    assert REGISTRY.get_sample_value("cncmon_ingest_heartbeats_bad_total") == bad + 1
    received, now = await database.fetchrow("SELECT received, now() FROM edges WHERE edge = 'late'") or (None, None)
    assert received is not None
    assert abs(now - received) < timedelta(seconds=10)


async def _is(what: Any, expected: Any) -> bool:
    return bool(await what() == expected)


async def test_delivery_a6_what_was_said_later_counts(plant: Plant) -> None:
    await plant.hear(10, epoch(1, 10, 100, freed_seq=4))
    await plant.hear(20, epoch(1, 12, 120, freed_seq=3), edge="renamed")
    await plant.hear(15, epoch(1, 11, 110))
    row = await plant.database.fetchrow("SELECT edge, last_seq, accepted_samples, freed_seq FROM edge_epochs")
    assert row is not None
    assert tuple(row) == ("renamed", 12, 120, 4)


async def test_delivery_a6_the_highest_seq_of_an_epoch_does_not_go_back(plant: Plant) -> None:
    """A card put back from an image, or the other of two agents with one memory, has less of it."""
    await plant.hear(10, epoch(1, 12, 120))
    await plant.hear(20, epoch(1, 5, 50, freed_seq=3))
    row = await plant.database.fetchrow("SELECT last_seq, accepted_samples, freed_seq FROM edge_epochs")
    assert row is not None
    assert tuple(row) == (12, 120, 3)


async def test_delivery_a6_a_count_is_that_of_the_highest_seq_or_unknown(plant: Plant) -> None:
    async def counted() -> tuple[int, int | None]:
        row = await plant.database.fetchrow("SELECT last_seq, accepted_samples FROM edge_epochs")
        assert row is not None
        return row["last_seq"], row["accepted_samples"]

    await plant.hear(10, epoch(1, 5, 50))
    await plant.hear(20, epoch(1, 5, None))
    assert await counted() == (5, 50), "who forgot it takes nothing back"
    await plant.hear(30, epoch(1, 5, 50, acked_seq=8))
    assert await counted() == (8, None), "the stream has more than was synced, and nobody counted that"
    await plant.hear(40, epoch(1, 9, None))
    assert await counted() == (9, None)
    await plant.hear(50, epoch(1, 9, 90))
    assert await counted() == (9, 90)


async def test_delivery_d4_samples_that_nobody_counted_are_not_none(database: asyncpg.Connection, plant: Plant) -> None:
    """An edge that has freed, dropped and acknowledged may not know any more how many samples its last seq ended."""
    await plant.store.write([batch(1, 2)])
    await plant.hear(0, epoch(EPOCH, 1, 2, acked_seq=4))
    await plant.hear(700, epoch(NEXT, 1, 1))
    await plant.look()
    assert await gaps_of(database) == [(2, 4, None)]
    books = await reconcile(database, timedelta(0))
    assert (books.unbalanced, books.gap_batches) == ([], 3)


async def test_delivery_a6_what_an_edge_has_no_more_is_written_down(plant: Plant) -> None:
    """Ingest was away when the card was changed: only the new card's heartbeat tells of the old one's epochs."""
    await plant.hear(10, epoch(2, 1, 1), gone=[epoch(1, 12, 120)])
    await plant.hear(20, epoch(2, 1, 1), gone=[epoch(1, 9, 90)])
    row = await plant.database.fetchrow("SELECT edge, last_seq, accepted_samples FROM edge_epochs WHERE epoch = 1")
    assert row is not None
    assert tuple(row) == ("e1", 12, 120)


async def test_delivery_a6_a_fork_that_an_edge_knows_of_is_told_and_raises_the_alarm(plant: Plant) -> None:
    for at_s in (10, 20):
        await plant.hear(at_s, epoch(1, 5), epoch(2, 5), forked=[1])
    assert await plant.database.fetchval("SELECT count(*) FROM events WHERE type = 'epoch_forked'") == 1
    assert await forks.of_edges(plant.database, [Origin("hall", "e1")]) == {Origin("hall", "e1"): [1]}


async def test_delivery_d4_of_a_forked_epoch_no_closing_hides_what_is_missing(
    database: asyncpg.Connection, plant: Plant
) -> None:
    """Closed by one of the agents before the fork was known; the other went on to seq 9, and its card is lost."""
    await plant.store.write([batch(seq) for seq in (1, 2, 9)])
    said = encode_event(Event("epoch_closed", datetime.now(UTC), data={"epoch": EPOCH, "last_seq": 2, "samples": 2}))
    await plant.store.write([declaration(1, said)])
    await plant.hear(10, epoch(EPOCH, 9, 9), forked=[EPOCH])
    await plant.store.write([declaration(2, said)])
    await plant.hear(5000, epoch(NEXT, 1, 1))
    await plant.look()
    assert await gaps_of(database) == [(3, 8, 6)]
    await plant.store.write([declaration(3, said)])
    assert await gaps_of(database) == [(3, 8, 6)]
    unbalanced = (await reconcile(database, timedelta(0))).unbalanced
    assert EPOCH not in {account.epoch for account in unbalanced}


async def test_delivery_a6_no_twin_hides_what_the_other_lists(plant: Plant) -> None:
    """Both send between two writes, always in the same order: the epochs of both are alive."""
    for number, boot_id in ((1, "twin-a"), (2, "twin-b")):
        beat = heartbeat(epoch(number, 5), boot_id=boot_id)
        plant.edges.take("hall.e1", beat, plant.start + timedelta(seconds=number), number)
    await plant.edges.write(plant.database, 3)
    assert await plant.database.fetchval("SELECT count(*) FROM edge_epochs") == 2


async def test_delivery_a6_a_heartbeat_that_the_database_refuses_takes_none_along(plant: Plant) -> None:
    await plant.database.execute("ALTER TABLE edges ADD CONSTRAINT no CHECK (edge <> 'bad')")
    plant.edges.take("hall.bad", heartbeat(), plant.start, 1)
    plant.edges.take("hall.good", heartbeat(epoch(1, 1)), plant.start, 1)
    await plant.edges.write(plant.database, 1)
    assert [row["edge"] for row in await plant.database.fetch("SELECT edge FROM edges")] == ["good"]
    assert await plant.database.fetchval("SELECT count(*) FROM edge_epochs") == 1
    await plant.edges.write(plant.database, 2)
    await plant.database.execute("ALTER TABLE edges DROP CONSTRAINT no")


# --- A6: one name, two edges -------------------------------------------------------------------------------------


def clones_metric() -> float | None:
    return REGISTRY.get_sample_value("cncmon_ingest_edge_clones", {"site": "hall", "edge": "e1"})


async def test_delivery_a6_two_edges_under_one_name_are_alerted_and_both_are_stored(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    settings = settings_for(postgres_dsn, edges_interval_ms=50)
    await ingest.prepare(nats_client, settings)
    bucket = await nats_client.jetstream().key_value(names.KV_STATUS)
    async with running_ingest(nats_url, settings):
        for round_ in range(1, 4):
            for number, boot_id in ((1, "twin-a"), (2, "twin-b")):
                await publish_batch(nats_client, round_, [frame(round_)], epoch=number)
                await bucket.put("hall.e1", heartbeat(epoch(77, 5), epoch(number, round_), boot_id=boot_id))
                await asyncio.sleep(0.1)
        await until(lambda: _is(_clone_events(database), 1))
        await until(lambda: drained(nats_client))
        assert clones_metric() == 2
        told = await database.fetchrow("SELECT site, edge, data FROM events WHERE type = 'edge_cloned'")
        assert told is not None
        assert (told["site"], told["edge"]) == ("hall", "e1")
        assert json.loads(told["data"]) == {"boot_ids": ["twin-a", "twin-b"]}
        await bucket.put("hall.e1", heartbeat(boot_id="twin-a"))
        await asyncio.sleep(0.3)
        assert await _clone_events(database)() == 1, "one event an alarm"
        listed = await database.fetch("SELECT epoch FROM edge_epochs ORDER BY 1")
        assert [row["epoch"] for row in listed] == [1, 2, 77], "no twin's heartbeat hides the other's"
    assert await database.fetchval("SELECT count(*) FROM sensor_data") == 6
    assert clones_metric() is None


def _clone_events(database: asyncpg.Connection) -> Any:
    async def number() -> int:
        found: int = await database.fetchval("SELECT count(*) FROM events WHERE type = 'edge_cloned'")
        return found

    return number


async def test_delivery_a6_a_restart_is_no_clone(plant: Plant) -> None:
    for at_s, boot_id in enumerate(["one"] * 5 + ["two"] * 5 + ["three"] * 5):
        await plant.hear(5 * at_s, boot_id=boot_id)
    assert await _clone_events(plant.database)() == 0
    assert clones_metric() is None


# --- D4: abandoned epochs ----------------------------------------------------------------------------------------


@on_both_servers
async def test_delivery_d4_an_epoch_that_its_edge_has_no_more_stands_in_gaps(
    postgres_dsn: str, database: asyncpg.Connection, plant: Plant
) -> None:
    await plant.hear(0, epoch(EPOCH, 9, 27))
    await plant.store.write([batch(seq, 3) for seq in (1, 2, 5)])
    await advance(database)
    await plant.hear(10, epoch(NEXT, 1, 1), boot_id="boot-2")
    await plant.look()
    assert await gaps_of(database) == [], "the grace is not over"
    await plant.hear(601, epoch(NEXT, 9, 1), boot_id="boot-2")
    await plant.look()
    assert await gaps_of(database) == [(3, 4, 6), (6, 9, 12)]
    assert await plant.reasons() == {"epoch_abandoned": "abandoned"}
    await advance(database)
    assert await watermark_of(database) == 2, "such gaps never move the watermark"
    assert await gaps_of(database, NEXT) == []
    await plant.hear(1300, epoch(NEXT, 9, 1), boot_id="boot-2")
    await plant.look()
    assert await gaps_of(database) == [(3, 4, 6), (6, 9, 12)]


@on_both_servers
async def test_delivery_d4_the_old_card_turns_up(postgres_dsn: str, database: asyncpg.Connection, plant: Plant) -> None:
    await plant.hear(0, epoch(EPOCH, 9, 27))
    await plant.store.write([batch(seq, 3) for seq in (1, 2, 5)])
    await advance(database)
    await plant.hear(700, epoch(NEXT, 1, 1))
    await plant.look()
    assert await gaps_of(database) == [(3, 4, 6), (6, 9, 12)]
    await plant.hear(800, epoch(EPOCH, 9, 27), epoch(NEXT, 1, 1))
    outcome = await plant.store.write([batch(seq, 3) for seq in (2, 3, 5, 7)])
    assert new_seqs(outcome.new) == [3, 7]
    assert await gaps_of(database) == [(4, 4, 3), (6, 6, 3), (8, 9, 6)]
    # What the card has lost, the agent itself declares: from now on these do move the watermark.
    await plant.store.write([declaration(1, gap_frame(4, 4, 3), gap_frame(6, 6, 3))])
    await plant.store.write([batch(seq, 3) for seq in (8, 9)])
    await advance(database)
    assert (await watermark_of(database), await ledger_of(database)) == (9, [])
    assert await gaps_of(database) == [(4, 4, 3), (6, 6, 3)]
    assert await plant.reasons() == {"disk_cap": "passed"}
    row = await database.fetchrow("SELECT batches_stored, samples_stored FROM watermarks WHERE epoch = $1", EPOCH)
    assert row is not None
    assert tuple(row) == (7, 21)
    await plant.hear(2000, epoch(NEXT, 1, 1))
    await plant.look()
    assert await gaps_of(database) == [(4, 4, 3), (6, 6, 3)]


async def test_delivery_d4_declared_over_abandoned_in_part(database: asyncpg.Connection, plant: Plant) -> None:
    await plant.hear(0, epoch(EPOCH, 9, 27))
    await plant.hear(700, epoch(NEXT, 1, 1))
    await plant.look()
    assert await gaps_of(database) == [(1, 9, 27)]
    await plant.store.write([declaration(1, gap_frame(1, 4, 12))])
    rows = await database.fetch("SELECT seq_from, seq_to, samples, state FROM gaps WHERE epoch = $1 ORDER BY 1", EPOCH)
    assert [tuple(row) for row in rows] == [(1, 4, 12, "declared"), (5, 9, 15, "abandoned")]
    await advance(database)
    assert await watermark_of(database) == 4


async def test_delivery_d4_an_edge_that_is_offline_is_not_abandoned(database: asyncpg.Connection, plant: Plant) -> None:
    await plant.hear(0, epoch(EPOCH, 9, 27))
    await plant.hear(50_000, epoch(NEXT, 1, 1), edge="another")
    await plant.look()
    # A leader that starts anew reads the last heartbeat once more.
    plant.edges = Edges()
    await plant.hear(0, epoch(EPOCH, 9, 27))
    await plant.look()
    assert await gaps_of(database) == []


async def test_delivery_d4_what_is_still_in_the_stream_is_waited_for(
    database: asyncpg.Connection, plant: Plant
) -> None:
    await plant.hear(0, epoch(EPOCH, 3, 3))
    await plant.hear(700, epoch(NEXT, 1, 1))
    await plant.look(last_seq=10, floor=8)
    assert await gaps_of(database) == []
    await plant.store.write([batch(1), batch(2), batch(3)])
    await plant.look(last_seq=500, floor=10)
    assert await gaps_of(database) == []
    assert await database.fetchval("SELECT settled FROM edge_epochs WHERE epoch = $1", EPOCH)


async def test_delivery_d4_an_edge_renamed_takes_its_epochs_along(database: asyncpg.Connection, plant: Plant) -> None:
    await plant.hear(0, epoch(EPOCH, 9, 27), edge="old")
    await plant.hear(5, epoch(EPOCH, 9, 27), epoch(NEXT, 1, 1), edge="new")
    await plant.hear(700, edge="old")
    await plant.look()
    assert await gaps_of(database) == []


async def test_delivery_d4_an_older_agent_that_lists_no_epochs_abandons_none(
    database: asyncpg.Connection, plant: Plant
) -> None:
    await plant.hear(0, epoch(EPOCH, 9, 27))
    await plant.store.write([batch(2, epoch=NEXT)])
    await plant.hear(5000, epochs=None)
    await plant.look()
    await plant.hear(10_000, epochs=None)
    await plant.look()
    assert await gaps_of(database) == await gaps_of(database, NEXT) == []


async def test_delivery_d4_an_epoch_that_never_was_in_a_heartbeat(database: asyncpg.Connection, plant: Plant) -> None:
    """Its edge died before the first one; the ledger alone knows that something is missing."""
    await plant.store.write([batch(seq, 2) for seq in (1, 2, 6)])
    await advance(database)
    await plant.hear(0, epoch(NEXT, 1, 1))
    await plant.look()
    await plant.hear(500, epoch(NEXT, 1, 1))
    await plant.look()
    assert await gaps_of(database) == []
    await plant.hear(700, epoch(NEXT, 1, 1))
    await plant.look()
    assert await gaps_of(database) == [(3, 5, 6)]


async def test_delivery_d4_what_a_closing_left_out_is_void(database: asyncpg.Connection, plant: Plant) -> None:
    await plant.hear(0, epoch(EPOCH, 9, 27))
    await plant.store.write([batch(seq, 3) for seq in (1, 2, 8)])
    closing = {"epoch": EPOCH, "last_seq": 5, "samples": 15}
    await plant.store.write([declaration(1, encode_event(Event("epoch_closed", datetime.now(UTC), data=closing)))])
    await plant.hear(700, epoch(NEXT, 1, 1))
    await plant.look()
    assert await gaps_of(database) == [(3, 5, 9)]


async def test_no_number_that_an_edge_may_claim_stops_the_leader(database: asyncpg.Connection, plant: Plant) -> None:
    """The largest of everything, in every order: nothing is refused for ever, and other edges' watermarks move on."""
    huge, half, last = 1 << 62, 1 << 61, (1 << 63) - 1
    seq, same = 0, frame(1)
    for number in range(1, 9):
        await plant.hear(number, epoch(number, huge, huge), epoch(last, 5, huge), edge=f"e{number}")
        for low, high, samples, base in [
            (1, 2, half, half),
            (3, 4, half, None),
            (5, 6, half, half),
            (7, 8, half, None),
            (9, 10, half, 0),
            (11, huge, half, half),
        ]:
            seq += 1
            if (number + low) % 3:
                said = gap_frame(low, high, samples, epoch=number, base=base)
                await plant.store.write([declaration(seq, said)])
            if number % 2:
                await advance(database)
            await plant.store.write([message(low, [same], epoch=number, base=last if number % 3 else huge - 1)])
    await plant.store.write(
        [message(at, [same], epoch=number, base=last) for number in (1, 2, last) for at in (last, huge, 1)]
    )
    for number in (1, 4, last):
        closing = {"epoch": number, "last_seq": huge, "samples": huge}
        said = encode_event(Event("epoch_closed", datetime.now(UTC), data=closing))
        await plant.store.write([declaration(number, said, epoch=555)])
    for number in range(1, 9):
        await plant.hear(5000, epoch(NEXT, 1, 1), edge=f"e{number}")
    await plant.look()
    await advance(database)
    await plant.look()
    await plant.store.write([batch(1, epoch=NEXT)])
    await advance(database)
    assert await watermark_of(database, NEXT) == 1
    assert (await reconcile(database, timedelta(0))).epochs >= 10
    assert await database.fetchval("SELECT count(*) FROM dead_letters") == 0


async def test_delivery_d4_an_epoch_of_which_nothing_ever_came(database: asyncpg.Connection, plant: Plant) -> None:
    await plant.hear(0, epoch(EPOCH, 4, 40))
    await plant.hear(700, epoch(NEXT, 1, 1))
    await plant.look()
    assert await gaps_of(database) == [(1, 4, 40)]
    assert await watermark_of(database) == 0


@on_both_servers
async def test_delivery_d4_a_card_lost_for_good_on_a_running_service(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    settings = settings_for(postgres_dsn, edges_interval_ms=50, abandon_grace_s=0.5)
    await ingest.prepare(nats_client, settings)
    bucket = await nats_client.jetstream().key_value(names.KV_STATUS)
    async with running_ingest(nats_url, settings, workers=2):
        await bucket.put("hall.e1", heartbeat(epoch(EPOCH, 6, 6)))
        for seq in (1, 2, 4):
            await publish_batch(nats_client, seq, [frame(seq)], base=seq - 1)
        await until(lambda: drained(nats_client))

        async def abandoned() -> bool:
            await bucket.put("hall.e1", heartbeat(epoch(NEXT, 1, 1), boot_id="boot-2"))
            await asyncio.sleep(0.2)
            return await gaps_of(database) == [(3, 3, 1), (5, 6, 2)]

        await until(abandoned)
        await publish_batch(nats_client, 5, [frame(5)], base=4)
        await until(lambda: drained(nats_client))
        assert await gaps_of(database) == [(3, 3, 1), (6, 6, 1)]
    assert await database.fetchval("SELECT count(*) FROM sensor_data") == 4


async def test_buckets_are_made_as_they_should_be(nats_client: Client, postgres_dsn: str) -> None:
    await ingest.prepare(nats_client, settings_for(postgres_dsn))
    js = nats_client.jetstream()
    config = (await js.stream_info(f"KV_{names.KV_CONFIG}")).config
    assert (config.max_msgs_per_subject, config.max_age) == (8, 0)
    assert config.republish is not None
    assert config.republish.dest == f"cncmon.kv.{names.KV_CONFIG}.>"
    assert (await js.stream_info(f"KV_{names.KV_STATUS}")).config.max_msgs_per_subject == 1
