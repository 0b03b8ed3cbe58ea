"""FAULT 40: a worker stands still, or dies, between any two statements, and all others run meanwhile.

Others: a second worker with the same messages, the leader that prunes, an edge's declaration over the same seqs, and
a replay of a dead letter. Whatever they met in the middle, at the end every sample is there once, every seq is stored
or a gap and never both, and the books balance.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import asyncpg
import pytest

from cncmon_ingest import dlq
from cncmon_ingest.advance import advance
from cncmon_ingest.commit import commit
from cncmon_ingest.connection import connect
from cncmon_ingest.decode import Decoded
from cncmon_ingest.errors import OutageError
from cncmon_ingest.reconcile import reconcile
from cncmon_ingest.store import Store
from testkit import ingest
from testkit.fixtures import on_both_servers
from testkit.gaps import gap_frame, message

SAMPLES = 2
"""In each batch."""
OTHERS_S = 0.03
"""How long the others have before the worker goes on: they are done, or wait for it."""
STATEMENTS_MIN = 20
"""A transaction with samples, and one with declarations, have more than these together."""


class Gate:
    """A connection of which one statement, by its number, waits to be let through, or never comes."""

    CALLS = frozenset({"execute", "executemany", "fetch", "fetchrow", "fetchval", "copy_to_table"}) | {
        "copy_records_to_table"
    }

    def __init__(self, connection: asyncpg.Connection, at: int, *, dies: bool) -> None:
        self._connection = connection
        self._at = at
        self._dies = dies
        self._count = 0
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._connection, name)
        return self._through(found) if name in self.CALLS else found

    def _through(self, call: Any) -> Any:
        async def through(*args: Any, **more: Any) -> Any:
            number, self._count = self._count, self._count + 1
            if number == self._at:
                self.reached.set()
                await self.open.wait()
                if self._dies:
                    self._connection.terminate()
                    raise ConnectionResetError("the worker dies here")
            return await call(*args, **more)

        return through


class Sessions:
    """One connection for each who takes part, kept from one place to the next: to connect costs more than to write."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._open: dict[str, asyncpg.Connection] = {}

    async def of(self, who: str) -> asyncpg.Connection:
        """Return somebody's connection: a new one only where there is none, or where it died."""
        found = self._open.get(who)
        if found is None or found.is_closed():
            found = self._open[who] = await connect(self.dsn)
        return found

    def close(self) -> None:
        for connection in self._open.values():
            connection.terminate()


