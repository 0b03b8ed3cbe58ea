"""Rules B4, B5, A1 and A7 on a real database and stream: gaps, and what turns up in them after all."""

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from nats.aio.client import Client
from nats.js.errors import KeyNotFoundError

from cncmon_core import names
from cncmon_core.events import Event, encode_event
from cncmon_core.watermark import decode_watermark
from cncmon_ingest import gaps
from cncmon_ingest.abandoned import abandon
from cncmon_ingest.advance import advance
from cncmon_ingest.connection import connect
from cncmon_ingest.errors import RetryError
from cncmon_ingest.reconcile import reconcile
from cncmon_ingest.store import Outcome, Store
from testkit import ingest
from testkit.fixtures import on_both_servers
from testkit.gaps import (
    OTHER,
    batch,
    declaration,
    gap_frame,
    gaps_of,
    ledger_of,
    message,
    new_seqs,
    watermark_of,
)
from testkit.ingest import EPOCH, drained, frame, publish_batch, running_ingest, settings_for, until
from testkit.waiting import WAIT_S_MAX


@pytest.fixture
async def store(postgres_dsn: str) -> AsyncIterator[Store]:
    made = Store(await connect(postgres_dsn), datetime.now(UTC))
    yield made
    made.close()


async def patiently(store: Store, *messages: Any) -> Outcome:
    """Write as a worker does: what lost against another transaction is tried again."""
    while True:
        try:
            return await store.write(messages)
        except RetryError:
            await asyncio.sleep(0)


async def stored(database: asyncpg.Connection) -> list[int]:
    """Return the seq of the batch of every stored sample."""
    rows = await database.fetch("SELECT active_program_line / 1000 AS seq FROM sensor_data ORDER BY 1")
    return [row["seq"] for row in rows]


async def totals(database: asyncpg.Connection) -> dict[str, int]:
    """Return what reconciling adds up, of one epoch."""
    row = await database.fetchrow(
        """
        SELECT batches_stored + (SELECT count(*) FROM ledger l WHERE l.epoch = w.epoch) AS batches,
               samples_stored + (SELECT coalesce(sum(stored), 0) FROM ledger l WHERE l.epoch = w.epoch) AS samples,
               (SELECT coalesce(sum(seq_to - seq_from + 1), 0) FROM gaps g WHERE g.epoch = w.epoch) AS gap_batches,
               (SELECT coalesce(sum(g.samples), 0) FROM gaps g WHERE g.epoch = w.epoch) AS gap_samples
        FROM watermarks w WHERE epoch = $1
        """,
        EPOCH,
    )
    assert row is not None
    return {name: int(value) for name, value in row.items()}


async def told_to(client: Client, key: str) -> dict[int, int]:
    """Return epoch → watermark as an edge is told."""
    try:
        entry = await (await client.jetstream().key_value(names.KV_WATERMARK)).get(key)
    except KeyNotFoundError:
        return {}
    return decode_watermark(entry.value or b"").epochs


# --- B5: declaring -----------------------------------------------------------------------------------------------


@on_both_servers
async def test_delivery_b5_only_what_is_above_the_watermark_and_in_no_ledger_row_is_a_gap(
    store: Store, database: asyncpg.Connection
) -> None:
    await store.write([batch(seq, 2) for seq in (1, 2, 3, 6, 9)])
    await advance(database)
    await store.write([declaration(1, gap_frame(1, 10, 20))])
    # Counts between batches that are here follow from theirs; the last one from the declaration's.
    assert await gaps_of(database) == [(4, 5, 4), (7, 8, 4), (10, 10, None)]
    assert await ledger_of(database) == [6, 9]
    assert await database.fetchval("SELECT count(*) FROM events WHERE type = 'gap'") == 1


async def test_delivery_b5_a_gap_in_the_future_of_a_watermark_is_counted_exactly(
    store: Store, database: asyncpg.Connection
) -> None:
    await store.write([batch(seq, 2) for seq in (1, 2, 3, 6)])
    await advance(database)
    await store.write([declaration(1, gap_frame(4, 9, 12))])
    assert await gaps_of(database) == [(4, 5, 4), (7, 9, 6)]


async def test_delivery_b5_an_edge_that_knows_only_how_it_ends_is_counted_from_the_watermark(
    store: Store, database: asyncpg.Connection
) -> None:
    await store.write([batch(seq, 2) for seq in (1, 2, 3)])
    await advance(database)
    await store.write([declaration(1, gap_frame(2, 9, None, end=18))])
    assert await gaps_of(database) == [(4, 9, 12)]


