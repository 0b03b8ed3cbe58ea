"""A disk in memory that forgets what was not synced, as the worst real one may.

Content: each 512-byte sector of a file holds, after a power cut, any one of the contents it had since its last
fdatasync. A failed fdatasync leaves any of them too, and the next one writes nothing more and succeeds, as on Linux.
Names: creations, renames and removals of a folder take effect in order; a power cut keeps any first part of what came
after the folder's last fsync. A file's length is the synced one or the last.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

from cncmon_agent.buffer.disk import Entry

SECTOR = 512
PAGE = 4096


class KilledError(BaseException):
    """The process ended here."""


class File:
    """A file's content. cache: as the process sees it. disk: as it was at the last sync, where not in `versions`."""

    def __init__(self) -> None:
        self.cache = bytearray()
        self.disk = bytearray()
        self.versions: dict[int, list[bytes]] = {}
        self.bad_pages: set[int] = set()

    def write(self, data: bytes, offset: int) -> None:
        """Change the cache and remember which contents the sectors had."""
        end = offset + len(data)
        self.grow(end)
        self.cache[offset:end] = data
        for sector in range(offset // SECTOR, -(-end // SECTOR)):
            content = bytes(self.cache[sector * SECTOR : (sector + 1) * SECTOR])
            self.versions.setdefault(sector, []).append(content)

    def grow(self, size: int) -> None:
        """Make the file longer, with zeros."""
        if size > len(self.cache):
            self.cache.extend(bytes(size - len(self.cache)))

    def cut(self, random: Random, *, keep: float) -> None:
        """Leave of each unsynced sector any of its contents. keep: how likely the last."""
        if len(self.disk) < len(self.cache) and random.random() < (1 + keep) / 2:
            self.disk.extend(bytes(len(self.cache) - len(self.disk)))
        for sector, contents in self.versions.items():
            start = sector * SECTOR
            if start >= len(self.disk):
                continue
            old = bytes(self.disk[start : start + SECTOR])
            chosen = contents[-1] if random.random() < keep else random.choice([old, *contents])
            self.disk[start : start + len(chosen)] = chosen
        self.versions.clear()


class SimulatedDisk:
    """What `cncmon_agent.buffer.disk.DiskCalls` asks for.

    capacity: bytes for all files. on_call: called with (name of the call, path or None) before each; it may raise
    OSError. kill_after: bytes that may still be written before the process ends in the middle of a write.
    """

    def __init__(self, capacity: int = 1 << 30) -> None:
        self.capacity = capacity
        self.on_call: Callable[[str, Path | None], None] = lambda _call, _path: None
        self.kill_after: int | None = None
        self.names: dict[Path, File] = {}
        self.written = 0
        self.syncs = 0
        self._synced_names: dict[Path, File] = {}
        self._pending: dict[Path, list[tuple[str, Path, File | Path]]] = {}
        self._fds: dict[int, tuple[File, Path]] = {}
        self._next_fd = 3

    def copy(self) -> "SimulatedDisk":
        """Return another disk with this one's content, on which everything is synced and nothing fails."""
        other = SimulatedDisk(self.capacity)
        for path, file in self.names.items():
            same = other.names[path] = File()
            same.cache = bytearray(file.cache)
            same.disk = bytearray(file.cache)
        other._synced_names = dict(other.names)
        return other

    def end_process(self) -> None:
        """The process is gone, the machine runs on."""
        self._fds.clear()
        self.kill_after = None
        self.on_call = lambda _call, _path: None

    def cut_power(self, random: Random, keep: float = 0.5) -> None:
        """Lose what was not synced. keep: how likely each unsynced sector is on the disk after all."""
        self.end_process()
        for pending in self._pending.values():
            kept = random.randint(0, len(pending)) if random.random() >= keep else len(pending)
            for change in pending[:kept]:
                self._apply(self._synced_names, *change)
            pending.clear()
        self.names = dict(self._synced_names)
        for file in dict.fromkeys(self.names.values()):
            file.cut(random, keep=keep)
            file.cache = bytearray(file.disk)

    @property
    def used(self) -> int:
        """Bytes of all files."""
        return sum(len(file.cache) for file in {*self.names.values(), *(file for file, _ in self._fds.values())})

    def make_folder(self, folder: Path) -> None:
        self.on_call("make_folder", folder)

    def lock(self, path: Path) -> int:
        self.on_call("lock", path)
        if path not in self.names:
            self._change("create", path, File())
        return self._descriptor(path)

    def list_files(self, folder: Path) -> list[Entry]:
        self.on_call("list_files", folder)
        return [Entry(path.name, len(file.cache)) for path, file in self.names.items() if path.parent == folder]

    def open(self, path: Path, *, write: bool = False, create: bool = False) -> int:
        self.on_call("create" if create else "open", path)
        if create:
            if path in self.names:
                raise FileExistsError(errno.EEXIST, "exists", str(path))
            self._change("create", path, File())
        elif path not in self.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return self._descriptor(path)

    def close(self, fd: int) -> None:
        del self._fds[fd]

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        file, path = self._fds[fd]
        self.on_call("pread", path)
        if file.bad_pages and any(offset // PAGE <= page <= (offset + count - 1) // PAGE for page in file.bad_pages):
            raise OSError(errno.EIO, "bad sector")
        return bytes(file.cache[offset : offset + count])

    def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        file, path = self._fds[fd]
        self.on_call("pwrite", path)
        if self.kill_after is not None and len(data) > self.kill_after:
            file.write(data[: self.kill_after], offset)
            raise KilledError
        if self.kill_after is not None:
            self.kill_after -= len(data)
        self._ask_for(offset + len(data) - len(file.cache))
        file.write(data, offset)
        # A sector that can't be read is replaced by the device when it is written.
        file.bad_pages -= set(range(offset // PAGE, (offset + len(data)) // PAGE))
        self.written += len(data)

    def allocate(self, fd: int, count: int) -> None:
        file, path = self._fds[fd]
        self.on_call("allocate", path)
        self._ask_for(count - len(file.cache))
        file.grow(count)

    def fdatasync(self, fd: int) -> None:
        file, path = self._fds[fd]
        try:
            self.on_call("fdatasync", path)
        except OSError:
            file.cut(Random(self.syncs), keep=0.3)
            raise
        self.syncs += 1
        # What a failed sync has lost counts as clean by now, and stays lost.
        if len(file.disk) < len(file.cache):
            file.disk.extend(bytes(len(file.cache) - len(file.disk)))
        for sector in file.versions:
            start = sector * SECTOR
            file.disk[start : start + SECTOR] = file.cache[start : start + SECTOR]
        file.versions.clear()

    def sync_folder(self, folder: Path) -> None:
        self.on_call("sync_folder", folder)
        for change in self._pending.pop(folder, []):
            self._apply(self._synced_names, *change)

    def rename(self, old: Path, new: Path) -> None:
        self.on_call("rename", new)
        if old not in self.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(old))
        self._change("rename", old, new)

    def unlink(self, path: Path) -> None:
        self.on_call("unlink", path)
        file = self.names.get(path)
        if file is not None:
            self._change("unlink", path, file)

    def free_bytes(self, folder: Path) -> int:
        self.on_call("free_bytes", folder)
        return max(0, self.capacity - self.used)

    def _ask_for(self, more: int) -> None:
        if more > 0 and self.used + more > self.capacity:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _descriptor(self, path: Path) -> int:
        self._next_fd += 1
        self._fds[self._next_fd] = self.names[path], path
        return self._next_fd

    def _change(self, what: str, path: Path, other: File | Path) -> None:
        self._apply(self.names, what, path, other)
        self._pending.setdefault(path.parent, []).append((what, path, other))

    @staticmethod
    def _apply(names: dict[Path, File], what: str, path: Path, other: File | Path) -> None:
        if what == "create" and isinstance(other, File):
            names[path] = other
        elif what == "rename" and isinstance(other, Path):
            file = names.pop(path, None)
            if file is not None:
                names[other] = file
        elif what == "unlink":
            names.pop(path, None)
