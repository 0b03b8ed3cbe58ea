"""The one transaction: ledger, watermarks, samples, events, dead letters. Committed, or as if it had never been.

Order of the statements: ledger insert (sorted by key, else two workers deadlock), then the epochs' watermarks FOR SHARE
in a second statement (so with a newer snapshot: what was pruned meanwhile shows as being under the watermark), then the
gaps that what is new lies in, then its rows. A transaction that changes watermarks or gaps by itself (`gap`,
`epoch_closed`) locks the whole table of watermarks instead of sharing rows of it: two that share a row and then both
want to change it are a deadlock. A message that says more than one such transaction should hold is declared in several
before its own (`events`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple

import asyncpg

from cncmon_ingest import dead_letters, dirty, events, forks, gaps, ledger, rows
from cncmon_ingest.connection import TRANSACTION_S_MAX
from cncmon_ingest.database_identity import NOTHING_KNOWN, Moment, check_moment, moment_of
from cncmon_ingest.decode import Decoded
from cncmon_ingest.errors import DATABASE_ERRORS, NotConnectedError, OutageError, RetryError, speaks_of_data, translate
from cncmon_ingest.machines import Bounds, Machines
from cncmon_ingest.partitions import Partitions


class Outcome(NamedTuple):
    """What one transaction did: messages that were new, that were there already, and the clock of the database.

    conflicts: those of the known ones whose identity was there with another hash; dead letters since.
    """

    new: list[Decoded]
    known: list[Decoded]
    database_time: datetime
    conflicts: Sequence[Decoded] = ()


class Store:
    """Writes decoded messages through one connection. Not for use by two tasks at once."""

    def __init__(
        self,
        connection: asyncpg.Connection,
        stream_created: datetime,
        known: Callable[[], Moment] | None = None,
        *,
        bounds: Bounds = Bounds(),  # noqa: B008 immutable
    ) -> None:
        """known: returns how far the database is at least; a transaction that finds it less far is not committed.

        bounds: how many machines there may be.
        """
        self._connection = connection
        self._stream_created = stream_created
        self._known = known or (lambda: NOTHING_KNOWN)
        self._seen = NOTHING_KNOWN
        self._machines = Machines(bounds)
        self._partitions = Partitions()

    @property
    def usable(self) -> bool:
        """Whether the connection is still open."""
        return not self._connection.is_closed()

    def close(self) -> None:
        """Drop the connection at once: nothing is left to be said, and a database that is away would not answer."""
        self._connection.terminate()

    async def clock_offset(self) -> timedelta:
        """Return by how much the database's clock is ahead of ours.

        Raises:
            OutageError
        """
        try:
            now: datetime = await self._connection.fetchval("SELECT clock_timestamp()")
        except DATABASE_ERRORS as error:
            raise translate(error) from error
        return now - datetime.now(now.tzinfo)

    async def write(self, messages: Sequence[Decoded]) -> Outcome:
        """Commit the messages that are new; say which were.

        Raises:
            RefusedError, RetryError, OutageError: nothing was committed.
        """
        first, rivals = _first_of_each(messages)
        await self._judge(first)
        done = [await self._commit([message for message in first if not message.declares])]
        # What changes watermarks or gaps keeps every other worker waiting: in transactions of its own that are short.
        ahead: list[Decoded] = []
        within: list[Decoded] = []
        for message in first:
            if message.declares:
                (ahead if events.is_long(events.said_by(message)) else within).append(message)
        for message in ahead:
            await self._declare_ahead(message)
            done.append(await self._commit([message]))
        done += [await self._commit(group, exclusive=True) for group in events.grouped(within)]
        if rivals:
            # Which of them are conflicts is told by what is stored, and that need not be the first in hand.
            done.append(await self.write(rivals))
        new = [message for outcome in done for message in outcome.new]
        taken = {id(message) for message in new}
        return Outcome(
            new,
            [message for message in messages if id(message) not in taken],
            done[0].database_time,
            [message for outcome in done for message in outcome.conflicts],
        )

    async def _declare_ahead(self, message: Decoded) -> None:
        """Declare all that a message says, in parts: the message is then to be committed as if it said nothing."""
        connection = self._connection
        known = max(self._seen, self._known())

        async def declare(said: Sequence[events.Said]) -> list[events.Said]:
            await gaps.lock(connection)
            rest = await events.declare(connection, said)
            moment, _ = await moment_of(connection)
            check_moment(moment, known)
            return rest

        if await self._in_transaction(partial(ledger.is_known, connection, message)):
            return
        left = events.said_by(message)
        while left:
            left = await self._in_transaction(partial(declare, left))

    async def _commit(self, messages: Sequence[Decoded], *, exclusive: bool = False) -> Outcome:
        connection = self._connection
        # Before the transaction asks: what others mirror while it runs may be newer than its answer.
        known = max(self._seen, self._known())

        async def work() -> tuple[Outcome, list[Decoded]]:
            entered = await ledger.enter(connection, [m for m in messages if m.identity], exclusive=exclusive)
            plain = [m for m in messages if not m.identity]
            new = entered.new + await ledger.enter_unidentified(connection, plain, self._stream_created)
            await self._copy([row for message in new for row in message.packed])
            await dirty.mark(connection, new)
            await events.insert_events(connection, new)
            left = [said for message in new for said in events.said_by(message)] if exclusive else []
            while left:
                left = await events.declare(connection, left)
            await dead_letters.insert(connection, [*new, *entered.conflicts], self._stream_created)
            await forks.note(connection, forks.in_conflicts(entered.conflicts))
            moment, now = await moment_of(connection)
            check_moment(moment, known)
            self._seen = moment
            return Outcome(new, [], now, entered.conflicts), entered.renamed

        await self._ensure_partitions(messages)
        try:
            outcome, renamed = await self._in_transaction(work)
        except RetryError:
            self._partitions.forget()
            raise
        if renamed:
            # Not in the same transaction: another worker may share the row and want to rename it, too.
            await self._in_transaction(lambda: ledger.rename(connection, renamed))
        return outcome

    async def _judge(self, messages: Sequence[Decoded]) -> None:
        """Make dead letters of samples of machines that are another site's or one too many (rules B9, B10)."""
        if not self._machines.needs_database(messages):
            return
        try:
            await self._in_transaction(lambda: self._machines.judge(self._connection, messages))
        except BaseException:
            self._machines.forget()
            raise

    async def _ensure_partitions(self, messages: Sequence[Decoded]) -> None:
        try:
            await self._partitions.ensure(self._connection, (day for message in messages for day in message.days))
        except DATABASE_ERRORS as error:
            raise translate(error) from error

    async def refused_frames(self, message: Decoded) -> dict[int, str]:
        """Return frame number → what the database says, for each row of one message that it does not take.

        Raises:
            RetryError, OutageError
        """
        refused: dict[int, str] = {}
        ranges = [range(len(message.packed))]
        while ranges:
            part = ranges.pop()
            said = await self._try_rows([message.packed[index] for index in part])
            if said is None:
                continue
            if len(part) == 1:
                refused[message.frame_numbers[part[0]]] = said
            else:
                middle = len(part) // 2
                ranges += [part[:middle], part[middle:]]
        return refused

    async def _try_rows(self, packed: list[bytes]) -> str | None:
        """Copy rows and roll back; return what the database says against them, or None."""
        said: str | None = None

        async def work() -> None:
            nonlocal said
            try:
                await self._copy(packed)
            except asyncpg.PostgresError as error:
                if not speaks_of_data(error):
                    raise
                said = f"{error.sqlstate} {error}"

        await self._in_transaction(work, "ROLLBACK")
        return said

    async def _in_transaction[T](self, work: Callable[[], Awaitable[T]], end: str = "COMMIT") -> T:
        """Run work between BEGIN and its end, within `TRANSACTION_S_MAX`.

        When the time is out, or this task is cancelled, the connection is dropped without another word: a database that
        does not answer would not answer ROLLBACK either. Whether it was committed is then unknown, which the ledger
        settles at the next delivery.
        """
        connection = self._connection
        try:
            async with asyncio.timeout(TRANSACTION_S_MAX):
                await connection.execute("BEGIN")
                try:
                    result = await work()
                    await connection.execute(end)
                except (asyncpg.PostgresError, NotConnectedError):
                    await connection.execute("ROLLBACK")
                    raise
        except DATABASE_ERRORS as error:
            if not isinstance(error, asyncpg.PostgresError):
                connection.terminate()
            raise translate(error) from error
        except RuntimeError as error:
            if "closed" not in str(error):
                raise
            # How uvloop says that the connection was reset while a COPY was being written.
            connection.terminate()
            raise OutageError(f"the connection was reset: {error}") from error
        except asyncio.CancelledError:
            connection.terminate()
            raise
        return result

    async def _copy(self, packed: list[bytes]) -> None:
        if packed:
            await self._connection.copy_to_table(
                rows.TABLE, source=rows.pieces(rows.by_machine(packed)), columns=rows.COLUMNS, format="binary",
                timeout=TRANSACTION_S_MAX,
            )  # fmt: skip


def _first_of_each(messages: Sequence[Decoded]) -> tuple[list[Decoded], list[Decoded]]:
    """Return the messages without second deliveries, and those with the identity of one of them and another hash."""
    first: dict[object, Decoded] = {}
    rivals = []
    for message in messages:
        key: object = ledger.key_of(message) if message.identity else ledger.place_of(message)
        if first.setdefault(key, message).sha256 != message.sha256:
            rivals.append(message)
    return list(first.values()), rivals
