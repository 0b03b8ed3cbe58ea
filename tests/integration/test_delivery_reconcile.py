"""The books on a real database: what balances, what is on its way, and what is found when something is wrong."""

import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from cncmon_core.events import Event, encode_event
from cncmon_ingest.abandoned import Abandoned
from cncmon_ingest.advance import advance
from cncmon_ingest.connection import connect
from cncmon_ingest.edges import Edges
from cncmon_ingest.reconcile import Books, reconcile
from cncmon_ingest.store import Store
from testkit.fixtures import on_both_servers
from testkit.gaps import OTHER, batch, declaration, gap_frame, gaps_of, message
from testkit.ingest import EPOCH, frame

GRACE = timedelta(seconds=600)


class House:
    """An edge and its database, by hand."""

    def __init__(self, database: asyncpg.Connection, store: Store) -> None:
        self.database = database
        self.store = store
        self._edges = Edges()
        self._abandoned = Abandoned(GRACE.total_seconds())
        self._start = datetime.now(UTC)

    async def hear(self, at_s: float, *epochs: tuple[int, int, int | None]) -> None:
        """A heartbeat that lists (epoch, last seq, samples)."""
        listed = [{"epoch": e, "last_seq": last_seq, "accepted_samples": n} for e, last_seq, n in epochs]
        beat = {"boot_id": "b", "time": self._start.isoformat(), "epochs": listed}
        self._edges.take("hall.e1", encode(beat), self._start + timedelta(seconds=at_s), at_s)
        await self._edges.write(self.database, at_s)

    async def close(self, last_seq: int, samples: int, seq: int = 1) -> None:
        data = {"epoch": EPOCH, "last_seq": last_seq, "samples": samples}
        await self.store.write([declaration(seq, encode_event(Event("epoch_closed", datetime.now(UTC), data=data)))])

    async def abandon(self) -> None:
        await self._abandoned.look(self.database, 0, 0)

    async def books(self) -> Books:
        return await reconcile(self.database, GRACE)


def encode(value: Any) -> bytes:
    import msgspec

    return msgspec.json.encode(value)


@pytest.fixture
async def house(postgres_dsn: str, database: asyncpg.Connection) -> AsyncIterator[House]:
    store = Store(await connect(postgres_dsn), datetime.now(UTC))
    yield House(database, store)
    store.close()


@on_both_servers
async def test_delivery_e_everything_stored_balances(
    postgres_dsn: str, database: asyncpg.Connection, house: House
) -> None:
    assert (await house.books()).balanced, "an empty database does"
    await house.hear(0, (EPOCH, 6, 18))
    for step in (range(1, 4), range(4, 6), [6]):
        await house.store.write([batch(seq, 3) for seq in step])
        assert (await house.books()).balanced, "before pruning"
        await advance(database)
        books = await house.books()
        assert (books.balanced, books.pending_batches) == (True, 6 - max(step))
    assert (books.accepted_batches, books.stored_batches, books.stored_samples, books.pending) == (6, 6, 18, [])


async def test_delivery_e_dead_letters_gaps_and_events_count(house: House, database: asyncpg.Connection) -> None:
    await house.store.write([batch(1, 3)])
    await house.store.write([message(2, [frame(1), b"{", b"{}"], base=3)])
    bad = message(3, [frame(1)] * 4, base=6)
    bad.bury("hash_mismatch", "broken on its way")
    await house.store.write([bad])
    # What is counted in one round is added to by the next.
    await advance(database)
    await house.store.write([message(4, [gap_frame(5, 7, 9)], base=10, kind="events")])
    await house.store.write([batch(8, 3, base=19)])
    await house.hear(0, (EPOCH, 8, 22))
    for _ in range(2):
        books = await house.books()
        assert (books.balanced, books.pending) == (True, []), books.unbalanced
        assert (books.stored_batches, books.dead_batches, books.gap_batches) == (4, 1, 3)
        assert (books.stored_samples, books.dead_samples, books.gap_samples) == (7, 6, 9)
        await advance(database)


@on_both_servers
async def test_delivery_e_a_batch_taken_out_of_a_gap_balances_at_every_step(
    postgres_dsn: str, database: asyncpg.Connection, house: House
) -> None:
    sizes = [random.Random(3).randrange(1, 9) for _ in range(40)]
    bases = [sum(sizes[:at]) for at in range(41)]
    await house.hear(0, (EPOCH, 40, bases[40]))
    await house.store.write([batch(seq, sizes[seq - 1], base=bases[seq - 1]) for seq in (1, 2, 11, 40)])
    await house.store.write([declaration(1, gap_frame(3, 10, bases[10] - bases[2]), gap_frame(12, 39))])
    await advance(database)
    for seq in random.Random(4).sample(range(3, 40), 30):
        await house.store.write([batch(seq, sizes[seq - 1], base=bases[seq - 1])])
        assert (await house.books()).balanced
        if seq % 3:
            await advance(database)
            assert (await house.books()).balanced
    await advance(database)
    books = await house.books()
    assert (books.stored_samples + books.gap_samples, books.pending_batches) == (bases[40], 0)


