"""What an earlier start left on the disk: scanned file by file in another thread, then put together epoch by epoch."""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from cncmon_agent.buffer.disk import DiskCalls
from cncmon_agent.buffer.names import SegmentName
from cncmon_agent.buffer.quarantine import Quarantine
from cncmon_agent.buffer.reading import PASSING
from cncmon_agent.buffer.scan import Found, scan
from cncmon_agent.buffer.segment import Segment, Tier, of_scan
from cncmon_agent.buffer.store import Store


class Leftover(msgspec.Struct, eq=False):
    """A segment file of an earlier start. found: what the scan found; None before it and when the file can't be opened.

    done: its scan is installed. dropped: its file was needed before that. retry: it could not be opened, for a reason
    that may pass.
    """

    name: SegmentName
    folder: Path
    tier: Tier
    file_bytes: int
    found: Found | None = None
    done: bool = False
    dropped: bool = False
    retry: bool = False

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self.folder / str(self.name)

    def scan(self, disk: DiskCalls) -> None:
        """Read the file. In any thread; waits for the disk."""
        self.retry = False
        try:
            fd = disk.open(self.path)
        except OSError as error:
            self.retry = error.errno in PASSING
            return
        try:
            with suppress(OSError):
                # After a mere crash of the process this may be in memory only; it is reported as safe from now on.
                disk.fdatasync(fd)
            self.found = scan(disk, fd, self.name, self.file_bytes)
        finally:
            disk.close(fd)


def assemble(store: Store, quarantine: Quarantine, leftovers: Iterable[Leftover]) -> list[Segment]:
    """Return the segments of an epoch, oldest first and disjoint; files that hold nothing (more) are given back.

    Two files may have the same seqs: one that was left after a failed sync and the one that took its place, or one of
    the warm tier and its copy in the cold. What they have is the same, and the later file counts.
    """
    segments: list[Segment] = []
    for left in leftovers:
        if left.dropped:
            continue
        if left.found is None or left.found.newer:
            store.counters.read_errors += left.found is None
            store.counters.newer_files += left.found is not None
            continue
        segment = of_scan(left.name, left.folder, left.tier, left.file_bytes, left.found)
        if segment.batches:
            segments.append(segment)
        else:
            store.release(segment)
    segments.sort(key=lambda segment: (segment.first, segment.name.serial))
    kept: list[Segment] = []
    for segment in reversed(segments):
        if kept and segment.last >= kept[-1].first:
            _cut(store, segment, kept[-1].first - 1)
        if segment.batches:
            kept.append(segment)
        else:
            store.release(segment)
    kept.reverse()
    for left in leftovers:
        for at, end in left.found.damaged if left.found and not left.dropped else ():
            quarantine.copy(left.path, at, end - at, left.name.epoch, left.name.first)
    store.counters.quarantined_records += sum(high - low + 1 for segment in kept for low, high in segment.bad)
    return kept


def _cut(store: Store, segment: Segment, last: int) -> None:
    store.counters.duplicates += segment.last - max(last, segment.first - 1)
    try:
        fd = store.disk.open(segment.path)
    except OSError:
        segment.batches = 0
        return
    try:
        segment.load_index(store.disk, fd)
    finally:
        store.disk.close(fd)
    segment.cut(last)
