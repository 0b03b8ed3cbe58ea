"""Rules A1, B1, B4 and D1 where an edge is in a crash loop: closed, delivered epochs are folded, none is forgotten."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import asyncpg
import pytest

from cncmon_core.events import Event, encode_event
from cncmon_ingest import folded, ledger
from cncmon_ingest.abandoned import Abandoned, enter_freed
from cncmon_ingest.advance import advance
from cncmon_ingest.connection import connect
from cncmon_ingest.decode import Decoded
from cncmon_ingest.folded import fold
from cncmon_ingest.reconcile import Books, reconcile
from cncmon_ingest.store import Store
from testkit import gaps as kit
from testkit.fixtures import on_both_servers
from testkit.gaps import declaration, gap_frame, gaps_of, ledger_of, message, new_seqs, watermark_of
from testkit.ingest import EPOCH, frame

STARTS = 5000
LATER = 1 << 20
"""The epoch in which closings travel."""


@pytest.fixture
async def store(postgres_dsn: str) -> AsyncIterator[Store]:
    made = Store(await connect(postgres_dsn), datetime.now(UTC))
    yield made
    made.close()


@cache
def _made(epoch: int, seq: int) -> Decoded:
    if seq == 3:
        return message(3, [frame(1), b"{"], epoch=epoch, base=4)
    return kit.batch(seq, 2, epoch=epoch)


def batch(seq: int, epoch: int = EPOCH) -> Decoded:
    """A batch of two samples, the third's second one dead. Each time the same bytes: another hash is another batch."""
    return _made(epoch, seq)


def closing(epoch: int, last_seq: int, samples: int) -> bytes:
    data = {"epoch": epoch, "last_seq": last_seq, "samples": samples}
    return encode_event(Event("epoch_closed", datetime.now(UTC), data=data))


async def delivered(store: Store, database: asyncpg.Connection, *epochs: int) -> None:
    """Epochs of three batches of two samples, one frame of which is dead, all delivered; closed, and days ago."""
    for epoch in epochs:
        await store.write([batch(seq, epoch) for seq in (1, 2, 3)])
    closings = [closing(epoch, 3, 6) for epoch in epochs]
    await store.write([message(1, closings, epoch=LATER, kind="events")])
    await advance(database)
    await grow_old(database)


async def grow_old(database: asyncpg.Connection) -> None:
    await database.execute("UPDATE watermarks SET advanced = now() - INTERVAL '2 days' WHERE epoch < $1", LATER)


async def fold_all(database: asyncpg.Connection) -> list[int]:
    """Fold until there is nothing to be folded; return how many at a time."""
    numbers = []
    while number := await fold(database):
        numbers.append(number)
    return numbers


async def samples_of(database: asyncpg.Connection) -> int:
    found: int = await database.fetchval("SELECT count(*) FROM sensor_data")
    return found


async def left(database: asyncpg.Connection) -> list[int]:
    rows = await database.fetch("SELECT epoch FROM watermarks WHERE epoch < $1 ORDER BY 1", LATER)
    return [row["epoch"] for row in rows]


async def books_of(database: asyncpg.Connection) -> Books:
    found = await reconcile(database, timedelta(0))
    assert found.balanced, found.unbalanced
    return found


async def test_delivery_d1_a_crash_loop_leaves_two_numbers_a_start(store: Store, database: asyncpg.Connection) -> None:
    await database.execute(
        "INSERT INTO watermarks (epoch, site, edge, seq, base, batches_stored, samples_stored, closed_seq, "
        "closed_samples, advanced) "
        "SELECT n, 'hall', 'e' || n % 3, n % 7, 10 * (n % 7), n % 7, 10 * (n % 7), n % 7, 10 * (n % 7), "
        "now() - INTERVAL '2 days' FROM generate_series(1, $1::bigint) AS n",
        STARTS,
    )
    await database.execute(
        "INSERT INTO edge_epochs (epoch, site, edge, boot_id, last_seq, accepted_samples, freed_seq, listed, settled) "
        "SELECT epoch, site, edge, 'b' || epoch, seq, closed_samples, seq, advanced, true FROM watermarks"
    )
    await delivered(store, database, 6001, 6002)
    before = await books_of(database)
    of_one = await reconcile(database, timedelta(0), ("hall", "e1"))
    numbers = await fold_all(database)
    assert sum(numbers) == STARTS + 2
    assert max(numbers) <= folded.AT_ONCE_MAX
    assert await left(database) == []
    assert await database.fetchval("SELECT count(*) FROM edge_epochs") == 0
    assert await database.fetchval("SELECT count(*) FROM folded_epochs") == STARTS + 2
    assert await database.fetchval("SELECT count(*) FROM folded_totals") == 3
    assert await books_of(database) == before
    assert await reconcile(database, timedelta(0), ("hall", "e1")) == of_one


@on_both_servers
async def test_delivery_b1_a_card_that_comes_back_after_its_epoch_was_folded(
    store: Store, database: asyncpg.Connection
) -> None:
    await delivered(store, database, EPOCH, 11)
    assert await fold_all(database) == [2]
    before, samples = await books_of(database), await samples_of(database)
    for _ in range(2):
        outcome = await store.write([batch(1), batch(2), batch(3)])
        assert (outcome.new, new_seqs(outcome.known)) == ([], [1, 2, 3])
    assert (await samples_of(database), await ledger_of(database)) == (samples, [])
    assert await watermark_of(database) == 3
    assert (await books_of(database)).stored_samples == before.stored_samples
    assert (await books_of(database)).epochs == before.epochs

    assert new_seqs((await store.write([batch(2), batch(4), batch(6)])).new) == [4, 6]
    await advance(database)
    assert (await watermark_of(database), await ledger_of(database)) == (4, [6])
    again = await reconcile(database, timedelta(0))
    assert (again.epochs, again.accepted_batches) == (before.epochs, before.accepted_batches + 2)
    assert again.stored_samples == before.stored_samples + 4
    assert again.balanced, again.unbalanced

    await store.write([declaration(1, gap_frame(5, 5, 2), closing(EPOCH, 6, 12), epoch=78)])
    await advance(database)
    assert await watermark_of(database) == 6
    assert (await store.write([batch(seq) for seq in (1, 4, 6)])).new == []
    await grow_old(database)
    assert await fold(database) == 0, "a gap keeps its epoch"
    assert new_seqs((await store.write([batch(5)])).new) == [5]
    await advance(database)
    full = await books_of(database)
    assert full.accepted_batches == before.accepted_batches + 4, "and the message of the gap"
    await grow_old(database)
    assert await fold_all(database) == [1]
    assert await database.fetchval("SELECT seq FROM folded_epochs WHERE epoch = $1", EPOCH) == 6
    assert await books_of(database) == full
    assert (await store.write([batch(seq) for seq in range(1, 7)])).new == []
    assert await samples_of(database) == samples + 6


async def test_delivery_b1_folded_while_a_worker_is_about_to_read_the_watermark(
    store: Store, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ledger rows are there already, and seen by nobody."""
    await delivered(store, database, EPOCH)
    read = ledger._watermarks

    async def folding(connection: asyncpg.Connection, messages: Any) -> Any:
        assert await fold(database) == 1
        return await read(connection, messages)

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "_watermarks", folding)
        assert new_seqs((await store.write([batch(2), batch(4)])).new) == [4]
    await advance(database)
    assert (await watermark_of(database), await ledger_of(database)) == (4, [])
    assert (await books_of(database)).stored_samples == 7


async def test_delivery_b1_a_worker_that_shares_the_row_is_waited_for(
    postgres_dsn: str, store: Store, database: asyncpg.Connection
) -> None:
    """What it stores meanwhile keeps its epoch from being folded."""
    await delivered(store, database, EPOCH, 11)
    other = await asyncpg.connect(postgres_dsn)
    transaction = other.transaction()
    await transaction.start()
    entered = await ledger.enter(other, [batch(4)], exclusive=False)
    assert new_seqs(entered.new) == [4]
    await database.execute("SET lock_timeout = '200ms'")
    with pytest.raises(asyncpg.LockNotAvailableError):
        await fold(database)
    await transaction.commit()
    await other.close()
    assert await fold_all(database) == [1]
    assert await left(database) == [EPOCH]


async def test_delivery_b1_workers_of_the_version_before_find_the_watermark_too(
    store: Store, database: asyncpg.Connection
) -> None:
    """They know of no folded epochs, and insert the row as they always did."""
    await delivered(store, database, EPOCH)
    await fold_all(database)
    insert = (
        "INSERT INTO watermarks (epoch, site, edge) SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[]) "
        "ORDER BY 1 ON CONFLICT DO NOTHING"
    )
    for _ in range(2):
        await database.execute(insert, [EPOCH, 99], ["hall", "hall"], ["e1", "e1"])
    rows = await database.fetch(
        "SELECT epoch, seq, closed_seq, base FROM watermarks WHERE epoch < $1 ORDER BY 1", LATER
    )
    assert [tuple(row) for row in rows] == [(99, 0, None, 0), (EPOCH, 3, 3, None)]


async def test_delivery_a1_a_closing_or_a_gap_of_a_folded_epoch(store: Store, database: asyncpg.Connection) -> None:
    await delivered(store, database, EPOCH, 11, 12)
    await fold_all(database)
    before = await books_of(database)
    await store.write(
        [declaration(1, closing(EPOCH, 3, 6), gap_frame(1, 3, 6, epoch=11), gap_frame(2, 5, 8, epoch=12))]
    )
    await advance(database)
    assert [await watermark_of(database, epoch) for epoch in (EPOCH, 11, 12)] == [3, 3, 5]
    assert await gaps_of(database, 11) == []
    assert [gap[:2] for gap in await gaps_of(database, 12)] == [(4, 5)]
    after = await books_of(database)
    assert (after.epochs, after.stored_samples) == (before.epochs + 1, before.stored_samples)
    assert after.gap_batches == 2
    # Its edge waits to be told of it.
    assert await database.fetchval(
        "SELECT advanced > now() - INTERVAL '1 hour' FROM watermarks WHERE epoch = $1", EPOCH
    )


async def test_delivery_d4_a_folded_epoch_that_heartbeats_list_again(
    store: Store, database: asyncpg.Connection
) -> None:
    await delivered(store, database, EPOCH, 11)
    await fold_all(database)
    before = await books_of(database)
    for epoch, last_seq in ((EPOCH, 3), (11, 5)):
        await database.execute(
            "INSERT INTO edge_epochs (epoch, site, edge, boot_id, last_seq, freed_seq, listed) "
            "VALUES ($1, 'hall', 'e1', '', $2, 3, now() - INTERVAL '3 days')",
            *(epoch, last_seq),
        )
    books = await reconcile(database, timedelta(0))
    assert books == before, "what lies above a closing is void"
    await enter_freed(database)
    assert await gaps_of(database) == await gaps_of(database, 11) == []
    await database.execute(
        "INSERT INTO edges (site, edge, boot_id, time, received, document) "
        """VALUES ('hall', 'e1', '', now(), now(), '{"epochs": []}')"""
    )
    await Abandoned(600.0).look(database, 0, 0)
    assert await gaps_of(database) == await gaps_of(database, 11) == []
    assert await books_of(database) == before
    assert await enter_freed(database) == set()
    assert (await store.write([batch(seq, epoch) for epoch in (EPOCH, 11) for seq in (1, 2, 3)])).new == []
    assert new_seqs((await store.write([batch(4, 11)])).new) == [4]


UNFIT: dict[str, Sequence[str]] = {
    "open": ["UPDATE watermarks SET closed_seq = NULL"],
    "closed further than delivered": ["UPDATE watermarks SET closed_seq = 4"],
    "moved today": ["UPDATE watermarks SET advanced = now() - INTERVAL '23 hours'"],
    "with a gap": ["INSERT INTO gaps (epoch, seq_from, seq_to, reason, state) VALUES ($1, 9, 9, 'lost', 'abandoned')"],
    "with a batch that is not counted": [
        "INSERT INTO ledger (epoch, seq, sha256, stored, dead, disposition) VALUES ($1, 9, '', 1, 0, 'stored')"
    ],
    "not settled": [
        "INSERT INTO edge_epochs (epoch, site, edge, boot_id, last_seq, freed_seq, listed) "
        "VALUES ($1, 'hall', 'e1', '', 3, 3, now())"
    ],
    "with a batch too few": ["UPDATE watermarks SET batches_stored = batches_stored - 1"],
    "with a dead batch too many": ["UPDATE watermarks SET batches_dead = batches_dead + 1"],
    "with a sample too few": ["UPDATE watermarks SET samples_stored = samples_stored - 1"],
    "with a dead sample too many": ["UPDATE watermarks SET samples_dead = samples_dead + 1"],
}


@pytest.mark.parametrize("changes", UNFIT.values(), ids=UNFIT)
async def test_delivery_d1_what_is_not_done_with_is_not_folded(
    store: Store, database: asyncpg.Connection, changes: Sequence[str]
) -> None:
    await delivered(store, database, EPOCH, 11)
    for change in changes:
        if change.startswith("UPDATE"):
            await database.execute(f"{change} WHERE epoch = $1", EPOCH)
        else:
            await database.execute(change, EPOCH)
    await fold_all(database)
    assert await left(database) == [EPOCH]
    assert await database.fetchval("SELECT epoch FROM folded_epochs") == 11