async def test_delivery_e_what_the_edge_still_has_is_on_its_way(house: House, database: asyncpg.Connection) -> None:
    await house.hear(0, (EPOCH, 9, 27))
    await house.store.write([batch(seq, 3) for seq in (1, 2, 4)])
    books = await house.books()
    assert books.balanced
    (account,) = books.pending
    assert (account.epoch, account.pending_batches, account.pending_samples) == (EPOCH, 6, 18)
    await house.hear(10, (OTHER, 1, 0))
    assert (await house.books()).balanced, "within the grace"


async def test_delivery_e_what_nobody_has_and_no_gap_tells_of_does_not_balance(
    house: House, database: asyncpg.Connection
) -> None:
    await house.hear(0, (EPOCH, 9, 27))
    await house.store.write([batch(seq, 3) for seq in (1, 2, 4)])
    await house.hear(700, (OTHER, 1, 0))
    (account,) = (await house.books()).unbalanced
    assert account.problem is not None
    assert "6 batches are missing" in account.problem
    await house.abandon()
    books = await house.books()
    assert (books.balanced, books.gap_batches, books.gap_samples) == (True, 6, 18)
    # The old card turns up, and its agent closes the epoch with less than the last heartbeat said.
    await house.close(7, 21)
    assert await gaps_of(database) == [(3, 3, 3), (5, 7, 9)]
    books = await house.books()
    assert (books.balanced, books.gap_batches) == (True, 4), books.unbalanced


async def test_delivery_e_a_closing_says_what_was_accepted(house: House, database: asyncpg.Connection) -> None:
    """The heartbeat counts what was not synced; the closing does not; the stream had one of it all the same."""
    await house.hear(0, (EPOCH, 9, 27))
    await house.store.write([batch(seq, 3) for seq in (1, 2, 3, 4, 5, 8)])
    await house.close(5, 15, seq=1)
    for _ in range(2):
        books = await house.books()
        assert (books.balanced, books.pending) == (True, []), books.unbalanced
        await advance(database)
    await house.store.write([batch(6, 3)])
    await advance(database)
    assert (await house.books()).unbalanced == []


async def test_delivery_e_gaps_of_unknown_size_do_not_hide_a_missing_batch(house: House) -> None:
    await house.hear(0, (EPOCH, 9, None))
    await house.store.write([batch(1, 3, base=0), batch(5, 3, base=12)])
    await house.store.write([declaration(1, gap_frame(6, 9))])
    await house.hear(700, (OTHER, 1, 0))
    (account,) = (await house.books()).unbalanced
    assert account.problem is not None
    assert "3 batches are missing" in account.problem
    assert (account.gaps_uncounted, account.pending_samples) == (4, 0)


async def test_delivery_e_gaps_of_what_never_got_a_time_stand_for_themselves(house: House) -> None:
    await house.store.write([declaration(1, gap_frame(50, 59, 10, epoch=99, reason="unstamped_lost"))])
    books = await house.books()
    assert (books.balanced, books.pending, books.gap_batches, books.gap_samples) == (True, [], 10, 10)


BREAKAGES = {
    "a batch counted twice": ("UPDATE watermarks SET batches_stored = batches_stored + 1", "more than its watermark"),
    "a batch never stored": ("UPDATE watermarks SET batches_stored = batches_stored - 1", "fewer than its watermark"),
    "a sample counted twice": ("UPDATE watermarks SET samples_stored = samples_stored + 1", "1 samples more"),
    "a sample lost": ("UPDATE watermarks SET samples_stored = samples_stored - 2", "2 samples fewer"),
    "a gap forgotten": ("DELETE FROM gaps", "fewer than its watermark"),
    "a gap over what is stored": (
        "INSERT INTO gaps (epoch, seq_from, seq_to, samples, reason) SELECT epoch, 9, 9, 3, 'x' FROM watermarks",
        "1 batches more than were accepted",
    ),
}


@pytest.mark.parametrize(("breaking", "said"), BREAKAGES.values(), ids=BREAKAGES)
async def test_delivery_e_what_is_wrong_is_found(
    house: House, database: asyncpg.Connection, breaking: str, said: str
) -> None:
    await house.hear(0, (EPOCH, 9, 27))
    await house.store.write([batch(seq, 3) for seq in (1, 2, 3, 6, 7, 8, 9)])
    await house.store.write([declaration(1, gap_frame(4, 5, 6), epoch=EPOCH + 1)])
    await advance(database)
    assert (await house.books()).unbalanced == []
    await database.execute(breaking)
    problems = [account.problem or "" for account in (await house.books()).unbalanced if account.epoch == EPOCH]
    assert len(problems) == 1
    assert said in problems[0]
