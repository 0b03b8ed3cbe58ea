"""Importing what a technician carried from an edge: through the very transaction that messages go through (rule D6).

Identities and frames are the original ones. So it doesn't matter in which order, how often and how far a file is
imported, nor whether the edge delivers the same batches itself.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import asyncpg
import msgspec

from cncmon_core.identity import subject_of
from cncmon_ingest import exports
from cncmon_ingest.commit import commit
from cncmon_ingest.connection import connect
from cncmon_ingest.decode import DAYS_MAX, Decoded, Incoming, Limits, decode
from cncmon_ingest.errors import ExportError, MigrationError
from cncmon_ingest.exports import Damaged, Exported
from cncmon_ingest.machines import Bounds
from cncmon_ingest.migrate import schema
from cncmon_ingest.settings import IngestSettings
from cncmon_ingest.store import Store

GROUP_BYTES_MAX: Final = 8 << 20
DAMAGE_TOLD_MAX: Final = 1000


class Summary(msgspec.Struct):
    """What became of files. batches_dead: kept as dead letters as a whole; frames_dead: single frames that were.

    damage: where and what, the first `DAMAGE_TOLD_MAX`; damaged: how many in all.
    """

    files: int = 0
    batches_new: int = 0
    batches_known: int = 0
    batches_dead: int = 0
    samples: int = 0
    frames_dead: int = 0
    damaged: int = 0
    damage: list[str] = []

    def note(self, file: Path, place: str, problem: str) -> None:
        """Take notice of something that can't be used."""
        self.damaged += 1
        if len(self.damage) < DAMAGE_TOLD_MAX:
            self.damage.append(f"{file}, {place}: {problem}")


async def run(
    settings: IngestSettings, files: Sequence[Path], progress: Callable[[Summary], None] = lambda _: None
) -> Summary:
    """Import files one after another; what can't be used of one stops neither the rest of it nor the others.

    Raises:
        OutageError: the database can't be used; run it again, what is in is known.
        MigrationError: its schema is not this program's.
    """
    summary = Summary()
    async with _store(settings) as store:
        offset = await store.clock_offset()
        for file in files:
            try:
                for group in _groups(file, summary, settings, lambda: datetime.now(UTC) + offset):
                    await _commit(store, group, summary)
                    progress(summary)
            except ExportError as error:
                summary.note(file, "the file", str(error))
            summary.files += 1
    return summary


@asynccontextmanager
async def _store(settings: IngestSettings) -> AsyncIterator[Store]:
    connection: asyncpg.Connection = await connect(settings.database_dsn, warn=False)
    try:
        if (problem := (await schema(connection)).problem()) is not None:
            raise MigrationError(problem)
        # There are no messages without identity here, so no stream that they could have their place in.
        yield Store(connection, datetime.min.replace(tzinfo=UTC), bounds=Bounds.of(settings))
    finally:
        connection.terminate()


def _groups(
    file: Path, summary: Summary, settings: IngestSettings, now: Callable[[], datetime]
) -> Iterator[list[Decoded]]:
    """Iterate over a file's batches, as many at once as one transaction may hold."""
    group: list[Decoded] = []
    size = 0
    days: set[int] = set()
    for item in exports.read(file):
        if isinstance(item, Damaged):
            summary.note(file, item.place, item.problem)
            continue
        limits = Limits.at(now(), settings.future_s_max, settings.retention_days)
        decoded = decode(_incoming(item), limits)
        full = len(group) >= settings.fetch_messages or size + len(item.payload) > GROUP_BYTES_MAX
        if group and (full or len(days | decoded.days) > DAYS_MAX):
            yield group
            group, size, days = [], 0, set()
        group.append(decoded)
        size += len(item.payload)
        days |= decoded.days
    if group:
        yield group


def _incoming(item: Exported) -> Incoming:
    """Return a batch as the message it would have come in. Its time is the edge's: it renames no epoch that is live."""
    headers = item.identity.to_headers(item.site, item.edge, None)
    return Incoming(subject_of(item.identity.kind, item.site, item.edge), headers, item.payload, 0, item.created)


async def _commit(store: Store, group: Sequence[Decoded], summary: Summary) -> None:
    done = await commit(store, group)
    for message in done.new:
        summary.batches_dead += message.whole_dead
        summary.batches_new += not message.whole_dead
        summary.samples += len(message.packed)
        summary.frames_dead += 0 if message.whole_dead else len(message.dead)
    for message in done.known:
        # Known under the same identity, and another batch: its bytes are kept.
        summary.batches_dead += message.whole_dead
        summary.batches_known += not message.whole_dead
