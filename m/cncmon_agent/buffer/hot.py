"""The hot tier: a bounded ring in memory. Batches are published from here."""

from array import array
from collections.abc import Iterator
from typing import Final

import msgspec
from prometheus_client import Counter

from cncmon_agent.batch import Batch
from cncmon_agent.buffer import Stats

REFUSED = Counter("cncmon_edge_hot_refused", "Batches that the buffer in memory had no room for.")

BATCH_BYTES_MIN: Final = 256
"""About what a batch of one sample takes at least; the index of so many adds a sixteenth to the ring."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Batch).decode


class HotRing:
    """Batches packed into one bytearray, whose length is a power of two and never changes.

    A position counts bytes from the beginning of time and only grows; its place is the position modulo the length. A
    batch takes `reserve`, `copy`, `commit`: until the commit no reader can see it. One thread writes; any may read.
    What is held costs no Python object: an entry of the index takes 16 bytes.
    """

    def __init__(self, capacity_bytes: int, batches_max: int | None = None, first_seq: int = 1) -> None:
        """capacity_bytes: rounded down to a power of two. batches_max: one for each 256 bytes where it is not said."""
        batches_max = max(1, capacity_bytes // BATCH_BYTES_MIN) if batches_max is None else batches_max
        if capacity_bytes < 1 or batches_max < 1:
            raise ValueError(f"a ring of {capacity_bytes} bytes and {batches_max} batches holds nothing")
        self.capacity_bytes = 1 << (capacity_bytes.bit_length() - 1)
        self._batches_max = batches_max
        self._ring = bytearray(self.capacity_bytes)
        slots = 1 << (batches_max - 1).bit_length()
        self._starts = array("Q", bytes(8 * slots))
        self._sizes = array("I", bytes(4 * slots))
        self._samples = array("I", bytes(4 * slots))
        self._slot_mask = slots - 1
        self._head_seq = self._next_seq = first_seq
        self._head = self._tail = 0
        self._samples_held = 0

    def append(self, batch: Batch) -> bool:
        """Take the next batch; False, and counted, when there is no room."""
        if batch.identity.seq != self._next_seq:
            raise ValueError(f"seq {batch.identity.seq} appended where {self._next_seq} is next")
        packed = _encode(batch)
        start = self.reserve(len(packed))
        if start is None:
            REFUSED.inc()
            return False
        self.copy(packed, start)
        self.commit(start, len(packed), batch.samples)
        return True

    def has_room(self, batch: Batch) -> bool:
        """Whether a batch would certainly be taken now: packed it takes less than `Batch.bytes`."""
        return self.reserve(batch.bytes) is not None

    def reserve(self, count: int) -> int | None:
        """Return the position at which `count` bytes may be copied and then committed; None when there is no room."""
        full = self._next_seq - self._head_seq >= self._batches_max or self._tail + count - self._head > len(self._ring)
        return None if full else self._tail

    def copy(self, packed: bytes, start: int) -> None:
        """Put bytes where they were reserved, round the end of the ring where need be."""
        place = start & (len(self._ring) - 1)
        until_end = min(len(packed), len(self._ring) - place)
        self._ring[place : place + until_end] = memoryview(packed)[:until_end]
        self._ring[: len(packed) - until_end] = memoryview(packed)[until_end:]

    def commit(self, start: int, count: int, samples: int) -> None:
        """Make what was copied the next batch."""
        slot = self._next_seq & self._slot_mask
        self._starts[slot] = start
        self._sizes[slot] = count
        self._samples[slot] = samples
        self._samples_held += samples
        self._tail = start + count
        # Last, for readers look at it first.
        self._next_seq += 1

    def get(self, seq: int) -> Batch | None:
        """Return the batch of a seq, if held."""
        if not self._head_seq <= seq < self._next_seq:
            return None
        slot = seq & self._slot_mask
        place = self._starts[slot] & (len(self._ring) - 1)
        stop = place + self._sizes[slot]
        packed = self._ring[place:stop] + self._ring[: max(0, stop - len(self._ring))]
        # A reader in another thread: what was freed while it was copied may be half of something newer.
        return _decode(packed) if seq >= self._head_seq else None

    def free(self, up_to_seq: int) -> int:
        """Give up every batch up to a seq; return how many."""
        first = self._head_seq
        last = min(up_to_seq, self._next_seq - 1)
        if last < first:
            return 0
        slot = last & self._slot_mask
        self._samples_held -= sum(self._samples[seq & self._slot_mask] for seq in range(first, last + 1))
        # First, so that a reader knows before the place can be written anew.
        self._head_seq = last + 1
        self._head = self._starts[slot] + self._sizes[slot]
        return last + 1 - first

    def range(self) -> tuple[int, int]:
        """Return the first seq held and the next to append."""
        return self._head_seq, self._next_seq

    def holes(self) -> list[tuple[int, int]]:
        """Return nothing: between the two ends of the ring every batch is there."""
        return []

    def __iter__(self) -> Iterator[Batch]:
        """Iterate oldest first over what is held when each step is taken."""
        seq = self._head_seq
        while seq < self._next_seq:
            batch = self.get(seq)
            if batch is not None:
                yield batch
            seq = max(seq + 1, self._head_seq)

    def stats(self) -> Stats:
        """Return how full it is; bytes are those of the ring."""
        oldest = self.get(self._head_seq)
        return Stats(
            batches=self._next_seq - self._head_seq,
            samples=self._samples_held,
            bytes=self._tail - self._head,
            capacity_bytes=self.capacity_bytes,
            oldest_created_ms=oldest.created_ms if oldest else None,
        )