@on_both_servers
async def test_delivery_b5_said_again_it_changes_nothing(store: Store, database: asyncpg.Connection) -> None:
    await store.write([declaration(1, gap_frame(1, 4, 40))])
    before = await database.fetch("SELECT * FROM gaps")
    await store.write([declaration(2, gap_frame(1, 4, 40), gap_frame(2, 3, 20))])
    assert await database.fetch("SELECT * FROM gaps") == before
    await store.write([declaration(3, gap_frame(1, 8, 80))])
    assert await gaps_of(database) == [(1, 8, 80)], "what touches it and says the same is one gap"
    await advance(database)
    assert await watermark_of(database) == 8
    await store.write([declaration(4, gap_frame(1, 8, 80), gap_frame(8, 10, 30, base=70))])
    assert await gaps_of(database) == [(1, 8, 80), (9, 10, 20)]


async def test_delivery_b5_a_gap_that_grows_before_anything_around_it_is_known(
    store: Store, database: asyncpg.Connection
) -> None:
    for seq, (high, samples) in enumerate([(9, 50), (9, 50), (12, 90), (20, 100)], 1):
        await store.write([declaration(seq, gap_frame(5, high, samples))])
        assert await gaps_of(database) == [(5, high, samples)]


@on_both_servers
async def test_delivery_b5_the_watermark_passes_ledger_rows_and_gaps(
    store: Store, database: asyncpg.Connection
) -> None:
    await store.write([batch(seq, 3) for seq in (1, 4, 5, 8, 12)])
    await store.write([declaration(1, gap_frame(2, 3, 6), gap_frame(6, 7, 6))])
    await store.write([declaration(2, gap_frame(9, 10))])
    assert await advance(database) >= {names.Origin("hall", "e1")}
    assert await watermark_of(database) == 10
    assert await ledger_of(database) == [12]
    assert await totals(database) == {"batches": 5, "samples": 15, "gap_batches": 6, "gap_samples": 12}
    await store.write([batch(11, 3)])
    await advance(database)
    assert await watermark_of(database) == 12
    assert await database.fetchval("SELECT base FROM watermarks WHERE epoch = $1", EPOCH) == 36
    assert await advance(database) == set(), "and rests there"


async def test_delivery_b5_a_gap_of_unknown_count_gets_it_from_its_neighbours(
    store: Store, database: asyncpg.Connection
) -> None:
    await store.write([declaration(1, gap_frame(3, 4))])
    await store.write([batch(seq, 5) for seq in (1, 2, 5)])
    await advance(database)
    assert await watermark_of(database) == 5
    assert await gaps_of(database) == [(3, 4, 10)]


async def test_delivery_b5_a_gap_of_any_length_is_one_row(store: Store, database: asyncpg.Connection) -> None:
    async with asyncio.timeout(WAIT_S_MAX):
        await store.write([declaration(1, gap_frame(1, 1 << 62))])
        await advance(database)
        assert await watermark_of(database) == 1 << 62
        assert new_seqs((await store.write([batch(7), batch(10**9)])).new) == [7, 10**9]
        await advance(database)
    assert await gaps_of(database) == [(1, 6, 6), (8, 10**9 - 1, 10**9 - 8), (10**9 + 1, 1 << 62, None)]
    assert await watermark_of(database) == 1 << 62
    assert await ledger_of(database) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"seq_from": 9, "seq_to": 8},
        {"seq_to": (1 << 62) + 1},
        {"seq_to": 1 << 70},
        {"epoch": 1 << 63},
        {"epoch": 0},
        {"seq_from": 0},
        {"seq_from": None},
        {"samples": -1},
        {"samples": 1 << 62},
        {"samples": "many"},
        {"base": 1 << 62},
        {"reason": ""},
        {"reason": "x" * 65},
        {"reason": 7},
    ],
    ids=str,
)
async def test_delivery_b5_a_declaration_that_makes_no_sense_is_a_dead_letter(
    store: Store, database: asyncpg.Connection, changes: dict[str, Any]
) -> None:
    sound = {"epoch": EPOCH, "seq_from": 1, "seq_to": 5, "samples": 1, "reason": "lost"}
    event = encode_event(Event("gap", datetime.now(UTC), data=sound | changes))
    await store.write([declaration(1, event, gap_frame(7, 8))])
    assert await database.fetchval("SELECT reason FROM dead_letters") == "invalid_field"
    assert await gaps_of(database) == [(7, 8, None)], "and its neighbour counts"
    assert await ledger_of(database, OTHER) == [1]


