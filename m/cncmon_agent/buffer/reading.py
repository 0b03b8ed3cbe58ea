"""Descriptors and indexes for reading: one of the former, a few of the latter, however long the log is."""

import errno
from typing import Final

from cncmon_agent.buffer.disk import DiskCalls
from cncmon_agent.buffer.footer import Index
from cncmon_agent.buffer.segment import Segment

INDEXES_MAX: Final = 3
"""Indexes of sealed segments in memory: those of the places at which batches are read and freed."""
PASSING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN})
"""Errors that say nothing of the file."""


class Readers:
    """What is open for reading."""

    def __init__(self, disk: DiskCalls) -> None:
        self._disk = disk
        self._open: tuple[Segment, int] | None = None
        self._loaded: list[Segment] = []

    @property
    def segment(self) -> Segment | None:
        """The segment read last."""
        return self._open[0] if self._open else None

    def fd_of(self, segment: Segment) -> int:
        """Return a descriptor to read a segment with. Raises OSError."""
        if segment.fd is not None:
            return segment.fd
        if self._open is None or self._open[0] is not segment:
            self.close()
            self._open = segment, self._disk.open(segment.path)
        return self._open[1]

    def index_of(self, segment: Segment) -> Index:
        """Return the index of a segment, loaded where it is not in memory. Raises OSError."""
        index = segment.index
        if index is None:
            index = segment.load_index(self._disk, self.fd_of(segment))
            self.keep_index(segment)
        return index

    def keep_index(self, segment: Segment) -> None:
        """Remember that a sealed segment's index is in memory, and drop the one that came first."""
        if segment in self._loaded:
            return
        self._loaded.append(segment)
        if len(self._loaded) > INDEXES_MAX:
            oldest = self._loaded.pop(0)
            if oldest.may_drop_index():
                oldest.index = None

    def forget(self, segment: Segment) -> None:
        """A segment goes away."""
        if self.segment is segment:
            self.close()
        if segment in self._loaded:
            self._loaded.remove(segment)

    def close(self) -> None:
        """Close what is open."""
        if self._open is not None:
            self._disk.close(self._open[1])
            self._open = None
