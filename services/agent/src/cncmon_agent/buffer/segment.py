"""A segment of the log: one file, and what is known of it without reading it."""

from pathlib import Path
from typing import Final, Literal

import msgspec

from cncmon_agent import ranges
from cncmon_agent.batch import Batch
from cncmon_agent.buffer import footer as footers
from cncmon_agent.buffer import record
from cncmon_agent.buffer.disk import DiskCalls
from cncmon_agent.buffer.footer import Footer, Index
from cncmon_agent.buffer.names import SegmentName
from cncmon_agent.buffer.scan import Found, index_of
from cncmon_agent.ranges import Range

Tier = Literal["warm", "cold"]
DATA_BYTES_MAX: Final = (1 << 24) - 1
"""The length field of an index entry."""


class SegmentInfo(msgspec.Struct, frozen=True):
    """What others may know of a segment. Seqs, samples and bytes are those still held of it."""

    epoch: int
    first: int
    last: int
    batches: int
    samples: int
    bytes: int
    tier: Tier
    sealed: bool
    path: str


class Segment(msgspec.Struct, eq=False):
    """A segment file.

    last: first - 1 while it is empty. batches, samples, bytes: of what is still held. bad: seqs between first and last
    that can't be read. index: an entry a seq; dropped from memory where the footer has it. fd: for writing, while
    something of it may be unsynced. pins: works in other threads that use it; it is released when they are done.
    usable: whether the file may be used anew: not when the disk failed under it. named: whether its name is durable.
    """

    name: SegmentName
    folder: Path
    tier: Tier
    file_bytes: int
    first: int
    last: int
    batches: int = 0
    samples: int = 0
    bytes: int = 0
    bad: list[Range] = []
    index: Index | None = None
    footer: Footer | None = None
    fd: int | None = None
    pins: int = 0
    released: bool = False
    usable: bool = True
    named: bool = True

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self.folder / str(self.name)

    @property
    def sealed(self) -> bool:
        """Whether it has its footer."""
        return self.footer is not None

    def info(self, head: int) -> SegmentInfo:
        """Return what others may know. head: the first seq that its log still holds."""
        return SegmentInfo(
            epoch=self.name.epoch,
            first=max(self.first, head),
            last=self.last,
            batches=self.batches,
            samples=self.samples,
            bytes=self.bytes,
            tier=self.tier,
            sealed=self.sealed,
            path=str(self.path),
        )

    def add(self, at: int, batch: Batch) -> None:
        """A batch was written at a place."""
        if self.index is not None:
            self.index.append(footers.pack(at, len(batch.data), batch.samples))
        self.last += 1
        self.batches += 1
        self.samples += batch.samples
        self.bytes += batch.bytes

    def missing(self) -> int:
        """Return how many seqs can't be read."""
        return sum(high - low + 1 for low, high in self.bad)

    def miss(self, seq: int) -> None:
        """The next seq is not in the file."""
        if self.index is not None:
            self.index.append(0)
        self.last += 1
        ranges.add(self.bad, seq, seq)

    def give_up(self, entry: int) -> None:
        """Count a batch as no longer held."""
        self.batches -= 1
        self.samples -= footers.samples(entry)
        self.bytes -= footers.batch_bytes(entry)

    def cut(self, last: int) -> None:
        """Forget what is above a seq: a later file has it. Needs the index."""
        if self.index is None or last >= self.last:
            return
        for seq in range(max(last + 1, self.first), self.last + 1):
            if self.is_held(seq):
                self.give_up(self.index[seq - self.first])
        self.last = max(last, self.first - 1)
        del self.index[self.last - self.first + 1 :]
        self.bad = [(low, min(high, self.last)) for low, high in self.bad if low <= self.last]

    def is_held(self, seq: int) -> bool:
        """Whether a seq between first and last is readable as far as is known. Needs the index."""
        if self.bad and ranges.end_of(self.bad, seq) is not None:
            return False
        return self.index is not None and self.index[seq - self.first] != 0

    def load_index(self, disk: DiskCalls, fd: int) -> Index:
        """Return the index, read from the footer or, should that be damaged by now, from the records."""
        if self.index is None and self.footer is not None:
            try:
                self.index = footers.read_index(disk, fd, self.footer, self.name.nonce)
            except OSError:
                self.index = None
        if self.index is None:
            self.index = index_of(disk, fd, self.name, self.file_bytes)
            self.index.extend([0] * (self.last - self.first + 1 - len(self.index)))
        return self.index

    def may_drop_index(self) -> bool:
        """Whether the index can be read again later."""
        return (
            self.footer is not None and self.fd is None and len(self.index or ()) == self.footer.last - self.first + 1
        )

    def read(self, disk: DiskCalls, fd: int, seq: int, entry: int) -> Batch | None:
        """Return the batch of an index entry; None where it is damaged. Raises OSError."""
        longest = record.FIXED_BYTES + record.SOURCE.size + footers.data_bytes(entry)
        raw = disk.pread(fd, longest, footers.place(entry))
        if len(raw) < record.FIXED_BYTES:
            return None
        size = record.HEAD.size + record.HEAD.unpack_from(raw)[2]
        if size > len(raw) or not record.is_whole(raw[:size], self.name.nonce):
            return None
        batch = record.decode(raw[:size])
        return batch if batch.identity.seq == seq and batch.identity.epoch == self.name.epoch else None


def of_scan(name: SegmentName, folder: Path, tier: Tier, file_bytes: int, found: Found) -> Segment:
    """Return the segment that a scan found."""
    segment = Segment(
        name=name,
        folder=folder,
        tier=tier,
        file_bytes=file_bytes,
        first=found.first,
        last=found.last,
        samples=found.samples,
        bytes=found.bytes,
        bad=list(found.bad),
        index=found.index,
        footer=found.footer,
    )
    segment.batches = found.last - found.first + 1 - segment.missing()
    return segment