async def test_delivery_b5_counts_that_no_database_could_add_up_become_unknown(
    store: Store, database: asyncpg.Connection
) -> None:
    for seq in range(1, 8):
        await store.write([declaration(seq, gap_frame(seq, seq, 1 << 61, reason=f"claim {seq}"))])
    await advance(database)
    assert await watermark_of(database) == 7
    assert await database.fetchval("SELECT base FROM watermarks WHERE epoch = $1", EPOCH) is None
    await store.write(
        [declaration(9, gap_frame(20, 20, 1 << 61), gap_frame(21, 21, 1 << 61), gap_frame(22, 22, 1 << 61))]
    )
    await store.write([declaration(10, gap_frame(23, 23, 1 << 61), gap_frame(24, 24, 1 << 61))])
    assert [gap[:2] for gap in await gaps_of(database)][-1] == (20, 24)
    assert (await reconcile(database, timedelta(0))).unbalanced == []


@pytest.mark.parametrize("changes", [{"epoch": 1 << 63}, {"last_seq": 1 << 63}, {"samples": 1 << 80}], ids=str)
async def test_delivery_a1_a_closing_that_no_database_can_hold_is_a_dead_letter(
    store: Store, database: asyncpg.Connection, changes: dict[str, int]
) -> None:
    data = {"epoch": 77, "last_seq": 1, "samples": 1} | changes
    await store.write([declaration(1, encode_event(Event("epoch_closed", datetime.now(UTC), data=data)))])
    assert await database.fetchval("SELECT reason FROM dead_letters") == "invalid_field"


