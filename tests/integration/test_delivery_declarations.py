"""Rules B5, A1, D1 and D4 where very much is to be declared: in parts, none of which keeps others waiting for long."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from cncmon_core.events import Event, encode_event
from cncmon_core.names import Origin
from cncmon_ingest import advance as advancing
from cncmon_ingest import gaps, ledger
from cncmon_ingest.abandoned import abandon, enter_freed
from cncmon_ingest.advance import advance
from cncmon_ingest.connection import connect
from cncmon_ingest.decode import Decoded
from cncmon_ingest.errors import OutageError
from cncmon_ingest.reconcile import reconcile
from cncmon_ingest.store import Store
from testkit.gaps import OTHER, batch, declaration, gap_frame, gaps_of, ledger_of, message, new_seqs, watermark_of
from testkit.ingest import EPOCH, frame, replay_all, settings_for, until

MANY = 10_000
"""Declarations that fit into one message."""


@pytest.fixture
async def store(postgres_dsn: str) -> AsyncIterator[Store]:
    made = Store(await connect(postgres_dsn), datetime.now(UTC))
    yield made
    made.close()


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many declarations each transaction has made."""
    made: list[int] = []
    declare = gaps.declare

    async def declaring(connection: Any, declarations: Sequence[gaps.Declaration], *more: Any) -> Any:
        result = await declare(connection, declarations, *more)
        made.append(len(declarations) - len(result[1]))
        return result

    monkeypatch.setattr(gaps, "declare", declaring)
    return made


def at_each_lock(monkeypatch: pytest.MonkeyPatch, what: Callable[[int], Awaitable[None]]) -> None:
    """Have something done each time that a transaction is to lock the watermarks, before it does; counted from 1."""
    lock, number = gaps.lock, 0

    async def locking(connection: asyncpg.Connection) -> None:
        nonlocal number
        number += 1
        await what(number)
        await lock(connection)

    monkeypatch.setattr(gaps, "lock", locking)


def torn(seq: int, first: int, last: int) -> Decoded:
    """A message of a worn log: every third batch is left, of first to last the two before it are missing."""
    return declaration(seq, *(gap_frame(3 * number - 2, 3 * number - 1, 2) for number in range(first, last + 1)))


async def fill(database: asyncpg.Connection, number: int) -> None:
    """Every third batch of the epoch, one sample each, as the ledger has it."""
    await database.execute("INSERT INTO watermarks (epoch, site, edge) VALUES ($1, 'hall', 'e1')", EPOCH)
    await database.execute(
        "INSERT INTO ledger (epoch, seq, sha256, stored, dead, disposition, base) "
        "SELECT $1, 3 * n, '\\x00', 1, 0, 'stored', 3 * n - 1 FROM generate_series(1, $2::bigint) AS n",
        *(EPOCH, number),
    )


# --- B5: declaring -----------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
async def test_delivery_b5_ten_thousand_gaps_in_one_message(
    store: Store, database: asyncpg.Connection, parts: list[int]
) -> None:
    await fill(database, MANY)
    outcome = await store.write([batch(1, epoch=5), torn(1, 1, MANY)])
    assert len(outcome.new) == 2
    assert max(parts) <= gaps.AT_ONCE_MAX
    assert sum(parts) == MANY
    assert await gaps_of(database) == [(3 * number - 2, 3 * number - 1, 2) for number in range(1, MANY + 1)]
    assert await database.fetchval("SELECT count(*) FROM events") == MANY
    assert await ledger_of(database, OTHER) == [1]
    for _ in range(3):
        await advance(database)
    assert (await watermark_of(database), await ledger_of(database)) == (3 * MANY, [])
    assert await database.fetchval("SELECT base FROM watermarks WHERE epoch = $1", EPOCH) == 3 * MANY
    assert (await reconcile(database, timedelta(0))).balanced


@pytest.mark.timeout(300)
async def test_delivery_b5_eight_messages_of_a_thousand_gaps(
    store: Store, database: asyncpg.Connection, parts: list[int]
) -> None:
    messages = [torn(number + 1, 1000 * number + 1, 1000 * (number + 1)) for number in range(8)]
    assert len((await store.write(messages)).new) == 8
    assert max(parts) <= gaps.AT_ONCE_MAX
    assert len(await gaps_of(database)) == 8000
    assert await ledger_of(database, OTHER) == list(range(1, 9))


@pytest.mark.timeout(300)
async def test_delivery_b5_others_commit_between_the_parts(
    postgres_dsn: str, store: Store, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what one of the next parts would have declared: it is stored, and no gap."""
    other = Store(await connect(postgres_dsn), datetime.now(UTC))
    stored = []

    async def write(number: int) -> None:
        seq = 3 * (gaps.AT_ONCE_MAX * number - 5) - 2
        stored.append(seq)
        assert new_seqs((await other.write([batch(seq)])).new) == [seq]

    at_each_lock(monkeypatch, write)
    await store.write([torn(1, 1, 4 * gaps.AT_ONCE_MAX)])
    assert len(stored) == 4
    missing = {seq for low, high, _ in await gaps_of(database) for seq in range(low, high + 1)}
    assert missing == {seq for seq in range(1, 12 * gaps.AT_ONCE_MAX) if seq % 3} - set(stored)
    assert (await reconcile(database, timedelta(0))).unbalanced == []
    other.close()


@pytest.mark.parametrize("at", [1, 2, 4], ids=["before the first", "after the first", "before the last"])
@pytest.mark.timeout(300)
async def test_delivery_b5_who_dies_between_the_parts_leaves_them_to_be_repeated(
    postgres_dsn: str, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    said = torn(1, 1, 4 * gaps.AT_ONCE_MAX)
    dying = Store(await connect(postgres_dsn), datetime.now(UTC))

    async def die(number: int) -> None:
        if number == at:
            dying.close()

    with monkeypatch.context() as patch:
        at_each_lock(patch, die)
        with pytest.raises(OutageError):
            await dying.write([said])
    assert len(await gaps_of(database)) == (at - 1) * gaps.AT_ONCE_MAX
    assert await ledger_of(database, OTHER) == [], "the message's own row comes with the last part"
    assert await database.fetchval("SELECT count(*) FROM events") == 0
    second = Store(await connect(postgres_dsn), datetime.now(UTC))
    assert new_seqs((await second.write([said])).new) == [1]
    assert len(await gaps_of(database)) == 4 * gaps.AT_ONCE_MAX
    assert await database.fetchval("SELECT count(*) FROM events") == 4 * gaps.AT_ONCE_MAX
    assert (await second.write([said])).new == []
    assert await database.fetchval("SELECT count(*) FROM events") == 4 * gaps.AT_ONCE_MAX
    second.close()


async def test_delivery_b2_what_is_declared_under_a_taken_identity_is_declared_by_nobody(
    store: Store, database: asyncpg.Connection, parts: list[int]
) -> None:
    await store.write([torn(1, 1, 1)])
    outcome = await store.write([torn(1, 2, 2 + gaps.AT_ONCE_MAX)])
    assert outcome.new == []
    assert await database.fetchval("SELECT reason FROM dead_letters") == "identity_conflict"
    assert parts == [1]
    await advance(database)
    assert (await store.write([torn(1, 2, 2 + gaps.AT_ONCE_MAX)])).new == []
    assert parts == [1], "nor where the watermark has passed it"


async def test_delivery_b4_a_long_declaration_whose_own_batch_was_taken_for_lost(
    store: Store, database: asyncpg.Connection
) -> None:
    await store.write([declaration(9, gap_frame(1, 3, epoch=OTHER), epoch=78)])
    await advance(database)
    assert await watermark_of(database, OTHER) == 3
    assert new_seqs((await store.write([torn(2, 1, gaps.AT_ONCE_MAX + 1)])).new) == [2]
    assert len(await gaps_of(database)) == gaps.AT_ONCE_MAX + 1
    assert [gap[:2] for gap in await gaps_of(database, OTHER)] == [(1, 1), (3, 3)]


@pytest.mark.parametrize("seed", range(12))
async def test_delivery_b5_in_parts_it_comes_to_the_same(
    postgres_dsn: str, store: Store, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Overlapping declarations over batches, gaps and what was abandoned: the bounds change nothing but the parts."""
    dice = random.Random(seed)
    there = [seq for seq in range(1, 80) if dice.random() < 0.4]
    said = [
        (
            low,
            high,
            2 * (high - low + 1) if dice.random() < 0.7 else None,
            2 * (low - 1) if dice.random() < 0.7 else None,
        )
        for low in [dice.randrange(1, 70) for _ in range(25)]
        for high in [low + dice.randrange(12)]
    ]
    found = []
    for epoch, bounds in ((11, {}), (12, {"AT_ONCE_MAX": 4, "ROWS_MAX": 7, "WORK_MAX": 20})):
        with monkeypatch.context() as patch:
            for name, bound in bounds.items():
                patch.setattr(gaps, name, bound)
            await store.write([batch(seq, 2, epoch=epoch) for seq in there])
            await advance(database)
            await database.execute(
                "INSERT INTO edge_epochs (epoch, site, edge, boot_id, last_seq, accepted_samples, freed_seq, listed) "
                "VALUES ($1, 'hall', 'e1', '', 60, 120, 0, now())",
                epoch,
            )
            await abandon(database, epoch)
            frames = [gap_frame(low, high, samples, epoch=epoch, base=base) for low, high, samples, base in said]
            await store.write([declaration(epoch, *frames)])
        rows = await database.fetch(
            "SELECT seq_from, seq_to, samples, base, state FROM gaps WHERE epoch = $1 ORDER BY 1", epoch
        )
        found.append([tuple(row) for row in rows])
        expected = {seq for low, high, *_ in said for seq in range(low, high + 1)} - set(there)
        expected |= set(range(1, max(60, *there) + 1)) - set(there)
        assert {seq for low, high, *_ in found[-1] for seq in range(low, high + 1)} == expected
    # Rows that touch may have been joined or not.
    states = [{seq: state for low, high, *_, state in rows for seq in range(low, high + 1)} for rows in found]
    assert states[0] == states[1]
    exact = [row for row in found[1] if row[2] is not None]
    assert all(samples == 2 * (high - low + 1) for low, high, samples, *_ in exact)
    for _ in range(2):
        await advance(database)
    assert await watermark_of(database, 11) == await watermark_of(database, 12)


async def test_delivery_b5_declarations_of_many_batches_read_no_more_than_a_bounded_number(
    store: Store, database: asyncpg.Connection, parts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(database, 2000)
    monkeypatch.setattr(gaps, "ROWS_MAX", 300)
    await store.write([declaration(1, gap_frame(1, 6000, 4000, base=0), gap_frame(2, 6010, 4009))])
    assert len(parts) >= 2000 / 300
    found = await gaps_of(database)
    assert found[:-1] == [(3 * number - 2, 3 * number - 1, 2) for number in range(1, 2001)]
    assert found[-1][:2] == (6001, 6010)


# --- A1: closings ------------------------------------------------------------------------------------------------


def closing(epoch: int, last_seq: int, samples: int) -> bytes:
    return encode_event(
        Event("epoch_closed", datetime.now(UTC), data={"epoch": epoch, "last_seq": last_seq, "samples": samples})
    )


async def closed(database: asyncpg.Connection, epoch: int) -> tuple[int | None, ...]:
    row = await database.fetchrow("SELECT closed_seq, closed_samples FROM watermarks WHERE epoch = $1", epoch)
    return tuple(row) if row else ()


async def test_delivery_a1_a_message_that_closes_thousands_of_epochs(
    store: Store, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edge in a crash loop: closed in parts, as gaps are declared."""
    locks = []

    async def count(number: int) -> None:
        locks.append(await database.fetchval("SELECT count(*) FROM watermarks WHERE closed_seq IS NOT NULL"))

    at_each_lock(monkeypatch, count)
    number = 4 * gaps.AT_ONCE_MAX
    said = [closing(1000 + epoch, epoch, 2 * epoch) for epoch in range(number)]
    await store.write([message(1, said, epoch=OTHER, kind="events")])
    assert locks == [gaps.AT_ONCE_MAX * part for part in range(4)]
    assert await closed(database, 1000 + number - 1) == (number - 1, 2 * (number - 1))
    assert await database.fetchval("SELECT count(*) FROM watermarks WHERE closed_seq IS NOT NULL") == number


async def test_delivery_a1_a_closing_never_goes_back(store: Store, database: asyncpg.Connection) -> None:
    """Nor does one that says less make void what the one before has left to be missing."""
    await database.execute(
        "INSERT INTO edge_epochs (epoch, site, edge, boot_id, last_seq, freed_seq, listed) "
        "VALUES ($1, 'hall', 'e1', '', 12, 0, now())",
        EPOCH,
    )
    await abandon(database, EPOCH)
    for seq, (last_seq, samples) in enumerate([(9, 18), (5, 10), (7, 20)], 1):
        await store.write([declaration(seq, closing(EPOCH, last_seq, samples))])
        assert (await closed(database, EPOCH))[0] == 9
        assert await gaps_of(database) == [(1, 9, 18)]
    await store.write([declaration(4, closing(EPOCH, 8, 1), closing(EPOCH, 10, 30), closing(EPOCH, 9, 18))])
    assert await closed(database, EPOCH) == (10, 30)


async def test_delivery_a1_a_closing_makes_void_what_was_abandoned_above_it(
    store: Store, database: asyncpg.Connection
) -> None:
    for epoch in (EPOCH, 11, 12):
        await store.write([batch(seq, 2, epoch=epoch) for seq in (2, 6, 9)])
        await database.execute(
            "INSERT INTO edge_epochs (epoch, site, edge, boot_id, last_seq, accepted_samples, freed_seq, listed) "
            "VALUES ($1, 'hall', 'e1', '', 12, 24, 0, now())",
            epoch,
        )
        await abandon(database, epoch)
        assert await gaps_of(database, epoch) == [(1, 1, 2), (3, 5, 6), (7, 8, 4), (10, 12, 6)]
    await store.write([declaration(1, gap_frame(11, 11, 2))])
    await store.write([declaration(2, closing(EPOCH, 4, 8), closing(11, 7, 14))])
    assert await gaps_of(database) == [(1, 1, 2), (3, 4, 4), (11, 11, 2)], "what the agent itself declared stays"
    assert await gaps_of(database, 11) == [(1, 1, 2), (3, 5, 6), (7, 7, 2)]
    assert await gaps_of(database, 12) == [(1, 1, 2), (3, 5, 6), (7, 8, 4), (10, 12, 6)], "of no other epoch"


async def test_delivery_a1_two_edges_that_close_one_epoch_the_later_names_it(
    store: Store, database: asyncpg.Connection
) -> None:
    now = datetime.now(UTC)
    late = message(1, [closing(EPOCH, 3, 3)], epoch=71, kind="events", edge="new", stored_at=now)
    early = message(1, [closing(EPOCH, 4, 4)], epoch=72, kind="events", edge="old", stored_at=now - timedelta(hours=1))
    await store.write([late, early])
    assert await closed(database, EPOCH) == (4, 4)
    assert await database.fetchval("SELECT edge FROM watermarks WHERE epoch = $1", EPOCH) == "new"
    await store.write([message(2, [frame(2)], edge="old", stored_at=now - timedelta(minutes=1))])
    assert await database.fetchval("SELECT edge FROM watermarks WHERE epoch = $1", EPOCH) == "new"


# --- D1: passing -------------------------------------------------------------------------------------------------


async def test_delivery_d1_a_round_passes_a_bounded_number_of_rows_and_gaps(
    store: Store, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(database, 100)
    said = [gap_frame(low, low + 1, None if low % 2 else 2, base=None) for low in range(1, 300, 3)]
    await store.write([declaration(1, *said)])
    monkeypatch.setattr(advancing, "STEPS_AT_ONCE_MAX", 60)
    monkeypatch.setattr(advancing, "STEPS_OF_AN_EPOCH_MIN", 7)
    marks: list[int] = []
    while await advance(database):
        marks.append(await watermark_of(database) or 0)
        row = await database.fetchrow(
            "SELECT base, batches_stored, samples_stored FROM watermarks WHERE epoch = $1", EPOCH
        )
        assert row is not None
        mark = marks[-1]
        assert tuple(row) == (mark, mark // 3, mark // 3)
        assert await database.fetchval("SELECT count(*) FROM ledger WHERE epoch = $1 AND seq <= $2", EPOCH, mark) == 0
    assert marks[-1] == 300
    steps = [2 * (after - before) / 3 for before, after in zip([0, *marks], marks, strict=False)]
    assert max(steps) <= 61, "in the first round another epoch moves as well"
    assert await database.fetchval("SELECT bool_and(state = 'passed' AND samples = 2) FROM gaps")


async def test_delivery_d1_gaps_one_after_another_are_counted_from_the_first(
    store: Store, database: asyncpg.Connection
) -> None:
    """Three that say different things beside each other, of which the last gets its count from the batch behind it."""
    await store.write([batch(seq, 2) for seq in (1, 8)])
    await store.write(
        [
            declaration(
                1,
                gap_frame(2, 3, 4, reason="dropped"),
                gap_frame(4, 5, 4, reason="lost"),
                gap_frame(6, 7, None, reason="damaged"),
            )
        ]
    )
    await advance(database)
    rows = await database.fetch("SELECT seq_from, samples, base, state FROM gaps ORDER BY 1")
    assert [tuple(row) for row in rows] == [(2, 4, 2, "passed"), (4, 4, 6, "passed"), (6, 4, 10, "passed")]
    assert await watermark_of(database) == 8
    assert await database.fetchval("SELECT base FROM watermarks WHERE epoch = $1", EPOCH) == 16
    await store.write([declaration(2, gap_frame(9, 10), gap_frame(11, 12, 4, reason="lost"))])
    await advance(database)
    assert await watermark_of(database) == 12
    assert await database.fetchval("SELECT base FROM watermarks WHERE epoch = $1", EPOCH) is None, "nobody can tell"
    await store.write([batch(13, 2)])
    await advance(database)
    assert await database.fetchval("SELECT base FROM watermarks WHERE epoch = $1", EPOCH) == 26


# --- D3, D4: what ingest itself finds missing --------------------------------------------------------------------


@pytest.mark.parametrize("freed", [False, True], ids=["abandoned", "database went back"])
async def test_delivery_d4_thousands_of_holes_are_entered_in_parts(
    database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, parts: list[int], freed: bool
) -> None:
    await fill(database, 3000)
    monkeypatch.setattr(gaps, "ROWS_MAX", 500)
    await database.execute(
        "INSERT INTO edge_epochs (epoch, site, edge, boot_id, last_seq, accepted_samples, freed_seq, listed) "
        "VALUES ($1, 'hall', 'e1', '', 9010, 9010, $2, now())",
        *(EPOCH, 9010 if freed else 0),
    )
    settled = []

    async def look(number: int) -> None:
        settled.append(await database.fetchval("SELECT settled FROM edge_epochs"))

    at_each_lock(monkeypatch, look)
    if freed:
        await enter_freed(database)
    else:
        await abandon(database, EPOCH)
        assert not any(settled), "settled with the last part alone"
        assert await database.fetchval("SELECT settled FROM edge_epochs")
    assert len(parts) >= 6
    expected = [(3 * number - 2, 3 * number - 1, 2) for number in range(1, 3001)]
    assert (await gaps_of(database))[:-1] == expected
    assert (await gaps_of(database))[-1] == (9001, 9010, None if freed else 10)
    before = await database.fetch("SELECT * FROM gaps")
    await (enter_freed(database) if freed else abandon(database, EPOCH))
    assert await database.fetch("SELECT * FROM gaps") == before


async def test_delivery_d4_a_closing_between_two_parts_bounds_the_rest(
    store: Store, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(database, 300)
    monkeypatch.setattr(gaps, "ROWS_MAX", 100)
    await database.execute(
        "INSERT INTO edge_epochs (epoch, site, edge, boot_id, last_seq, freed_seq, listed) "
        "VALUES ($1, 'hall', 'e1', '', 900, 0, now())",
        EPOCH,
    )

    async def close(number: int) -> None:
        if number == 3:
            await store.write([declaration(1, closing(EPOCH, 700, 700))])

    with monkeypatch.context() as patch:
        at_each_lock(patch, close)
        await abandon(database, EPOCH)
    assert (await gaps_of(database))[-1][:2] == (700, 700)
    assert (await reconcile(database, timedelta(0))).unbalanced == []


async def test_delivery_c2_a_replayed_message_of_many_declarations(
    store: Store, database: asyncpg.Connection, postgres_dsn: str, parts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    letter = torn(1, 1, gaps.AT_ONCE_MAX + 10)
    letter.bury("refused_by_database", "as a test")
    await store.write([letter])
    committed = []

    async def look(number: int) -> None:
        committed.append(await database.fetchval("SELECT count(*) FROM gaps"))

    replaying = await asyncpg.connect(postgres_dsn)
    with monkeypatch.context() as patch:
        at_each_lock(patch, look)
        (replayed,) = await replay_all(replaying, settings_for("unused"))
    await replaying.close()
    assert (replayed.samples, replayed.error) == (gaps.AT_ONCE_MAX + 10, None)
    assert len(await gaps_of(database)) == gaps.AT_ONCE_MAX + 10
    assert max(parts) <= gaps.AT_ONCE_MAX
    assert committed == [0, gaps.AT_ONCE_MAX], "one transaction held the watermarks for all of it"


async def test_delivery_c2_a_letter_that_is_dead_still_declares_nothing(
    store: Store, database: asyncpg.Connection
) -> None:
    declared = (gap_frame(3 * number - 2, 3 * number - 1, 2) for number in range(1, gaps.AT_ONCE_MAX + 11))
    letter = declaration(1, *declared, b"no frame")
    letter.bury("refused_by_database", "as a test")
    await store.write([letter])
    (replayed,) = await replay_all(database, settings_for("unused"))
    assert (replayed.samples, replayed.error is None) == (0, False)
    assert await gaps_of(database) == []


async def test_delivery_b5_gaps_of_many_epochs_in_one_message(store: Store, database: asyncpg.Connection) -> None:
    said = [gap_frame(low, low + 1, 2, epoch=epoch) for epoch in range(1, 60) for low in (7, 1, 4)]
    await asyncio.gather(store.write([declaration(1, *said)]))
    for epoch in range(1, 60):
        assert await gaps_of(database, epoch) == [(1, 2, 2), (4, 5, 2), (7, 8, 2)]


# --- B1, B5: who waits for whom ----------------------------------------------------------------------------------


async def waits(database: asyncpg.Connection, connection: asyncpg.Connection) -> bool:
    """Whether a session waits for a lock of another."""
    return bool(await database.fetchval("SELECT cardinality(pg_blocking_pids($1)) > 0", connection.get_server_pid()))


async def test_delivery_b5_the_watermark_waits_for_who_takes_a_batch_out_of_a_gap(
    postgres_dsn: str, store: Store, database: asyncpg.Connection
) -> None:
    """Else it would pass the gap as it was, and the pieces that are left of it would never be passed."""
    await store.write([batch(1), batch(6)])
    await store.write([declaration(1, gap_frame(2, 5, 4))])
    worker = await asyncpg.connect(postgres_dsn)
    leader = await asyncpg.connect(postgres_dsn)
    transaction = worker.transaction()
    await transaction.start()
    assert new_seqs((await ledger.enter(worker, [batch(3)], exclusive=False)).new) == [3]
    leading = asyncio.create_task(advance(leader))
    await until(lambda: waits(database, leader), 60)
    await transaction.commit()
    await leading
    while await advance(database):
        continue
    assert (await watermark_of(database), await ledger_of(database)) == (6, [])
    rows = await database.fetch("SELECT seq_from, seq_to, state FROM gaps WHERE epoch = $1 ORDER BY 1", EPOCH)
    assert [tuple(row) for row in rows] == [(2, 2, "passed"), (4, 5, "passed")]
    for connection in (worker, leader):
        await connection.close()


async def test_delivery_d1_what_comes_back_under_the_watermark_takes_it_over_no_hole(
    store: Store, database: asyncpg.Connection
) -> None:
    await store.write([batch(1), batch(6)])
    await store.write([declaration(1, gap_frame(2, 5, 4))])
    while await advance(database):
        continue
    await store.write([batch(3), batch(9)])
    assert await advance(database) == {Origin("hall", "e1")}
    assert (await watermark_of(database), await ledger_of(database)) == (6, [9])


async def test_delivery_b5_samples_are_committed_before_anybody_is_kept_waiting(
    store: Store, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    async def count(number: int) -> None:
        seen.append(await database.fetchval("SELECT count(*) FROM sensor_data"))

    at_each_lock(monkeypatch, count)
    await store.write([declaration(1, gap_frame(5, 6)), batch(1, 3), declaration(2, closing(EPOCH, 9, 9)), batch(2, 3)])
    assert seen == [6]


async def test_delivery_b1_rows_of_the_ledger_are_written_in_the_order_of_their_keys(
    postgres_dsn: str, store: Store, database: asyncpg.Connection
) -> None:
    """Else two workers that have the same batches in hand, one of them the other way round, are a deadlock."""
    other = await asyncpg.connect(postgres_dsn)
    insert = (
        "INSERT INTO ledger (epoch, seq, sha256, stored, dead, disposition) VALUES ($1, $2, '\\x00', 1, 0, 'stored')"
    )
    transaction = other.transaction()
    await transaction.start()
    await other.execute(insert, EPOCH, 1)
    writing = asyncio.create_task(store.write([batch(2), batch(1)]))
    blocked = "SELECT count(*) > 0 FROM pg_stat_activity WHERE $1 = ANY(pg_blocking_pids(pid))"

    async def one_waits() -> bool:
        return bool(await database.fetchval(blocked, other.get_server_pid()))

    await until(one_waits, 60)
    await other.execute(insert, EPOCH, 2)
    await transaction.rollback()
    assert new_seqs((await writing).new) == [1, 2]
    await other.close()
