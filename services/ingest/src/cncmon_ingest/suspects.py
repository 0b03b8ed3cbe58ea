"""Messages that were delivered so often that one of them may be what kills the workers (rule C3).

Each is tried once more alone, in a process of its own (`alone`), and the attempt is counted in the database before it
begins. If that process dies, the message is buried; if it is stored, it was innocent: restarts alone bury nothing.
"""

import asyncio
import contextlib
import sys
from collections import deque
from datetime import datetime
from typing import Final

import asyncpg
import msgspec
from nats.aio.msg import Msg

from cncmon_core import logs
from cncmon_core.backoff import Backoff
from cncmon_ingest import metrics
from cncmon_ingest.alone import Answer, Task
from cncmon_ingest.commit import commit
from cncmon_ingest.connection import connect
from cncmon_ingest.decode import Incoming, buried, headers_of
from cncmon_ingest.errors import DATABASE_ERRORS, OutageError, translate
from cncmon_ingest.generation import Watch
from cncmon_ingest.settings import IngestSettings
from cncmon_ingest.store import Store

log = logs.get(__name__)

ATTEMPTS_MAX: Final = 3
"""Attempts alone of which nobody saw the end: this worker died as well, or was stopped. No more than so many."""

LINE_BYTES_MAX: Final = 1 << 16
"""Of an answer."""

DYING_S: Final = 0.2
"""Left to a process that is dying by itself, so that it can say of what."""

_COUNT = """
INSERT INTO suspects AS s (stream_created, stream_seq, attempts, begun) VALUES ($1, $2, 1, now())
ON CONFLICT (stream_created, stream_seq) DO UPDATE SET attempts = s.attempts + 1, begun = now()
RETURNING attempts
"""


class Suspects:
    """Takes suspects, and settles them one after another beside the worker's other messages (`run`)."""

    def __init__(self, settings: IngestSettings, stream_created: datetime, watch: Watch) -> None:
        self._settings = settings
        self._stream_created = stream_created
        self._watch = watch
        self._waiting: deque[Msg] = deque()
        self._added = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None

    def suspects(self, message: Msg) -> bool:
        """Whether a message was delivered more often than an innocent one should."""
        return message.metadata.num_delivered > self._settings.max_deliver

    async def add(self, message: Msg) -> None:
        """Let a message be settled by and by; more of them than fit are given back for a while."""
        if len(self._waiting) >= self._settings.fetch_messages:
            await message.nak(delay=self._settings.ack_wait_ms / 1000)
            return
        self._waiting.append(message)
        self._added.set()

    async def run(self) -> None:
        """Settle what is added, until cancelled."""
        keeping = asyncio.create_task(self._keep())
        try:
            while True:
                while self._waiting:
                    await self._settle(self._waiting[0])
                    self._waiting.popleft()
                await self._end_process()
                self._added.clear()
                await self._added.wait()
        finally:
            keeping.cancel()
            # Its transaction is whole or not at all, whatever moment this is.
            await self._end_process(kill=True)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._settings.ack_wait_ms / 3000)
            for message in list(self._waiting):
                await message.in_progress()

    async def _settle(self, message: Msg) -> None:
        backoff = Backoff(0.1, self._settings.hold_retry_ms_max / 1000)
        while True:
            try:
                connection = await connect(self._settings.database_dsn)
                try:
                    life = await self._watch.admit(connection)
                    dead = await self._try(message, connection)
                    await self._watch.may_acknowledge(life)
                finally:
                    connection.terminate()
            except OutageError as error:
                log.warning("holding a message that is to be tried alone", error=str(error))
                await asyncio.sleep(backoff.next_s())
            else:
                await (message.term() if dead else message.ack())
                return

    async def _try(self, message: Msg, connection: asyncpg.Connection) -> bool:
        """Return whether a message that is committed now is a dead letter.

        Raises:
            OutageError: it is not committed.
        """
        place = self._stream_created, message.metadata.sequence.stream
        try:
            attempts = await connection.fetchval(_COUNT, *place)
            log.warning("a message is tried alone", stream_seq=place[1], subject=message.subject, attempt=attempts)
            why = f"{attempts - 1} attempts to store it alone did not come to an end"
            answer = None
            if attempts <= ATTEMPTS_MAX:
                answer, why = await self._ask(self._task(message))
            if answer is None:
                await self._bury(message, connection, why)
            elif answer.outage:
                # An outage is no evidence against anybody.
                await connection.execute(
                    "UPDATE suspects SET attempts = attempts - 1 WHERE (stream_created, stream_seq) = ($1, $2)", *place
                )
                raise OutageError(answer.outage)
            await connection.execute("DELETE FROM suspects WHERE (stream_created, stream_seq) = ($1, $2)", *place)
        except DATABASE_ERRORS as error:
            raise translate(error) from error
        metrics.SUSPECTS.labels("innocent" if answer else "buried").inc()
        return answer is None or answer.dead

    def _task(self, message: Msg) -> Task:
        incoming = incoming_of(message)
        return Task(
            self._settings,
            self._stream_created,
            incoming.subject,
            dict(incoming.headers),
            incoming.data,
            incoming.stream_seq,
            incoming.stored_at,
        )

    async def _bury(self, message: Msg, connection: asyncpg.Connection, why: str) -> None:
        log.error("a message kills whoever takes it: buried", subject=message.subject, reason=why)
        await commit(Store(connection, self._stream_created), [buried(incoming_of(message), "poison", why)])

    async def _ask(self, task: Task) -> tuple[Answer | None, str]:
        """Return the process's answer; or None, and how it ended instead."""
        process = await self._started()
        stdin, stdout = process.stdin, process.stdout
        if stdin is None or stdout is None:
            raise AssertionError("it was started with pipes")
        limit_s = self._settings.suspect_ms_max / 1000
        line = b""
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(limit_s):
                stdin.write(msgspec.json.encode(task) + b"\n")
                await stdin.drain()
                line = await stdout.readline()
        if line:
            return msgspec.json.decode(line, type=Answer), ""
        late = process.returncode is None and not stdout.at_eof()
        code = await self._end_process(kill=True)
        if late:
            return None, f"the process that took it alone did not answer within {limit_s:.0f} s"
        return None, f"the process that took it alone died ({f'signal {-code}' if code < 0 else f'exit status {code}'})"

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "cncmon_ingest.alone"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=LINE_BYTES_MAX,
            )
        return self._process

    async def _end_process(self, *, kill: bool = False) -> int:
        """End the process, if there is one, and return its exit status.

        Cancelled half-way it has killed the process where it was to; who ends it again then waits for that.
        """
        process = self._process
        if process is None:
            return 0
        if process.stdin is not None:
            process.stdin.close()
        if kill:
            try:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(process.wait()), DYING_S)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        if process.stdout is not None:
            # To its end, or the transport is left open for the garbage collector to complain of.
            await process.stdout.read()
        code = await process.wait()
        self._process = None
        return code


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