@on_both_servers
async def test_delivery_b5_a_batch_stored_at_the_same_time_is_not_in_a_gap(
    postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """Whoever is first: the other sees it. Neither lost between them nor in both."""
    stores = [Store(await connect(postgres_dsn), datetime.now(UTC)) for _ in range(3)]
    for number in range(40):
        epoch = 1000 + number
        outcomes = await asyncio.gather(
            patiently(stores[0], *(batch(seq, epoch=epoch) for seq in (1, 3))),
            patiently(stores[1], declaration(number + 1, gap_frame(1, 4, epoch=epoch))),
            patiently(stores[2], *(batch(seq, epoch=epoch) for seq in (4, 3))),
            advance(database),
        )
        assert sorted(new_seqs(outcomes[0].new) + new_seqs(outcomes[2].new)) == [1, 3, 4]
        await advance(database)
        assert [gap[:2] for gap in await gaps_of(database, epoch)] == [(2, 2)]
        assert await watermark_of(database, epoch) == 4
    for each in stores:
        each.close()


async def test_delivery_b5_declarations_and_busy_workers_do_not_deadlock(
    postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """Workers that share the rows of the very epochs that others declare gaps of and close."""
    stores = [Store(await connect(postgres_dsn), datetime.now(UTC)) for _ in range(4)]
    retries = 0

    async def work(number: int, store: Store) -> None:
        nonlocal retries
        dice = random.Random(number)
        for step in range(60):
            epoch = dice.choice((1, 2, 3))
            closing = encode_event(
                Event("epoch_closed", datetime.now(UTC), data={"epoch": epoch, "last_seq": 9, "samples": 9})
            )
            todo = [batch(1 + step * 4 + number, epoch=epoch), batch(1 + step * 4 + number, epoch=4 - epoch)]
            if step % 3 == 0:
                todo.append(
                    declaration(step * 4 + number + 1, gap_frame(step, step + 3, epoch=epoch) if step else closing)
                )
            while True:
                try:
                    await store.write(todo)
                    break
                except RetryError:
                    retries += 1

    async def lead() -> None:
        while True:
            await advance(database)
            await asyncio.sleep(0.002)

    leading = asyncio.create_task(lead())
    async with asyncio.timeout(WAIT_S_MAX):
        await asyncio.gather(*(work(number, store) for number, store in enumerate(stores)))
    leading.cancel()
    await asyncio.gather(leading, return_exceptions=True)
    assert retries <= 2
    for each in stores:
        each.close()


# --- B4: what turns up in a gap ----------------------------------------------------------------------------------


@on_both_servers
async def test_delivery_b4_a_batch_in_a_gap_is_new_whatever_the_watermark_says(
    store: Store, database: asyncpg.Connection
) -> None:
    await store.write([batch(seq, 2) for seq in (1, 6)])
    await store.write([declaration(1, gap_frame(2, 5, 8))])
    await advance(database)
    assert await watermark_of(database) == 6
    assert await ledger_of(database) == []

    outcome = await store.write([batch(seq, 2) for seq in (1, 3, 6)])
    assert new_seqs(outcome.new) == [3]
    assert await gaps_of(database) == [(2, 2, 2), (4, 5, 4)]
    assert await stored(database) == [1, 1, 3, 3, 6, 6]
    for _ in range(2):
        again = await store.write([batch(3, 2)])
        assert (again.new, new_seqs(again.known)) == ([], [3]), "a second delivery is known, before and after pruning"
        assert await advance(database) in ({names.Origin("hall", "e1")}, set())
        assert await ledger_of(database) == []
    assert await stored(database) == [1, 1, 3, 3, 6, 6]
    assert await totals(database) == {"batches": 3, "samples": 6, "gap_batches": 3, "gap_samples": 6}
    assert await watermark_of(database) == 6


async def test_delivery_b4_a_batch_in_a_gap_above_the_watermark(store: Store, database: asyncpg.Connection) -> None:
    await store.write([declaration(1, gap_frame(2, 3, 4))])
    await store.write([batch(2, 2)])
    assert await gaps_of(database) == [(3, 3, 2)]
    await store.write([batch(seq, 2) for seq in (1, 2, 4)])
    await advance(database)
    assert await watermark_of(database) == 4
    assert await totals(database) == {"batches": 3, "samples": 6, "gap_batches": 1, "gap_samples": 2}
    assert await stored(database) == [1, 1, 2, 2, 4, 4]


@on_both_servers
@pytest.mark.parametrize("passed", [True, False])
async def test_delivery_b4_two_workers_take_from_one_gap(
    postgres_dsn: str, database: asyncpg.Connection, passed: bool
) -> None:
    """The same and other batches of one gap, in any order: each is stored once, and the gap holds the others."""
    stores = [Store(await connect(postgres_dsn), datetime.now(UTC)) for _ in range(3)]
    dice = random.Random(7)
    await stores[0].write([declaration(1, gap_frame(1 if passed else 2, 60, 120 if passed else 118))])
    await advance(database)
    turned_up = [seq for seq in range(3, 60) if seq % 5]

    async def work(store: Store) -> list[int]:
        order = dice.sample(turned_up, len(turned_up))
        mine = []
        for at in range(0, len(order), 4):
            mine += new_seqs((await patiently(store, *(batch(seq, 2) for seq in order[at : at + 4]))).new)
        return mine

    parts = await asyncio.gather(*(work(store) for store in stores))
    assert sorted(seq for part in parts for seq in part) == turned_up
    assert await stored(database) == sorted(2 * turned_up)
    await advance(database)
    assert await watermark_of(database) == (60 if passed else 0)
    left = {seq for low, high, _ in await gaps_of(database) for seq in range(low, high + 1)}
    assert left == set(range(1 if passed else 2, 61)) - set(turned_up)
    assert sum(samples or 0 for _, _, samples in await gaps_of(database)) == 2 * len(left)
    for each in stores:
        each.close()


async def test_delivery_b4_who_waits_for_a_gap_that_is_being_cut_finds_its_pieces(
    postgres_dsn: str, database: asyncpg.Connection, store: Store
) -> None:
    await store.write([declaration(1, gap_frame(1, 9, 9))])
    await advance(database)
    other = await asyncpg.connect(postgres_dsn)
    transaction = other.transaction()
    await transaction.start()
    assert await gaps.take_out(other, {(EPOCH, 3): (2, 1)}) == {(EPOCH, 3)}
    waiting = asyncio.create_task(store.write([batch(6)]))
    await asyncio.sleep(0.3)
    assert not waiting.done(), "waits for the other's row"
    await transaction.commit()
    assert new_seqs((await waiting).new) == [6]
    assert await gaps_of(database) == [(1, 2, 2), (4, 5, 2), (7, 9, 3)]
    await other.close()


async def test_delivery_b4_a_write_that_fails_leaves_the_gap_as_it_was(
    store: Store, database: asyncpg.Connection, postgres_dsn: str
) -> None:
    await store.write([declaration(1, gap_frame(1, 9, 9))])
    await advance(database)
    await database.execute("ALTER TABLE sensor_data ADD CONSTRAINT no CHECK (active_program_line < 5000)")
    with pytest.raises(Exception, match="23514"):
        await store.write([batch(3), batch(6)])
    assert await gaps_of(database) == [(1, 9, 9)]
    assert await ledger_of(database) == []
    await database.execute("ALTER TABLE sensor_data DROP CONSTRAINT no")
    assert new_seqs((await store.write([batch(3), batch(6)])).new) == [3, 6]


async def test_delivery_b4_taken_out_it_is_declared_missing_no_more(store: Store, database: asyncpg.Connection) -> None:
    """An agent that has not heard yet repeats its declaration."""
    await store.write([declaration(1, gap_frame(1, 5, 5))])
    await store.write([batch(3)])
    await store.write([declaration(2, gap_frame(1, 5, 5))])
    assert [gap[:2] for gap in await gaps_of(database)] == [(1, 2), (4, 5)]
    await advance(database)
    await store.write([declaration(3, gap_frame(1, 5, 5))])
    assert [gap[:2] for gap in await gaps_of(database)] == [(1, 2), (4, 5)]
    assert (await watermark_of(database), await stored(database)) == (5, [3])


@on_both_servers
@pytest.mark.parametrize("seed", range(3))
async def test_delivery_b4_killed_anywhere_nothing_is_lost_doubled_or_in_both(
    postgres_dsn: str, database: asyncpg.Connection, seed: int
) -> None:
    """Workers that store, store again and declare at random, a leader, and connections that end at any moment."""
    dice = random.Random(seed)
    top, size = 50, 2

    async def work(number: int) -> None:
        store = Store(await connect(postgres_dsn), datetime.now(UTC))
        for step in range(40):
            low = dice.randrange(1, top)
            high = min(top, low + dice.randrange(8))
            todo = [batch(at, size) for at in dice.sample(range(1, top + 1), 3) if at % 5]
            if step % 3 == 0:
                samples = size * (high - low + 1)
                said = declaration(step + 1, gap_frame(low, high, samples, base=size * (low - 1)), epoch=number)
                todo.append(said)
            task = asyncio.create_task(patiently(store, *todo))
            if dice.random() < 0.3:
                await asyncio.sleep(dice.random() * 0.02)
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if not store.usable:
                store = Store(await connect(postgres_dsn), datetime.now(UTC))
        store.close()

    async def lead() -> None:
        while True:
            leading = await asyncpg.connect(postgres_dsn)
            for _ in range(dice.randrange(1, 20)):
                await advance(leading)
            leading.terminate()

    leader = asyncio.create_task(lead())
    await asyncio.gather(*(work(number) for number in (11, 12, 13)))
    leader.cancel()
    await asyncio.gather(leader, return_exceptions=True)
    last = Store(await connect(postgres_dsn), datetime.now(UTC))
    await last.write([batch(at, size) for at in range(1, top + 1) if at % 5 and at % 7])
    await last.write([declaration(1, gap_frame(1, top, size * top, base=0), epoch=14)])
    last.close()
    await advance(database)
    assert await watermark_of(database) == top
    assert await ledger_of(database) == []
    there = await stored(database)
    missing = {seq for low, high, _ in await gaps_of(database) for seq in range(low, high + 1)}
    assert sorted(there) == sorted(2 * list(set(there))), "each once"
    assert set(there) | missing == set(range(1, top + 1))
    assert not set(there) & missing
    assert (await reconcile(database, timedelta(0))).unbalanced == []


# --- A1: closings ------------------------------------------------------------------------------------------------


async def test_delivery_a1_what_lies_above_a_closing_is_void_and_no_gap(
    store: Store, database: asyncpg.Connection
) -> None:
    """After a power cut the stream may have batches that the edge did not recover: stored, the rest is nobody's."""
    await store.write([batch(seq) for seq in (1, 2, 5)])
    closing = Event("epoch_closed", datetime.now(UTC), data={"epoch": EPOCH, "last_seq": 2, "samples": 2})
    await store.write([declaration(1, encode_event(closing))])
    await advance(database)
    assert await gaps_of(database) == []
    assert (await watermark_of(database), await ledger_of(database)) == (2, [5])
    assert new_seqs((await store.write([batch(4), batch(5)])).new) == [4], "what comes of it is stored"


async def test_delivery_a1_a_closing_that_can_not_tell_its_samples_leaves_them_unknown(
    store: Store, database: asyncpg.Connection
) -> None:
    def closing(last_seq: int, samples: int | None) -> bytes:
        data = {"epoch": EPOCH, "last_seq": last_seq, "samples": samples}
        return encode_event(Event("epoch_closed", datetime.now(UTC), data=data))

    async def closed() -> tuple[int, int | None]:
        row = await database.fetchrow("SELECT closed_seq, closed_samples FROM watermarks WHERE epoch = $1", EPOCH)
        assert row is not None
        return row["closed_seq"], row["closed_samples"]

    await store.write([batch(1, 2)])
    await database.execute(
        "INSERT INTO edge_epochs (epoch, site, edge, boot_id, last_seq, accepted_samples, freed_seq, listed) "
        "VALUES ($1, 'hall', 'e1', '', 9, 18, 0, now() - INTERVAL '1 day')",
        EPOCH,
    )
    await abandon(database, EPOCH)
    assert await gaps_of(database) == [(2, 9, 16)]
    await store.write([declaration(1, closing(4, None))])
    assert (await closed(), await gaps_of(database)) == ((4, None), [(2, 4, None)])
    await store.write([declaration(2, closing(3, 6), closing(4, 8), closing(4, None))])
    assert await closed() == (4, 8)
    await store.write([declaration(3, closing(3, 6))])
    assert await closed() == (4, 8), "one that says less takes nothing back"
    await store.write([declaration(4, closing(5, None))])
    assert await closed() == (5, None)


# --- on a running service ----------------------------------------------------------------------------------------


@on_both_servers
async def test_delivery_a7_a_declared_gap_frees_the_edge(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)
    async with running_ingest(nats_url, settings, workers=2):
        for seq in (1, 2, 6, 7):
            await publish_batch(nats_client, seq, [frame(seq)])
        await until(lambda: drained(nats_client))
        for seq in (1, 2):
            await publish_batch(nats_client, seq, [gap_frame(3, 5, 30)], epoch=OTHER, kind="events")

        async def told() -> bool:
            return await told_to(nats_client, "hall.e1") == {EPOCH: 7, OTHER: 2}

        await until(told)
        await publish_batch(nats_client, 4, [frame(4)])
        await until(lambda: drained(nats_client))
    assert [gap[:2] for gap in await gaps_of(database)] == [(3, 3), (5, 5)]
    assert await database.fetchval("SELECT count(*) FROM sensor_data") == 5


# --- renamed edges -----------------------------------------------------------------------------------------------


async def test_delivery_a1_an_epoch_is_told_under_the_name_it_arrives_under_last(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    settings = settings_for(postgres_dsn)
    await ingest.prepare(nats_client, settings)

    async def told(key: str, seq: int) -> bool:
        return (await told_to(nats_client, key)).get(EPOCH) == seq

    async with running_ingest(nats_url, settings, workers=2):
        await publish_batch(nats_client, 1, [frame(1)], edge="old")
        await publish_batch(nats_client, 2, [frame(2)], edge="old")
        await until(lambda: told("hall.old", 2))
        # Sent again under the new name, and known: that alone must do.
        await publish_batch(nats_client, 2, [frame(2)], edge="new")
        await until(lambda: _named(database, "new"))
        await until(lambda: told("hall.new", 2))
        await publish_batch(nats_client, 3, [frame(3)], edge="new")
        await until(lambda: told("hall.new", 3))
    assert await database.fetchval("SELECT count(*) FROM sensor_data") == 3


async def _named(database: asyncpg.Connection, edge: str) -> bool:
    return bool(await database.fetchval("SELECT edge FROM watermarks WHERE epoch = $1", EPOCH) == edge)


async def test_delivery_a1_a_message_of_before_does_not_take_the_name_back(
    store: Store, database: asyncpg.Connection
) -> None:
    now = datetime.now(UTC)
    await store.write([batch(1, edge="old")])
    await store.write([message(2, [frame(2)], edge="new", stored_at=now)])
    await store.write([message(3, [frame(3)], edge="old", stored_at=now - timedelta(seconds=1))])
    assert await _named(database, "new")
    await store.write([message(4, [frame(4)], edge="old", stored_at=now + timedelta(seconds=1))])
    assert await _named(database, "old")
