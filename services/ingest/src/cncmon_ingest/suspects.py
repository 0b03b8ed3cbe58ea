"""Messages that were delivered so often that one of them may be what kills the workers (rule C3).

They are tried in groups, in a process of their own (`isolated`). A group's death only halves it. A group of one is
tried alone: the attempt is counted in the database before it begins, and if the process dies, the message is buried. If
it is stored, it was innocent: restarts alone bury nothing.
"""

import asyncio
import time
from collections import deque
from datetime import datetime
from typing import Final

import asyncpg
import msgspec
from nats.aio.msg import Msg

from cncmon_core import logs
from cncmon_core.backoff import Backoff
from cncmon_ingest import metrics
from cncmon_ingest.alone import Answer, Member, Task
from cncmon_ingest.bootstrap import ACK_PENDING_PER_WORKER
from cncmon_ingest.commit import commit
from cncmon_ingest.connection import connect
from cncmon_ingest.database_identity import DatabaseIdentity
from cncmon_ingest.decode import Incoming, buried, headers_of
from cncmon_ingest.errors import DATABASE_ERRORS, LateError, NotConnectedError, OutageError, translate
from cncmon_ingest.identity_watch import IdentityWatch
from cncmon_ingest.isolated import Isolated
from cncmon_ingest.settings import IngestSettings
from cncmon_ingest.store import Store

log = logs.get(__name__)

ATTEMPTS_MAX: Final = 3
"""Attempts alone without an end: this worker died as well, or was stopped, or the process did not answer while one
without a message did. No more than so many.
"""

GROUP_MESSAGES_MAX: Final = 512
"""Messages tried together: one that kills among them is found with 9 deaths of a group and its own."""

GROUP_BYTES_MAX: Final = 8 << 20
"""Bytes of their data, as the stream holds it; a larger message is a group of its own."""

WAITING_BYTES_MAX: Final = 64 << 20
"""Bytes of suspects that a worker keeps, and `ACK_PENDING_PER_WORKER` fetches; more are deferred."""

GROUP_TIME_SHARE: Final = 0.25
"""Part of `suspect_ms_max` that a group has: being late only halves it, and what hangs is found sooner."""

DATABASE_TIME_SHARE: Final = 0.75
"""Part of the time that the database may take of it. A process that still answers then shows that no message hangs."""

# The members of a group have a row with no attempt while it is tried. One that has a row already was in a group, or
# alone, when a worker ended with it: memory ran out, say, and took both. It is tried alone from then on.
_ENTER = """
INSERT INTO suspects (stream_created, stream_seq, attempts, begun)
SELECT $1, seq, 0, now() FROM unnest($2::bigint[]) AS seq ORDER BY seq
ON CONFLICT DO NOTHING RETURNING stream_seq
"""

_COUNT = """
INSERT INTO suspects AS s (stream_created, stream_seq, attempts, begun) VALUES ($1, $2, 1, now())
ON CONFLICT (stream_created, stream_seq) DO UPDATE SET attempts = s.attempts + 1, begun = now()
RETURNING attempts
"""

_TAKE_BACK = "UPDATE suspects SET attempts = attempts - 1 WHERE (stream_created, stream_seq) = ($1, $2)"

_REMOVE = "DELETE FROM suspects WHERE stream_created = $1 AND stream_seq = ANY($2)"


class _Group(msgspec.Struct):
    """Messages that are tried together.

    entered: their rows in `suspects` are of this worker. attempt: that of a single message which is counted and has not
    come to an end that speaks against it; 0: none is.
    """

    messages: list[Msg]
    bytes: int = 0
    entered: bool = False
    attempt: int = 0

    @property
    def seqs(self) -> list[int]:
        return [message.metadata.sequence.stream for message in self.messages]

    def has_room(self, size: int) -> bool:
        """Whether a message of this size can join it before it is entered."""
        return not self.entered and len(self.messages) < GROUP_MESSAGES_MAX and self.bytes + size <= GROUP_BYTES_MAX


