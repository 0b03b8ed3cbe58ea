"""Suspects, in a process of their own: what a message that kills may take with it (rule C3).

Writes `READY` and forks a child, which reads lines of JSON from standard input, a `Task` each, and answers each with a
line, an `Answer`, once all of it is committed: one event loop and one connection serve all tasks. When a child dies,
this process answers so and forks the next: it has imported all that they need, which takes a second. Ends with its
input.
"""

import cncmon_core.lean  # noqa: F401, I001 before anything that could take its libraries along

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from cncmon_core import logs
from cncmon_core.errors import CncmonError
from cncmon_ingest.commit import PORTION_BYTES_MAX, commit
from cncmon_ingest.connection import connect
from cncmon_ingest.database_identity import identity_of
from cncmon_ingest.decode import DAYS_MAX, Decoded, Incoming, Limits, decode
from cncmon_ingest.errors import DATABASE_ERRORS, OutageError, translate
from cncmon_ingest.machines import Bounds
from cncmon_ingest.settings import IngestSettings
from cncmon_ingest.store import Store

log = logs.get(__name__)

MEMORY_BYTES_MAX: Final = 2 << 30
"""Address space; what wants more ends the child and no other."""

PR_SET_PDEATHSIG: Final = 1

READY: Final = b"ready\n"
"""The first line of output: from here on it takes tasks."""


class Member(msgspec.Struct, frozen=True):
    """A message as the stream holds it."""

    subject: str
    headers: dict[str, str]
    data: bytes
    stream_seq: int
    stored_at: datetime


class Task(msgspec.Struct, frozen=True):
    """Messages, and what is to be known for storing them.

    life: generation and server of the database that the worker was admitted to: they count in no other. limit_s: how
    long the database may take; the worker waits longer, so who answers nothing at all hangs by itself. members: none
    where only that is to be seen, whether such a process gets an answer to anything.
    """

    settings: IngestSettings
    stream_created: datetime
    life: tuple[int, str]
    limit_s: float
    members: list[Member]


class Answer(msgspec.Struct, frozen=True):
    """All is committed, the members of these indexes as dead letters; or `outage` says why it can't be now.

    died: the exit status of the child that took the task, negative for a signal; None: it is alive.
    """

    dead: list[int] = []
    outage: str | None = None
    died: int | None = None


class Trier:
    """Commits tasks through one connection, which it keeps."""

    def __init__(self) -> None:
        self._store: Store | None = None
        self._of: tuple[str, datetime, tuple[int, str]] | None = None
        self._offset = timedelta(0)

    async def settle(self, task: Task) -> Answer:
        """Commit the members of a task, in as many transactions as their sizes and days want."""
        try:
            async with asyncio.timeout(task.limit_s):
                return Answer(dead=await self._commit(task, await self._connected(task)))
        except TimeoutError:
            self.close()
            return Answer(outage=f"the database did not commit {len(task.members)} messages in {task.limit_s:.0f} s")
        except OutageError as error:
            self.close()
            return Answer(outage=str(error))

    def close(self) -> None:
        """Drop the connection."""
        if self._store is not None:
            self._store.close()
        self._store = None

    async def _connected(self, task: Task) -> Store:
        of = task.settings.database_dsn, task.stream_created, task.life
        if self._store is not None and self._store.usable and self._of == of:
            return self._store
        self.close()
        connection = await connect(task.settings.database_dsn)
        self._store, self._of = Store(connection, task.stream_created, bounds=Bounds.of(task.settings)), of
        try:
            life = await identity_of(connection)
        except DATABASE_ERRORS as error:
            raise translate(error) from error
        if (life.generation, life.server) != task.life:
            raise OutageError(f"connected to generation {life.generation} of {life.server}, the worker to {task.life}")
        self._offset = await self._store.clock_offset()
        return self._store

    async def _commit(self, task: Task, store: Store) -> list[int]:
        settings = task.settings
        dead: list[int] = []
        portion: list[Decoded] = []
        size, days = 0, set[int]()
        for index, member in enumerate(task.members):
            incoming = Incoming(member.subject, member.headers, member.data, member.stream_seq, member.stored_at)
            now = max(incoming.stored_at, datetime.now(UTC) + self._offset)
            decoded = decode(incoming, Limits.at(now, settings.future_s_max, settings.retention_days))
            if portion and (size >= PORTION_BYTES_MAX or len(days | decoded.days) > DAYS_MAX):
                dead += await _write(store, portion, index)
                portion, size, days = [], 0, set()
            portion.append(decoded)
            size += decoded.payload_bytes
            days |= decoded.days
        return dead + await _write(store, portion, len(task.members)) if portion else dead


async def _write(store: Store, portion: Sequence[Decoded], end: int) -> list[int]:
    """Commit the messages before index `end`; return the indexes of those that are dead letters as a whole."""
    await commit(store, portion)
    return [end - len(portion) + place for place, decoded in enumerate(portion) if decoded.whole_dead]


async def serve(out: BinaryIO) -> None:
    """Take tasks until there are no more."""
    trier = Trier()
    try:
        while line := await asyncio.to_thread(sys.stdin.buffer.readline):
            _answer(out, await trier.settle(msgspec.json.decode(line, type=Task)))
    finally:
        trier.close()


def _answer(out: BinaryIO, answer: Answer) -> None:
    out.write(msgspec.json.encode(answer) + b"\n")
    out.flush()


def _own_output() -> BinaryIO:
    """Return standard output as it was; whatever is printed from here on, by a library in C, goes to standard error."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return out


def _die_with_parent() -> None:
    """Let no process that hangs outlive the one that waits for it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _child(out: BinaryIO) -> None:
    _die_with_parent()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    # Where memory runs out, this process is the one to go.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    asyncio.run(serve(out))


def main() -> None:
    """Have a child take the tasks; when it died, have the next."""
    _die_with_parent()
    out = _own_output()
    logs.setup("ingest")
    out.write(READY)
    out.flush()
    while True:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                _child(out)
                status = 0
            except (MemoryError, CncmonError, msgspec.MsgspecError, OSError):
                log.exception("the isolated process ends")
            finally:
                # Not through what this process was forked from.
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        if status == 0:
            return
        _answer(out, Answer(died=os.waitstatus_to_exitcode(status)))


if __name__ == "__main__":
    main()
