"""The writing end of a log: the segment being written, what is not synced yet, and what to do when the disk fails.

After a failed fdatasync the pages of a file say nothing of what is on the disk, and a second fdatasync would succeed
without having written them. So the file is left for good, and what was not synced is written again from memory.
"""

from typing import Final

from cncmon_agent.batch import Batch
from cncmon_agent.buffer import footer as footers
from cncmon_agent.buffer import record
from cncmon_agent.buffer.names import HEADER_BYTES, SegmentName
from cncmon_agent.buffer.reading import Readers
from cncmon_agent.buffer.record import Nonce
from cncmon_agent.buffer.segment import DATA_BYTES_MAX, Segment
from cncmon_agent.buffer.store import Store
from cncmon_agent.buffer.writer import Writer

ATTEMPTS: Final = 2


class Appender:
    """Writes batches behind the segments of a log.

    unsynced: batches by seq that a power cut would lose. synced: the seq up to which none would be. stranded: what is
    unsynced is in no file, since none could be written. era: how often files were left; a sync that began before proves
    nothing of the files after.
    """

    def __init__(self, store: Store, readers: Readers, segments: list[Segment], epoch: int, generation: int) -> None:
        self.unsynced: dict[int, Batch] = {}
        self.unsynced_bytes = 0
        self.synced = 0
        self.next = 1
        self.serial = 0
        self.stranded = False
        self.ended = False
        self.era = 0
        self.dirty: list[Segment] = []
        self._store = store
        self._readers = readers
        self._segments = segments
        self._epoch = epoch
        self._generation = generation
        self._writer: Writer | None = None

    @property
    def current(self) -> Segment | None:
        """The segment that is being written."""
        return self._segments[-1] if self._writer is not None else None

    @property
    def fill(self) -> float:
        """How much of the segment being written is used, 0 to 1; 1 when there is none."""
        return 1.0 if self._writer is None else self._writer.written_bytes / self._store.segment_bytes

    def append(self, batch: Batch) -> bool:
        """Write a batch of the next seq; False (and nothing changed) when there is no room, or no disk."""
        size = record.size_of(batch)
        too_large = len(batch.data) > DATA_BYTES_MAX or _least_file(size) > self._store.segment_bytes
        if too_large or batch.bytes > self._store.settings.unsynced_bytes_max - self.unsynced_bytes:
            return False
        if not self._write(batch, size):
            return False
        self.next += 1
        self.unsynced[batch.identity.seq] = batch
        self.unsynced_bytes += batch.bytes
        return True

    def forget(self, last: int) -> list[Batch]:
        """Forget what is unsynced up to a seq: it is needed no more. Return what was in memory only."""
        gone = [self.unsynced.pop(seq) for seq in list(self.unsynced) if seq <= last]
        self.unsynced_bytes -= sum(batch.bytes for batch in gone)
        return gone if self.stranded else []

    def begin_sync(self) -> list[Segment]:
        """Return the files with something unsynced in them, and begin a new group of records."""
        if self.stranded:
            self.rewrite()
        # A file that is not written any more is synced to its end, footer included.
        if not self.unsynced and len(self.dirty) <= int(self._writer is not None):
            return []
        if self._writer is not None:
            self._writer.end_group()
        return list(self.dirty)

    def end_sync(self, segments: list[Segment], last: int) -> None:
        """All seqs up to the last one appended when the sync began are synced; these files are so to their end."""
        self.forget(last)
        self.synced = max(self.synced, last)
        for segment in segments:
            if segment in self.dirty:
                self.dirty.remove(segment)
                self._close(segment)
                self._readers.keep_index(segment)

    def rewrite(self) -> bool:
        """Leave every file that is not synced, write what it had into a new one; False: that is only in memory now."""
        for _ in range(ATTEMPTS):
            self._abandon()
            self.stranded = bool(self.unsynced)
            if self._write_unsynced():
                self.stranded = False
                if self.ended:
                    self.end()
                return True
        self._abandon()
        return False

    def end(self) -> None:
        """Seal the file being written: nothing is appended any more."""
        self.ended = True
        if self._writer is not None:
            self._seal(self._segments[-1], self._writer)

    def close(self) -> None:
        """Close the files. Nothing is synced by it."""
        self._writer = None
        for segment in self._segments:
            self._close(segment)

    def _close(self, segment: Segment) -> None:
        if segment.fd is not None:
            self._store.disk.close(segment.fd)
            segment.fd = None

    def _write(self, batch: Batch, size: int) -> bool:
        if self.stranded:
            # The next sync tries again; trying at every batch would only wear the disk down.
            return False
        for _ in range(ATTEMPTS):
            if not self._ready_for(size, batch.identity.seq):
                return False
            if self._put(batch):
                return True
            if not self.rewrite():
                return False
        return False

    def _ready_for(self, size: int, seq: int) -> bool:
        """Whether there is a segment with room for a record; begins one where there is none."""
        if self._writer is not None:
            segment = self._segments[-1]
            if self._writer.fits(size, segment.last - segment.first + 1):
                return True
            self._seal(segment, self._writer)
        return self._begin_segment(seq)

    def _seal(self, segment: Segment, writer: Writer) -> None:
        self._writer = None
        if not segment.batches:
            self._let_go(segment)
            return
        try:
            if segment.index is not None:
                segment.footer, _ = writer.seal(segment.index, segment.first)
        except OSError:
            # Without a footer its records are found one by one. Whether they are safe, the coming sync tells.
            self._store.counters.write_errors += 1

    def _begin_segment(self, first: int) -> bool:
        name = SegmentName(self._generation, self._epoch, first, self.serial, Nonce.draw())
        try:
            fd = self._store.take(name)
        except OSError:
            self._store.counters.write_errors += 1
            return False
        self.serial += 1
        size = self._store.segment_bytes
        segment = Segment(name, self._store.folder, "warm", size, first, first - 1, index=footers.empty(), fd=fd)
        segment.named = False
        self._writer = Writer(self._store.disk, fd, name, size)
        self._segments.append(segment)
        self.dirty.append(segment)
        return True

    def _put(self, batch: Batch) -> bool:
        if self._writer is None:
            return False
        segment = self._segments[-1]
        try:
            at = self._writer.append(record.encode(batch, segment.name.nonce))
        except OSError:
            self._store.counters.write_errors += 1
            return False
        segment.add(at, batch)
        return True

    def _write_unsynced(self) -> bool:
        if not self._begin_segment(next(iter(self.unsynced), self.next)):
            return False
        return all(
            self._ready_for(record.size_of(batch), batch.identity.seq) and self._put(batch)
            for batch in list(self.unsynced.values())
        )

    def _abandon(self) -> None:
        self._writer = None
        self.era += 1
        last = next(iter(self.unsynced), self.next) - 1
        for segment in list(self.dirty):
            segment.usable = False
            segment.cut(last)
            segment.footer = None
            self._store.counters.abandoned_files += 1
            if not segment.batches:
                self._let_go(segment)
            elif not segment.pins:
                self._close(segment)
        self.dirty.clear()

    def _let_go(self, segment: Segment) -> None:
        self._readers.forget(segment)
        self._segments.remove(segment)
        if segment in self.dirty:
            self.dirty.remove(segment)
        self._store.release(segment)


def _least_file(record_bytes: int) -> int:
    return HEADER_BYTES + record_bytes + footers.size_of(1) + footers.PAGE