class Suspects:
    """Takes suspects, and settles them group by group beside the worker's other messages (`run`)."""

    def __init__(self, settings: IngestSettings, stream_created: datetime, watch: IdentityWatch) -> None:
        self._settings = settings
        self._stream_created = stream_created
        self._watch = watch
        self._messages_max = ACK_PENDING_PER_WORKER * settings.fetch_messages
        self._groups: deque[_Group] = deque()
        self._trying: _Group | None = None
        self._messages = self._bytes = 0
        self._added = asyncio.Event()
        self._isolated = Isolated()
        self._connection: asyncpg.Connection | None = None
        self._life: DatabaseIdentity | None = None

    @property
    def waiting(self) -> list[Msg]:
        """The messages that are not settled."""
        return [message for group in self._groups for message in group.messages]

    def suspects(self, message: Msg) -> bool:
        """Whether a message was delivered more often than an innocent one should."""
        return message.metadata.num_delivered > self._settings.max_deliver

    async def add(self, message: Msg) -> None:
        """Let a message be settled by and by; more of them than fit are deferred for `ack_wait`."""
        if self._messages >= self._messages_max or self._bytes >= WAITING_BYTES_MAX:
            await self._defer(message)
            return
        size = len(message.data)
        last = self._groups[-1] if self._groups else None
        if last is not None and last is not self._trying and last.has_room(size):
            last.messages.append(message)
            last.bytes += size
        else:
            self._groups.append(_Group([message], size))
        self._messages += 1
        self._bytes += size
        self._added.set()

    async def _defer(self, message: Msg) -> None:
        metrics.SUSPECTS_DEFERRED.inc()
        await message.nak(delay=self._settings.ack_wait_ms / 1000)

    async def run(self) -> None:
        """Settle what is added, until cancelled."""
        keeping = asyncio.create_task(self._keep())
        try:
            while True:
                # First: what is added while the process ends must not be overlooked.
                self._added.clear()
                while self._groups:
                    await self._settle_first()
                self._disconnect()
                await self._isolated.end()
                await self._added.wait()
        finally:
            keeping.cancel()
            self._disconnect()
            # Its transaction is whole or not at all, whatever moment this is.
            await self._isolated.end(kill=True)

    async def _settle_first(self) -> None:
        # It stays first until it is settled, so that its messages are kept.
        self._trying = self._groups[0]
        try:
            left = await self._settle(self._trying)
        except NotConnectedError as error:
            log.warning("suspects are deferred: others may reach the database", reason=str(error))
            for message in self.waiting:
                await self._defer(message)
            self._groups.clear()
        else:
            self._groups.popleft()
            # Behind the others: who shares no group with what kills does not wait for it.
            self._groups.extend(group for group in left if group.messages)
        self._trying = None
        self._messages = sum(len(group.messages) for group in self._groups)
        self._bytes = sum(group.bytes for group in self._groups)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._settings.ack_wait_ms / 3000)
            for message in self.waiting:
                await message.in_progress()

    async def _settle(self, group: _Group) -> list[_Group]:
        """Settle the messages of a group, or return the groups that they are to be tried in next.

        Raises:
            NotConnectedError: this worker has not reached the database for `ack_wait`.
        """
        backoff = Backoff(0.1, self._settings.hold_retry_ms_max / 1000)
        reached_s = time.monotonic()
        while True:
            try:
                connection, life = await self._connected()
                reached_s = time.monotonic()
                if not group.entered and (apart := await self._enter(group, connection)):
                    return [group, *apart]
                answer = await self._try(group, connection, life)
                if answer is None:
                    return _halves(group)
                await self._watch.confirm(connection, life)
            except OutageError as error:
                self._disconnect()
                log.warning("holding suspects", messages=len(group.messages), error=str(error))
                if (
                    isinstance(error, NotConnectedError)
                    and time.monotonic() - reached_s > self._settings.ack_wait_ms / 1000
                ):
                    raise
                await asyncio.sleep(backoff.next_s())
            else:
                dead = set(answer.dead)
                for index, message in enumerate(group.messages):
                    await (message.term() if index in dead else message.ack())
                return []

    async def _connected(self) -> tuple[asyncpg.Connection, DatabaseIdentity]:
        if self._connection is None or self._connection.is_closed() or self._life is None:
            self._disconnect()
            self._connection = await connect(self._settings.database_dsn)
            self._life = await self._watch.admit(self._connection)
        return self._connection, self._life

    def _disconnect(self) -> None:
        connection, self._connection, self._life = self._connection, None, None
        if connection is not None:
            connection.terminate()

    async def _enter(self, group: _Group, connection: asyncpg.Connection) -> list[_Group]:
        """Write down that a group's messages are tried; move those that were tried when a worker ended out of it.

        Raises:
            OutageError
        """
        try:
            rows = await connection.fetch(_ENTER, self._stream_created, group.seqs)
        except DATABASE_ERRORS as error:
            raise translate(error) from error
        entered = {row["stream_seq"] for row in rows}
        apart = [message for message in group.messages if message.metadata.sequence.stream not in entered]
        group.entered = True
        group.messages = [message for message in group.messages if message.metadata.sequence.stream in entered]
        group.bytes = sum(len(message.data) for message in group.messages)
        return [_Group([message], len(message.data), entered=True) for message in apart]

    async def _try(self, group: _Group, connection: asyncpg.Connection, life: DatabaseIdentity) -> Answer | None:
        """Return which messages of a group are dead letters, now that all are committed; None: it is to be halved.

        Raises:
            OutageError: not all is committed.
        """
        try:
            answer = await (self._try_together if len(group.messages) > 1 else self._try_alone)(group, connection, life)
            if answer is not None:
                await connection.execute(_REMOVE, self._stream_created, group.seqs)
        except DATABASE_ERRORS as error:
            raise translate(error) from error
        return answer

    async def _try_together(
        self, group: _Group, _connection: asyncpg.Connection, life: DatabaseIdentity
    ) -> Answer | None:
        log.warning("suspects are tried in the isolated process", messages=len(group.messages), bytes=group.bytes)
        try:
            answer, why = await self._ask(group, life, GROUP_TIME_SHARE)
        except LateError as error:
            answer, why = None, str(error)
        if answer is None:
            metrics.SUSPECT_GROUPS_HALVED.inc()
            log.warning("a group of suspects is halved", messages=len(group.messages), reason=why)
        elif answer.outage:
            raise OutageError(answer.outage)
        else:
            metrics.SUSPECTS.labels("innocent").inc(len(group.messages))
        return answer

    async def _try_alone(self, group: _Group, connection: asyncpg.Connection, life: DatabaseIdentity) -> Answer:
        (message,) = group.messages
        place = self._stream_created, message.metadata.sequence.stream
        # One that met an outage, and is still in the count since that could not be taken back, is not counted again.
        group.attempt = group.attempt or await connection.fetchval(_COUNT, *place)
        log.warning("a suspect is tried alone", stream_seq=place[1], subject=message.subject, attempt=group.attempt)
        why = f"{group.attempt - 1} attempts to store it alone did not come to an end"
        answer = None
        if group.attempt <= ATTEMPTS_MAX:
            answer, why = await self._ask_alone(group, connection, life)
        if answer is None:
            log.error("a message kills whoever takes it: buried", subject=message.subject, reason=why)
            await commit(Store(connection, self._stream_created), [buried(incoming_of(message), "poison", why)])
            metrics.SUSPECTS.labels("buried").inc()
            return Answer(dead=[0])
        if answer.outage:
            await self._take_back(group, connection)
            raise OutageError(answer.outage)
        metrics.SUSPECTS.labels("innocent").inc()
        return answer

    async def _ask_alone(
        self, group: _Group, connection: asyncpg.Connection, life: DatabaseIdentity
    ) -> tuple[Answer | None, str]:
        try:
            return await self._ask(group, life, 1.0)
        except LateError as error:
            if not await self._answers(life):
                await self._take_back(group, connection)
                raise OutageError(f"{error}, nor to a task without a message") from error
            if group.attempt < ATTEMPTS_MAX:
                # It may have been frozen, or have got no processor, just then. This attempt stays counted.
                group.attempt = 0
                raise OutageError(str(error)) from error
            return None, f"{error}, {ATTEMPTS_MAX} times"

    async def _take_back(self, group: _Group, connection: asyncpg.Connection) -> None:
        """Don't count an attempt: an outage is no evidence against anybody."""
        await connection.execute(_TAKE_BACK, self._stream_created, group.seqs[0])
        group.attempt = 0

    async def _answers(self, life: DatabaseIdentity) -> bool:
        """Whether an isolated process that is given no message gets to the database and answers in the same time."""
        try:
            answer, _ = await self._ask(_Group([]), life, 1.0)
        except (LateError, OutageError):
            return False
        return answer is not None and not answer.outage

    async def _ask(self, group: _Group, life: DatabaseIdentity, time_share: float) -> tuple[Answer | None, str]:
        limit_s = self._settings.suspect_ms_max / 1000 * time_share
        members = [
            Member(one.subject, dict(one.headers), one.data, one.stream_seq, one.stored_at)
            for one in map(incoming_of, group.messages)
        ]
        task = Task(
            self._settings,
            self._stream_created,
            (life.generation, life.server),
            limit_s * DATABASE_TIME_SHARE,
            members,
        )
        return await self._isolated.run(task, limit_s)


def _halves(group: _Group) -> list[_Group]:
    middle = len(group.messages) // 2
    parts = group.messages[:middle], group.messages[middle:]
    return [_Group(part, sum(len(message.data) for message in part), entered=True) for part in parts]


def incoming_of(message: Msg) -> Incoming:
    """Return a message as the stream holds it."""
    metadata = message.metadata
    return Incoming(
        subject=message.subject,
        headers=headers_of(message.headers),
        data=message.data,
        stream_seq=metadata.sequence.stream,
        stored_at=metadata.timestamp,
    )
