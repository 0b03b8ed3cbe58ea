"""The calls of the operating system under the log, and nothing else: the only thing a simulated disk has to replace.

No mmap: a store into a mapped page of a full or failing disk is a SIGBUS, pwrite is an error that can be handled.
Every method raises OSError as the operating system does.
"""

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

ZEROS = bytes(4096)
"""Written a page at a time: the page cache keeps what is written at once together, in units of up to some hundred KiB,
and counts all of one as written by the process when a page in it is written again.
"""


class Entry(NamedTuple):
    """A file of a folder and its size."""

    name: str
    bytes: int


class DiskCalls(Protocol):
    """What the log asks of a disk."""

    def make_folder(self, folder: Path) -> None:
        """Make a folder and those above it where they are missing."""
        ...

    def lock(self, path: Path) -> int:
        """Take an exclusive lock that ends with the process; return what to close. BlockingIOError: it is taken."""
        ...

    def list_files(self, folder: Path) -> list[Entry]:
        """Return the regular files of a folder; empty where there is no such folder."""
        ...

    def open(self, path: Path, *, write: bool = False, create: bool = False) -> int:
        """Return a descriptor. create: the file must not exist yet."""
        ...

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        ...

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        """Return up to `count` bytes; fewer only at the file's end."""
        ...

    def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        """Write all of `data`."""
        ...

    def allocate(self, fd: int, count: int) -> None:
        """Make the file `count` bytes long with blocks behind all of it, or raise ENOSPC."""
        ...

    def fdatasync(self, fd: int) -> None:
        """Return when the file's content would survive a power cut."""
        ...

    def sync_folder(self, folder: Path) -> None:
        """Return when the folder's names would survive a power cut."""
        ...

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name in the same folder."""
        ...

    def unlink(self, path: Path) -> None:
        """Remove a file; no error where there is none."""
        ...

    def free_bytes(self, folder: Path) -> int:
        """Return how many bytes an ordinary user may still write to the file system of a folder."""
        ...


class Disk:
    """The real disk."""

    def make_folder(self, folder: Path) -> None:
        """Make a folder and those above it where they are missing."""
        folder.mkdir(parents=True, exist_ok=True)

    def lock(self, path: Path) -> int:
        """Take an exclusive flock."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise
        return fd

    def list_files(self, folder: Path) -> list[Entry]:
        """Return the regular files of a folder."""
        try:
            with os.scandir(folder) as found:
                return [Entry(item.name, item.stat().st_size) for item in found if item.is_file(follow_symlinks=False)]
        except FileNotFoundError:
            return []

    def open(self, path: Path, *, write: bool = False, create: bool = False) -> int:
        """Open a file, or make one."""
        flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC
        fd = os.open(path, flags | (os.O_CREAT | os.O_EXCL if create else 0), 0o644)
        if write and not create:
            # A file that is used anew is only written, in whole pages: what is cached of it is memory for nothing.
            with suppress(OSError):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return fd

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        """Read until all is there or the file ends."""
        data = os.pread(fd, count, offset)
        while data and len(data) < count:
            more = os.pread(fd, count - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        """Write until all is written."""
        done = os.pwrite(fd, data, offset)
        while done < len(data):
            # A signal or a disk that is nearly full cuts a write short; the next one says which.
            more = os.pwrite(fd, memoryview(data)[done:], offset + done)
            if not more:
                raise OSError(errno.EIO, "pwrite wrote nothing")
            done += more

    def allocate(self, fd: int, count: int) -> None:
        """posix_fallocate, then zeros over all of it.

        Blocks that are only allocated are marked as such in the file's extents, and each first write into them then
        costs the journal some pages at every fdatasync; written once, they cost nothing but themselves.
        """
        try:
            os.posix_fallocate(fd, 0, count)
        except OSError as error:
            # Not every file system can; the zeros then find out whether there is room.
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
        for offset in range(0, count, len(ZEROS)):
            self.pwrite(fd, ZEROS[: count - offset], offset)

    def fdatasync(self, fd: int) -> None:
        """Fdatasync, once: what a failed one has lost, a second one does not report."""
        os.fdatasync(fd)

    def sync_folder(self, folder: Path) -> None:
        """Fsync a folder."""
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, old: Path, new: Path) -> None:
        """Rename a file."""
        old.rename(new)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        path.unlink(missing_ok=True)

    def free_bytes(self, folder: Path) -> int:
        """Ask statvfs."""
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize
