"""Group commit: what is to be made durable, done in another thread."""

from pathlib import Path

import msgspec

from cncmon_agent.buffer.log import SegmentLog
from cncmon_agent.buffer.segment import Segment
from cncmon_agent.buffer.store import Spare, Store


class Part(msgspec.Struct):
    """What of one log is synced.

    ended: those of the segments that were not written any more when the sync began. last: the last seq appended by
    then. failed: some of it is not safe.
    """

    log: SegmentLog
    segments: list[Segment]
    ended: list[Segment]
    fds: list[int]
    last: int
    era: int
    failed: bool = False


class SyncWork:
    """A snapshot of what is unsynced. `run` in any thread, once; then it goes back to `Spool.synced`.

    make: a spare to make on the way, so that the next segment begins without waiting for the disk.
    """

    def __init__(self, store: Store, parts: list[Part], make: Path | None) -> None:
        self.parts = parts
        self.made: Spare | None = None
        self.folder_failed = False
        self.spares = [spare for spare in store.spares if not spare.durable]
        self.folder = store.folder_dirty or make is not None or bool(self.spares)
        self._store = store
        self._make = make

    @property
    def makes(self) -> bool:
        """Whether it makes a spare."""
        return self._make is not None

    def run(self) -> None:
        """Sync the files, then their names. What the disk says to it is kept for `Spool.synced`."""
        disk = self._store.disk
        for part in self.parts:
            for fd in part.fds:
                try:
                    disk.fdatasync(fd)
                except OSError:
                    part.failed = True
        if self._make is not None:
            self.made = self._make_spare(self._make)
        if self.folder:
            try:
                disk.sync_folder(self._store.folder)
            except OSError:
                self.folder_failed = True

    def _make_spare(self, path: Path) -> Spare | None:
        disk = self._store.disk
        try:
            fd = self._store.make_file(path)
            try:
                disk.fdatasync(fd)
            finally:
                disk.close(fd)
        except OSError:
            disk.unlink(path)
            return None
        return Spare(path, durable=True)
