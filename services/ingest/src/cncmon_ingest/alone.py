"""One message at a time, in a process of its own: what a message that kills may take with it (rule C3).

Reads lines of JSON from standard input, a `Task` each, and answers each with a line, an `Answer`, once it is committed.
Ends with its input.
"""

import asyncio
import contextlib
import resource
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from cncmon_ingest.commit import commit
from cncmon_ingest.connection import connect
from cncmon_ingest.decode import Incoming, Limits, decode
from cncmon_ingest.errors import OutageError
from cncmon_ingest.settings import IngestSettings
from cncmon_ingest.store import Store

MEMORY_BYTES_MAX: Final = 2 << 30
"""Address space; what wants more ends this process and no other."""


class Task(msgspec.Struct, frozen=True):
    """A message, and what is to be known for storing it."""

    settings: IngestSettings
    stream_created: datetime
    subject: str
    headers: dict[str, str]
    data: bytes
    stream_seq: int
    stored_at: datetime


class Answer(msgspec.Struct, frozen=True):
    """It is committed, `dead` if as a dead letter; or `outage` says why it can't be now."""

    dead: bool = False
    outage: str | None = None


async def settle(task: Task) -> Answer:
    """Commit one message."""
    settings = task.settings
    incoming = Incoming(task.subject, task.headers, task.data, task.stream_seq, task.stored_at)
    try:
        store = Store(await connect(settings.database_dsn), task.stream_created)
        try:
            now = max(incoming.stored_at, datetime.now(UTC) + await store.clock_offset())
            decoded = decode(incoming, Limits.at(now, settings.future_s_max, settings.retention_days))
            await commit(store, [decoded])
        finally:
            store.close()
    except OutageError as error:
        return Answer(outage=str(error))
    return Answer(dead=decoded.whole_dead)


def main() -> None:
    """Take tasks until there are no more."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    # Where memory runs out, this process is the one to go.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    for line in sys.stdin.buffer:
        answer = asyncio.run(settle(msgspec.json.decode(line, type=Task)))
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
