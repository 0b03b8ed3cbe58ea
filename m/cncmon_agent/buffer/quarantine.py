"""Copies of damaged records, for people. Nothing reads them again."""

import secrets
from pathlib import Path
from typing import Final

from cncmon_agent.buffer.disk import DiskCalls

FOLDER: Final = "quarantine"
COPY_BYTES_MAX: Final = 1 << 20


class Quarantine:
    """A folder of raw bytes, bounded: when it is full, no more is copied."""

    def __init__(self, disk: DiskCalls, folder: Path, bytes_max: int) -> None:
        """Raises OSError: the folder can't be listed."""
        self._disk = disk
        self._folder = folder / FOLDER
        self._left = bytes_max - sum(entry.bytes for entry in disk.list_files(self._folder))

    def copy(self, source: Path, at: int, count: int, epoch: int, seq: int) -> bool:
        """Copy bytes of a file where there is room; what the disk can't read or write is left out."""
        count = min(count, COPY_BYTES_MAX)
        if count > self._left:
            return False
        try:
            fd = self._disk.open(source)
            try:
                raw = self._disk.pread(fd, count, at)
            finally:
                self._disk.close(fd)
            self._disk.make_folder(self._folder)
            path = self._folder / f"{epoch:016x}-{seq:012x}-{secrets.token_hex(4)}.bin"
            copy = self._disk.open(path, write=True, create=True)
            try:
                self._disk.pwrite(copy, raw, 0)
            finally:
                self._disk.close(copy)
        except OSError:
            return False
        self._left -= len(raw)
        return True