class Plant:
    """One epoch in a database that all share, with its worker, the others, and what must be true at the end."""

    def __init__(self, sessions: Sessions, number: int) -> None:
        self.sessions = sessions
        self.epoch = 10_000 + number
        self.closing = 500_000 + number
        self.machine = f"m{number}"
        self._created = datetime.now(UTC)
        self._said: dict[int, bytes] = {}

    async def store(self, who: str) -> Store:
        return Store(await self.sessions.of(who), self._created)

    def batch(self, seq: int, *, bad: bool = False) -> Decoded:
        parts = [
            ingest.frame(10 * seq + number, machine_id=self.machine, timestamp=self._created.isoformat())
            for number in range(SAMPLES - (1 if bad else 0))
        ]
        if bad:
            parts.append(b'{"machine_id":"%s","timestamp":"never"}' % self.machine.encode())
        return message(seq, parts, epoch=self.epoch, base=(seq - 1) * SAMPLES)

    def declared(self, seq: int, low: int, high: int) -> Decoded:
        """A declaration; they travel in an epoch of their own."""
        # The same bytes each time: another hash would be another batch.
        said = self._said.setdefault(seq, gap_frame(low, high, epoch=self.epoch))
        return message(seq, [said], epoch=self.closing, kind="events")

    def in_hand(self) -> list[Decoded]:
        """What the worker writes: a new batch, one out of a gap, one with a bad frame, and a declaration."""
        return [self.batch(3), self.batch(4), self.batch(6), self.batch(7, bad=True), self.declared(2, 9, 10)]

    async def prepare(self) -> int:
        """Store what is there before; return the id of the dead letter."""
        store = await self.store("eyes")
        connection = await self.sessions.of("eyes")
        await commit(store, [self.batch(1), self.batch(2, bad=True), self.declared(1, 4, 5)])
        await advance(connection)
        good = ingest.frame(21, machine_id=self.machine, timestamp=datetime.now(UTC).isoformat())
        letter: int = await connection.fetchval(
            "UPDATE dead_letters SET payload = $2 WHERE identity = $1 RETURNING id", f"{self.epoch}:2", good
        )
        return letter

    async def second(self) -> None:
        await commit(await self.store("second"), [self.batch(6), self.batch(8), self.batch(4), self.batch(3)])

    async def lead(self) -> None:
        await advance(await self.sessions.of("lead"))

    async def declare(self) -> None:
        await commit(await self.store("declare"), [self.declared(3, 3, 8)])

    async def replay(self, letter: int) -> None:
        connection = await self.sessions.of("replay")
        async for _ in dlq.replay(connection, [letter], ingest.settings_for(self.sessions.dsn)):
            continue

    async def judge(self) -> None:
        """Everything that was said is true at once."""
        connection = await self.sessions.of("eyes")
        # All batches were delivered once more, as JetStream would after a death, and the leader has had its rounds.
        await commit(await self.store("eyes"), [*self.in_hand(), self.batch(8), self.declared(3, 3, 8)])
        for _ in range(3):
            await advance(connection)
        lines = await connection.fetch(
            "SELECT active_program_line AS line FROM sensor_data WHERE machine_id = $1 ORDER BY 1", self.machine
        )
        expected = [10 * seq + number for seq in (1, 2, 3, 4, 6, 7, 8) for number in range(SAMPLES)]
        expected.remove(71)  # the bad frame of 7; that of 2 was mended and replayed
        assert [row["line"] for row in lines] == expected
        gaps = await connection.fetch(
            "SELECT seq_from, seq_to, state FROM gaps WHERE epoch = $1 ORDER BY 1", self.epoch
        )
        assert [tuple(row) for row in gaps] == [(5, 5, "passed"), (9, 10, "passed")]
        row = await connection.fetchrow(
            "SELECT seq, batches_stored, samples_stored, samples_dead FROM watermarks WHERE epoch = $1", self.epoch
        )
        assert row is not None
        assert tuple(row) == (10, 7, 12, 2)
        assert await connection.fetchval("SELECT count(*) FROM ledger WHERE epoch = $1", self.epoch) == 0
        letters = await connection.fetch(
            "SELECT identity, state FROM dead_letters WHERE identity LIKE $1 ORDER BY 1", f"{self.epoch}:%"
        )
        assert [tuple(row) for row in letters] == [(f"{self.epoch}:2", "replayed"), (f"{self.epoch}:7", "dead")]
        books = await reconcile(connection, timedelta(seconds=900))
        assert [account for account in books.unbalanced if account.epoch == self.epoch] == []
        marks = await connection.fetchval("SELECT count(*) FROM dirty_ranges WHERE $1 = ANY(machine_ids)", self.machine)
        assert marks > 0


async def stopped_at(plant: Plant, at: int, letter: int, others: Sequence[str], *, dies: bool) -> bool:
    """Let the worker stand still (or die) before a statement while others run; False: it has fewer statements."""
    gate = Gate(await plant.sessions.of("worker"), at, dies=dies)
    store = Store(gate, datetime.now(UTC))  # type: ignore[arg-type]  # all that a Store asks of a connection

    async def work() -> None:
        with contextlib.suppress(OutageError):
            await commit(store, plant.in_hand())
            assert not gate.reached.is_set() or not dies

    worker = asyncio.create_task(work())
    reaching = asyncio.create_task(gate.reached.wait())
    await asyncio.wait({worker, reaching}, return_when=asyncio.FIRST_COMPLETED)
    reaching.cancel()
    if worker.done():
        await worker
        return False
    steps: dict[str, Callable[[], Coroutine[None, None, None]]] = {
        "second": plant.second,
        "lead": plant.lead,
        "declare": plant.declare,
        "replay": partial(plant.replay, letter),
    }
    async with asyncio.TaskGroup() as group:
        for other in others:
            group.create_task(steps[other]())
            await asyncio.sleep(OTHERS_S)
        gate.open.set()
    await worker
    return True


@on_both_servers
@pytest.mark.timeout(300)
@pytest.mark.parametrize("dies", [False, True], ids=["paused", "killed"])
@pytest.mark.parametrize(
    "others",
    [["second", "lead", "declare", "replay"], ["replay", "declare", "lead", "second"]],
    ids=["second-first", "second-last"],
)
async def test_delivery_b1_between_any_two_statements(
    postgres_dsn: str, database: asyncpg.Connection, others: list[str], dies: bool
) -> None:
    at = 0
    sessions = Sessions(postgres_dsn)
    try:
        while True:
            plant = Plant(sessions, at)
            letter = await plant.prepare()
            reached = await stopped_at(plant, at, letter, others, dies=dies)
            if not reached:
                break
            await plant.judge()
            at += 1
    except Exception as error:
        error.add_note(f"before statement {at}, others {others}, dies {dies}")
        raise
    finally:
        sessions.close()
    assert at >= STATEMENTS_MIN
    print(f"{at} places")
