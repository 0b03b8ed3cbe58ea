"""The log of one epoch: its segments, read, freed and dropped as if they were one buffer.

Belongs to one thread, the event loop's. Nothing here waits for a disk but reads, and writes into the page cache.
"""

from bisect import bisect_right
from collections.abc import Iterator

from cncmon_agent import ranges
from cncmon_agent.batch import Batch
from cncmon_agent.buffer import Stats, record
from cncmon_agent.buffer import footer as footers
from cncmon_agent.buffer.appender import Appender
from cncmon_agent.buffer.footer import Index
from cncmon_agent.buffer.quarantine import Quarantine
from cncmon_agent.buffer.reading import PASSING, Readers
from cncmon_agent.buffer.segment import Segment
from cncmon_agent.buffer.store import Store
from cncmon_agent.ranges import Range


class SegmentLog:
    """The current epoch's log, or (writable False) an earlier one's that only drains. A `Buffer`.

    segments: oldest first, their seqs disjoint.
    """

    def __init__(self, store: Store, quarantine: Quarantine, epoch: int, generation: int) -> None:
        self.epoch = epoch
        self.generation = generation
        self.segments: list[Segment] = []
        self.writable = True
        self._store = store
        self._quarantine = quarantine
        self._readers = Readers(store.disk)
        self.appender = Appender(store, self._readers, self.segments, epoch, generation)
        self._head = 1
        self._batches = self._samples = self._bytes = 0
        self._oldest: tuple[int, int | None] = (0, None)

    @property
    def synced_seq(self) -> int:
        """Up to which seq everything survives a power cut that comes now."""
        return self.appender.synced

    @property
    def unsynced(self) -> dict[int, Batch]:
        """What a power cut would lose now, by seq."""
        return self.appender.unsynced

    def append(self, batch: Batch) -> bool:
        """Write the next batch, not yet synced; False (counted, and nothing changed) when there is no room or no disk.

        Raises:
            ValueError: it is not the next one, or of another epoch, or the log is an earlier one.
        """
        name = batch.identity
        if name.seq != self.appender.next or name.epoch != self.epoch or not self.writable:
            what = "" if self.writable else "; the log is of an earlier start and only drains"
            raise ValueError(f"seq {name.seq} of epoch {name.epoch} appended where {self.appender.next} is next{what}")
        if not self.appender.append(batch):
            self._store.counters.refused_batches += 1
            return False
        self._batches += 1
        self._samples += batch.samples
        self._bytes += batch.bytes
        return True

    def end(self) -> None:
        """Take nothing more: what is there is synced, and drains."""
        self.writable = False
        self.appender.end()

    def get(self, seq: int) -> Batch | None:
        """Return the batch of a seq; None when it is freed, not appended yet, dropped or damaged.

        What turns out to be damaged is quarantined and counted, and `holes` tells of it from then on.
        """
        if not self._head <= seq < self.appender.next:
            return None
        batch = self.appender.unsynced.get(seq)
        if batch is not None:
            return batch
        segment = self._segment_of(seq)
        if segment is None or (segment.bad and ranges.end_of(segment.bad, seq) is not None):
            return None
        try:
            fd = self._readers.fd_of(segment)
            entry = self._index_of(segment)[seq - segment.first]
        except OSError as error:
            self._store.counters.read_errors += 1
            if error.errno not in PASSING:
                self._lose(segment)
            return None
        if not entry:
            return None
        try:
            batch = segment.read(self._store.disk, fd, seq, entry)
        except OSError:
            self._store.counters.read_errors += 1
        if batch is None:
            self._damaged(segment, seq, entry)
        return batch

    def free(self, up_to_seq: int) -> int:
        """Give up every batch up to a seq and return how many those were; whole segments give their files back."""
        last = min(up_to_seq, self.appender.next - 1)
        if last < self._head:
            return 0
        before = self._batches
        for segment in self._up_to(last):
            if segment.last <= last:
                self._give_up(segment)
            elif not self._give_up_part(segment, max(self._head, segment.first), last):
                last = max(self._head, segment.first) - 1
        for batch in self.appender.forget(last):
            self._count_out(1, batch.samples, batch.bytes)
        self._head = last + 1
        self._settle()
        return before - self._batches

    def range(self) -> tuple[int, int]:
        """Return the first seq held and the next to append; equal when empty."""
        return self._head, self.appender.next

    def __iter__(self) -> Iterator[Batch]:
        """Iterate oldest first over what is held when each step is taken."""
        seq = self._head
        while seq < self.appender.next:
            batch = self.get(seq)
            if batch is not None:
                yield batch
            seq = max(seq + 1, self._head)

    def holes(self) -> list[Range]:
        """Return the ranges within `range()` that are not held: dropped, or damaged."""
        found: list[Range] = []
        expected = self._head
        for segment in self.segments:
            if segment.last < expected:
                continue
            if segment.first > expected:
                ranges.extend(found, expected, segment.first - 1)
            for low, high in segment.bad:
                if high >= expected:
                    ranges.extend(found, max(low, expected), high)
            expected = segment.last + 1
        # What is not in a file is in memory, but for what was dropped behind the last file.
        end = next(iter(self.appender.unsynced), self.appender.next)
        if expected < end:
            ranges.extend(found, expected, end - 1)
        return found

    def stats(self) -> Stats:
        """Return how full it is."""
        while self._oldest[0] != self._head or self._oldest[1] is None:
            # Reading may find it damaged, and then another is the oldest.
            head = self._head
            oldest = self.get(head)
            if oldest is not None or head == self._head:
                self._oldest = head, oldest.created_ms if oldest else None
                break
        return Stats(
            batches=self._batches,
            samples=self._samples,
            bytes=self._bytes,
            capacity_bytes=self._store.settings.spool_bytes_max,
            oldest_created_ms=self._oldest[1],
        )

    def install(self, segments: list[Segment]) -> None:
        """Take over the segments of an earlier start, oldest first and disjoint; nothing is appended any more."""
        self.writable = False
        self.segments.extend(segments)
        appender = self.appender
        self._head, appender.next = segments[0].first, segments[-1].last + 1
        appender.synced = appender.next - 1
        appender.serial = max(segment.name.serial for segment in segments) + 1
        for segment in segments:
            self._count_out(-segment.batches, -segment.samples, -segment.bytes)
        self._settle()

    def infos(self) -> list[tuple[Segment, bool]]:
        """Return the segments, and whether each may be dropped or moved: not while it is written, synced or copied."""
        return [(segment, segment.fd is None and not segment.pins) for segment in self.segments]

    def drop(self, segment: Segment) -> None:
        """Give up a whole segment that is still needed, and count it."""
        counters = self._store.counters
        counters.dropped_segments += 1
        counters.dropped_batches += segment.batches
        counters.dropped_samples += segment.samples
        self._give_up(segment)
        self._settle()

    def replace(self, segment: Segment, by: Segment) -> None:
        """Put a copy of a segment in its place. What of it is freed, and what can't be read, is so of the copy too."""
        self._forget(segment)
        self.segments[self.segments.index(segment)] = by
        self._store.release(segment)
        for low, high in segment.bad:
            if high >= by.first and low <= by.last:
                ranges.add(by.bad, max(low, by.first), min(high, by.last))
        self._count_out(segment.batches - by.batches, segment.samples - by.samples, segment.bytes - by.bytes)
        if by.first < self._head:
            self._give_up_part(by, by.first, min(self._head - 1, by.last))
        self._settle()

    def close(self) -> None:
        """Close the files. Nothing is synced by it, and nothing may be appended after it."""
        self._readers.close()
        self.appender.close()
        self.writable = False

    def _segment_of(self, seq: int) -> Segment | None:
        last_read = self._readers.segment
        if last_read is not None and last_read.first <= seq <= last_read.last:
            return last_read
        at = bisect_right(self.segments, seq, key=lambda segment: segment.first) - 1
        return self.segments[at] if at >= 0 and seq <= self.segments[at].last else None

    def _up_to(self, last: int) -> list[Segment]:
        found = []
        for segment in self.segments:
            if segment.first > last:
                break
            found.append(segment)
        return found

    def _index_of(self, segment: Segment) -> Index:
        """Return the index of a segment. Raises OSError.

        Where it had to be made anew from the records, since the footer is damaged by now, those that can't be read any
        more are not in it: how many samples each had is known no more, how many all of them had is.
        """
        if segment.index is not None:
            return segment.index
        index = self._readers.index_of(segment)
        if 0 in index:
            held = [seq for seq in range(max(self._head, segment.first), segment.last + 1) if segment.is_held(seq)]
            entries = [index[seq - segment.first] for seq in held]
            by_all = segment.batches, segment.samples, segment.bytes
            segment.batches = len(held)
            segment.samples = sum(footers.samples(entry) for entry in entries)
            segment.bytes = sum(footers.batch_bytes(entry) for entry in entries)
            lost = by_all[0] - segment.batches
            if lost:
                self._store.counters.quarantined_records += lost
                self._count_out(lost, by_all[1] - segment.samples, by_all[2] - segment.bytes)
                for seq in range(max(self._head, segment.first), segment.last + 1):
                    if index[seq - segment.first] == 0:
                        ranges.add(segment.bad, seq, seq)
                self._settle()
        return index

    def _damaged(self, segment: Segment, seq: int, entry: int) -> None:
        self._store.counters.quarantined_records += 1
        longest = record.FIXED_BYTES + record.SOURCE.size + footers.data_bytes(entry)
        self._quarantine.copy(segment.path, footers.place(entry), longest, self.epoch, seq)
        ranges.add(segment.bad, seq, seq)
        segment.give_up(entry)
        self._count_out(1, footers.samples(entry), footers.batch_bytes(entry))
        self._settle()

    def _lose(self, segment: Segment) -> None:
        """A whole file can't be opened: a disk that was pulled out, or is no more."""
        self._store.counters.quarantined_records += segment.batches
        self._count_out(segment.batches, segment.samples, segment.bytes)
        segment.batches = segment.samples = segment.bytes = 0
        segment.bad = [(segment.first, segment.last)]
        self._settle()

    def _forget(self, segment: Segment) -> None:
        self._readers.forget(segment)
        if segment in self.appender.dirty:
            self.appender.dirty.remove(segment)

    def _count_out(self, batches: int, samples: int, size: int) -> None:
        self._batches -= batches
        self._samples -= samples
        self._bytes -= size

    def _give_up(self, segment: Segment) -> None:
        self._count_out(segment.batches, segment.samples, segment.bytes)
        if segment is self.appender.current:
            # It goes on being written; what was in it counts no more.
            segment.batches = segment.samples = segment.bytes = 0
            return
        self._forget(segment)
        self.segments.remove(segment)
        self._store.release(segment)

    def _give_up_part(self, segment: Segment, first: int, last: int) -> bool:
        """Give up some seqs of a segment; False (and nothing changed) when the file can't be opened just now."""
        try:
            index = self._index_of(segment)
        except OSError as error:
            self._store.counters.read_errors += 1
            if error.errno in PASSING:
                return False
            self._lose(segment)
            return True
        for seq in range(first, last + 1):
            if segment.is_held(seq):
                entry = index[seq - segment.first]
                segment.give_up(entry)
                self._count_out(1, footers.samples(entry), footers.batch_bytes(entry))
        return True

    def _settle(self) -> None:
        """Move the first seq held over what is not held."""
        for segment in self.segments:
            if segment.last < self._head:
                continue
            self._head = max(self._head, segment.first)
            end = ranges.end_of(segment.bad, self._head)
            if end is None:
                return
            self._head = end + 1
            if self._head <= segment.last:
                return
        if self._head not in self.appender.unsynced:
            self._head = next(iter(self.appender.unsynced), self.appender.next)
