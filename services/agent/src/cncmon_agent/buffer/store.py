"""The files of the log: made, taken into use, used anew, removed. Knows nothing of what is in them.

A file whose segment is freed becomes a spare and is used again, since writing into blocks that were written before
costs no metadata. It is written to only once its new name can't be lost: a power cut that brought the old name back
over new content would show parts of what was freed as damaged.
"""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from cncmon_agent.buffer.disk import DiskCalls
from cncmon_agent.buffer.names import SPARE_SUFFIX, SegmentName, spare_name
from cncmon_agent.buffer.segment import Segment
from cncmon_agent.buffer.spool_settings import SpoolSettings
from cncmon_agent.buffer.spool_stats import Counters

__all__ = ["SPARES_MAX", "Spare", "SpoolSettings", "Store", "is_spare"]

SPARES_MAX: Final = 2


class Spare(msgspec.Struct):
    """A file that holds nothing. durable: its name is synced, so that it may be written to."""

    path: Path
    durable: bool


class Store:
    """The folder's files. shed: drops a segment to make room; False when there is none."""

    def __init__(self, disk: DiskCalls, folder: Path, settings: SpoolSettings) -> None:
        self.disk = disk
        self.folder = folder
        self.settings = settings
        self.counters = Counters()
        self.spares: list[Spare] = []
        self.warm_bytes = 0
        self.cold_bytes = 0
        self.promised_bytes = 0
        self.folder_dirty = False
        self.shed: Callable[[], bool] = lambda: False

    @property
    def segment_bytes(self) -> int:
        """Bytes of a warm file."""
        return self.settings.segment_bytes

    @property
    def used_bytes(self) -> int:
        """Bytes that count against `spool_bytes_max`, those of files that a work in another thread makes included."""
        cold = 0 if self.settings.cold_dir else self.cold_bytes
        return self.warm_bytes + len(self.spares) * self.segment_bytes + cold + self.promised_bytes

    def has_room(self, more_bytes: int) -> bool:
        """Whether the cap and the file system leave room for more."""
        if self.used_bytes + more_bytes > self.settings.spool_bytes_max:
            return False
        return self.disk.free_bytes(self.folder) >= more_bytes + self.settings.reserve_bytes

    def take(self, name: SegmentName) -> int:
        """Return a descriptor of a file of this name, all its blocks allocated; drops old segments to get one.

        Raises:
            OSError: there is none to be had. ENOSPC: nor anything to drop.
        """
        spare = self._spare()
        if spare is None:
            return self._make(name)
        try:
            fd = self.disk.open(spare.path, write=True)
        except FileNotFoundError:
            # Somebody removed it, to make room.
            self.spares.remove(spare)
            return self.take(name)
        try:
            self.disk.rename(spare.path, self.folder / str(name))
        except OSError:
            self.disk.close(fd)
            raise
        self.spares.remove(spare)
        self.folder_dirty = True
        self.warm_bytes += self.segment_bytes
        return fd

    def _spare(self) -> Spare | None:
        """Return a spare that may be written to; None when a new file has to be made, and may be."""
        while not self.spares and not self.has_room(self.segment_bytes):
            if not self.shed():
                raise OSError(errno.ENOSPC, "the log's folder is full and there is no segment to drop")
        if not self.spares:
            return None
        spare = next((spare for spare in self.spares if spare.durable), self.spares[0])
        if not spare.durable:
            self.sync_folder()
        return spare

    def _make(self, name: SegmentName) -> int:
        try:
            fd = self.make_file(self.folder / str(name))
        except OSError as error:
            # Others fill the disk too: what statvfs said a moment ago need not hold.
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self.shed():
                raise
            return self.take(name)
        self.folder_dirty = True
        self.warm_bytes += self.segment_bytes
        return fd

    def make_file(self, path: Path) -> int:
        """Return a descriptor of a new file, in any thread. Raises OSError, and nothing is left of it then."""
        fd = self.disk.open(path, write=True, create=True)
        try:
            self.disk.allocate(fd, self.segment_bytes)
        except OSError:
            self.disk.close(fd)
            self.disk.unlink(path)
            raise
        return fd

    def sync_folder(self) -> None:
        """Make all names durable now. Raises OSError."""
        self.disk.sync_folder(self.folder)
        self.folder_dirty = False
        for spare in self.spares:
            spare.durable = True

    def release(self, segment: Segment) -> None:
        """A segment is no longer needed: its file becomes a spare, or its space is given back."""
        if segment.pins:
            segment.released = True
            return
        if segment.fd is not None:
            self.disk.close(segment.fd)
            segment.fd = None
        if segment.tier == "cold":
            self.cold_bytes -= segment.file_bytes
        else:
            self.warm_bytes -= segment.file_bytes
        self.discard(segment.path, usable=segment.usable and segment.tier == "warm", file_bytes=segment.file_bytes)

    def discard(self, path: Path, *, usable: bool, file_bytes: int) -> None:
        """Make a file a spare, or remove it. It may be back after a power cut; whoever reads it then frees it again."""
        wanted = len(self.spares) < SPARES_MAX and self.used_bytes + file_bytes <= self.settings.spool_bytes_max
        if usable and wanted and file_bytes == self.segment_bytes and self._spare_of(path):
            return
        try:
            self.disk.unlink(path)
        except OSError:
            # A disk that went away, or read-only by now. What is left over is found at the next start.
            self.counters.write_errors += 1

    def _spare_of(self, path: Path) -> bool:
        spare = Spare(self.folder / spare_name(), durable=False)
        try:
            self.disk.rename(path, spare.path)
        except OSError:
            self.counters.write_errors += 1
            return False
        self.spares.append(spare)
        self.folder_dirty = True
        return True

    def unpin(self, segment: Segment) -> None:
        """A work in another thread is done with a segment."""
        segment.pins -= 1
        if segment.pins:
            return
        if segment.released:
            segment.released = False
            self.release(segment)
        elif not segment.usable and segment.fd is not None:
            # Left for good while a sync of it was under way.
            self.disk.close(segment.fd)
            segment.fd = None

    def adopt_spares(self, names: list[str]) -> None:
        """Take over the spares of an earlier run; those beyond two are removed. Their names are durable."""
        for name in names:
            if len(self.spares) < SPARES_MAX:
                self.spares.append(Spare(self.folder / name, durable=True))
            else:
                self.disk.unlink(self.folder / name)


def is_spare(name: str) -> bool:
    """Whether a file's name is that of a spare."""
    return name.endswith(SPARE_SUFFIX)
