"""What an earlier start left on the disk: scanned file by file in another thread, then put together epoch by epoch."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from cncmon_agent.buffer.disk import DiskCalls
from cncmon_agent.buffer.names import UNFINISHED_SUFFIX, SegmentName
from cncmon_agent.buffer.quarantine import Quarantine
from cncmon_agent.buffer.reading import PASSING
from cncmon_agent.buffer.scan import Found, scan
from cncmon_agent.buffer.segment import Segment, SegmentInfo, Tier, of_scan
from cncmon_agent.buffer.store import Store

ATTEMPTS: Final = 10
"""How often a file is tried that can't be opened for a reason that may pass, such as too many open files."""

NoteEnd = Callable[[int, int], bool]
"""Writes down, durably, that an epoch of an earlier start goes up to a seq at least; whether it could."""

COPY_BYTES: Final = 1 << 20
"""Read and written at a time where a file is rewritten."""


class Leftover(msgspec.Struct, eq=False):
    """A segment file of an earlier start. found: what the scan found; None before it and when the file can't be opened.

    done: its scan is installed. dropped: its file was needed before that. retry: it could not be opened, for a reason
    that may pass, or be made durable. failed: a sync of it failed, so that no later one proves anything.
    """

    name: SegmentName
    folder: Path
    tier: Tier
    file_bytes: int
    found: Found | None = None
    done: bool = False
    dropped: bool = False
    retry: bool = False
    failed: bool = False

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
            # After a mere crash of the process this may be in memory only; it is reported as safe from now on.
            self.retry = not self._make_durable(disk, fd)
            self.found = scan(disk, fd, self.name, self.file_bytes)
        finally:
            disk.close(fd)

    def read(self, disk: DiskCalls) -> Segment:
        """Return what is in the file, as durable as it is: one batch where it can't be opened. Waits for the disk."""
        found = self.found
        if found is None:
            try:
                fd = disk.open(self.path)
            except OSError:
                return self.unread(self.name.first)
            try:
                found = scan(disk, fd, self.name, self.file_bytes)
            finally:
                disk.close(fd)
        return self.segment(found)

    def unread(self, last: int) -> Segment:
        """Return the file as a segment that nobody has read."""
        first = self.name.first
        return Segment(
            self.name, self.folder, self.tier, self.file_bytes, first, last, batches=max(0, last - first + 1)
        )

    def segment(self, found: Found) -> Segment:
        """Return the file as a segment with what was found in it."""
        return of_scan(self.name, self.folder, self.tier, self.file_bytes, found)

    def _make_durable(self, disk: DiskCalls, fd: int) -> bool:
        """Sync the file; where the disk fails at that, write what it holds into another that takes its place.

        A sync after a failed one may succeed without having written anything (see `appender`).
        """
        if not self.failed:
            try:
                disk.fdatasync(fd)
            except OSError:
                self.failed = True
            else:
                return True
        unfinished = self.path.with_name(self.path.name + UNFINISHED_SUFFIX)
        try:
            self._copy(disk, fd, unfinished)
            disk.rename(unfinished, self.path)
            disk.sync_folder(self.folder)
        except OSError:
            with suppress(OSError):
                disk.unlink(unfinished)
            return False
        self.failed = False
        return True

    def _copy(self, disk: DiskCalls, fd: int, path: Path) -> None:
        copy = disk.open(path, write=True, create=True)
        try:
            at = 0
            while data := disk.pread(fd, min(COPY_BYTES, self.file_bytes - at), at):
                disk.pwrite(copy, data, at)
                at += len(data)
            disk.fdatasync(copy)
        finally:
            disk.close(copy)


class Recovery:
    """The files that earlier starts left, by epoch, until all of an epoch are scanned.

    adopt: called with an epoch and its files when they are; it makes them a log.
    """

    def __init__(self, store: Store, adopt: Callable[[int, list[Leftover]], None]) -> None:
        self.leftovers: dict[int, list[Leftover]] = {}
        self.disk = store.disk
        self._store = store
        self._adopt = adopt

    def add(self, leftovers: Iterable[Leftover]) -> None:
        """Take over what was found in the folders, oldest first."""
        for leftover in leftovers:
            self.leftovers.setdefault(leftover.name.epoch, []).append(leftover)

    def steps(self) -> "Iterator[Piece]":
        """Yield one piece of work for each file, oldest first; again what could not be opened just then."""
        everything = [leftover for group in self.leftovers.values() for leftover in group]
        for attempt in range(ATTEMPTS, 0, -1):
            for leftover in everything:
                if not leftover.done:
                    yield Piece(self, leftover, last=attempt == 1)

    def install(self, leftover: Leftover) -> None:
        """A file is done with; with the last of its epoch the epoch is."""
        leftover.done = True
        epoch = leftover.name.epoch
        group = self.leftovers.get(epoch)
        if group is not None and all(left.done for left in group):
            self._adopt(epoch, group)
            del self.leftovers[epoch]

    def drop_one(self, tier: Tier | None, note_end: NoteEnd) -> SegmentInfo | None:
        """Drop the oldest file that is not installed yet.

        What was in it is known from the next one's name. The last one of its epoch is read first, and what it says is
        written down: nothing else tells where the epoch ended, and what was in it would be missing in silence.
        """
        waiting = [left for group in self.leftovers.values() for left in group if not left.dropped]
        for at, left in enumerate(waiting):
            if tier is not None and left.tier != tier:
                continue
            behind = next((other.name for other in waiting[at + 1 :]), None)
            if behind is not None and behind.epoch == left.name.epoch:
                segment = left.unread(behind.first - 1)
            else:
                segment = left.read(self.disk)
                if not note_end(left.name.epoch, segment.last):
                    continue
            left.dropped = True
            self._store.counters.dropped_segments += 1
            self._store.counters.dropped_batches += segment.batches
            self._store.counters.dropped_samples += segment.samples
            self._store.release(segment)
            return segment.info(0)
        return None


class Piece:
    """One file's recovery: `run` in any thread, then `install` in the spool's."""

    def __init__(self, recovery: Recovery, leftover: Leftover, *, last: bool) -> None:
        self._recovery = recovery
        self._leftover = leftover
        self._last = last

    def run(self) -> None:
        """Scan the file; waits for the disk."""
        if not self._leftover.dropped:
            self._leftover.scan(self._recovery.disk)

    def install(self) -> None:
        """Take over what was found. A file that could not be opened just then is tried again."""
        if self._leftover.dropped or self._last or not self._leftover.retry:
            self._recovery.install(self._leftover)


def assemble(store: Store, quarantine: Quarantine, leftovers: Iterable[Leftover]) -> list[Segment]:
    """Return the segments of an epoch, oldest first and disjoint; files that hold nothing (more) are given back.

    Two files may have the same seqs: one that was left after a failed sync and the one that took its place, or one of
    the warm tier and its copy in the cold. What they have is the same, and the later file counts.
    """
    segments: list[Segment] = []
    for left in leftovers:
        if left.dropped:
            continue
        store.counters.sync_errors += left.failed
        if left.found is None or left.found.newer:
            store.counters.read_errors += left.found is None
            store.counters.newer_files += left.found is not None
            continue
        segment = left.segment(left.found)
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
