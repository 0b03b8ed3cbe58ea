"""The current epoch's buffer: on disk first, in memory for publishing; or in memory alone where there is no disk."""

from collections.abc import Iterator
from typing import Protocol

from cncmon_agent.batch import Batch
from cncmon_agent.buffer import Buffer, Stats
from cncmon_agent.buffer.hot import REFUSED, HotRing


class SyncedBuffer(Buffer, Protocol):
    """A log: what it takes is safe from a power cut once it has synced it."""

    @property
    def synced_seq(self) -> int:
        """Up to which seq everything would survive a power cut that comes now."""
        ...


class TieredBuffer:
    """A ring in memory over a log on disk; both hold the same batches, the ring only the newest of them.

    What the log has synced is given up in the ring, oldest first, when that needs room, and read from the log from then
    on. What is not synced stays in both. Without a log (memory-only) nothing is given up but what is freed.
    """

    def __init__(self, hot: HotRing, log: SyncedBuffer | None = None) -> None:
        """hot and log must be at the same seq. accepted_bytes: compressed bytes taken since the start."""
        if log is not None and log.range()[1] != hot.range()[1]:
            raise ValueError(f"the log goes on at seq {log.range()[1]}, the ring in memory at {hot.range()[1]}")
        self.accepted_bytes = 0
        self._hot = hot
        self._log = log
        self._held: HotRing | SyncedBuffer = hot if log is None else log

    @property
    def memory_only(self) -> bool:
        """Whether there is no disk under it."""
        return self._log is None

    def append(self, batch: Batch) -> bool:
        """Take the next batch, in the log before anybody can read it here; False when there is no room in either.

        Raises:
            ValueError: it is not the next one.
        """
        _, expected = self._hot.range()
        if batch.identity.seq != expected:
            raise ValueError(f"seq {batch.identity.seq} appended where {expected} is next")
        taken = self._hot.append(batch) if self._log is None else self._append_to_both(batch, self._log)
        if taken:
            self.accepted_bytes += len(batch.data)
        return taken

    def leave_memory(self) -> bool:
        """Give up what is in memory once all of it is synced and nothing more is to come; whether that is done."""
        if self._log is None:
            return False
        first, end = self._log.range()
        if first < end and self._log.synced_seq < end - 1:
            return False
        self._hot = HotRing(1, 1, first_seq=end)
        return True

    def _append_to_both(self, batch: Batch, log: SyncedBuffer) -> bool:
        if not self._make_room(batch, log):
            REFUSED.inc()
            return False
        # Rule A2 of docs/delivery.md: in the log before it is published, which is from the ring.
        if not log.append(batch):
            return False
        if not self._hot.append(batch):
            raise RuntimeError(f"the ring refused seq {batch.identity.seq}, for which it had room")
        return True

    def _make_room(self, batch: Batch, log: SyncedBuffer) -> bool:
        while not self._hot.has_room(batch):
            first, end = self._hot.range()
            if first >= end or first > log.synced_seq:
                return False
            self._hot.free(first)
        return True

    def get(self, seq: int) -> Batch | None:
        """Return the batch of a seq, from memory if it is there; None when it is not held.

        What the log had to drop is not held, even where memory still has it: it is declared as a gap.
        """
        if self._log is None:
            return self._hot.get(seq)
        if seq < self._log.range()[0]:
            return None
        batch = self._hot.get(seq)
        return batch if batch is not None else self._log.get(seq)

    def free(self, up_to_seq: int) -> int:
        """Give up every batch up to a seq, in memory and on disk, and return how many those were."""
        freed = self._hot.free(up_to_seq)
        return freed if self._log is None else self._log.free(up_to_seq)

    def range(self) -> tuple[int, int]:
        """Return the first seq held and the next to append."""
        return self._held.range()

    def holes(self) -> list[tuple[int, int]]:
        """Return the ranges within `range()` that are not held."""
        if self._log is None:
            return []
        # What the disk has lost may still be in memory.
        in_memory, _ = self._hot.range()
        holes = [(first, min(last, in_memory - 1)) for first, last in self._log.holes()]
        return [(first, last) for first, last in holes if first <= last]

    def __iter__(self) -> Iterator[Batch]:
        """Iterate oldest first over what is held when each step is taken."""
        seq, end = self.range()
        while seq < end:
            batch = self.get(seq)
            if batch is not None:
                yield batch
            first, end = self.range()
            seq = max(seq + 1, first)

    def stats(self) -> Stats:
        """Return how full it is: what is in both counts once, in the log's measure."""
        return self._held.stats()
