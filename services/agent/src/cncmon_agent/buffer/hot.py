"""The hot tier: a bounded ring in memory. Batches are published from here."""

from collections.abc import Iterator

from cncmon_agent.batch import Batch
from cncmon_agent.buffer import Stats


class HotBuffer:
    """A ring of a power of two of slots, bounded in bytes too. Slot of a seq: seq modulo the ring's size."""

    def __init__(self, batches_max: int, bytes_max: int, first_seq: int = 1) -> None:
        size = 1 << (batches_max - 1).bit_length()
        self._slots: list[Batch | None] = [None] * size
        self._mask = size - 1
        self._batches_max = batches_max
        self._bytes_max = bytes_max
        self._head = first_seq
        self._tail = first_seq
        self._bytes = 0
        self._samples = 0

    def append(self, batch: Batch) -> bool:
        """Take the next batch; False when there is no room."""
        if batch.identity.seq != self._tail:
            raise ValueError(f"seq {batch.identity.seq} appended where {self._tail} is next")
        if self._tail - self._head >= self._batches_max or self._bytes + batch.bytes > self._bytes_max:
            return False
        self._slots[self._tail & self._mask] = batch
        self._tail += 1
        self._bytes += batch.bytes
        self._samples += batch.samples
        return True

    def get(self, seq: int) -> Batch | None:
        """Return the batch of a seq, if held."""
        return self._slots[seq & self._mask] if self._head <= seq < self._tail else None

    def free(self, up_to_seq: int) -> int:
        """Give up every batch up to a seq; return how many."""
        first = self._head
        while self._head < self._tail and self._head <= up_to_seq:
            batch = self._slots[self._head & self._mask]
            if batch is not None:
                self._bytes -= batch.bytes
                self._samples -= batch.samples
            self._slots[self._head & self._mask] = None
            self._head += 1
        return self._head - first

    def range(self) -> tuple[int, int]:
        """Return the first seq held and the next to append."""
        return self._head, self._tail

    def __iter__(self) -> Iterator[Batch]:
        """Iterate oldest first over what is held when each step is taken."""
        seq = self._head
        while seq < self._tail:
            batch = self.get(seq)
            if batch is not None:
                yield batch
            seq = max(seq + 1, self._head)

    def stats(self) -> Stats:
        """Return how full it is."""
        oldest = self.get(self._head)
        return Stats(
            batches=self._tail - self._head,
            samples=self._samples,
            bytes=self._bytes,
            capacity_bytes=self._bytes_max,
            oldest_created_s=oldest.created_s if oldest else None,
        )
