"""What is in a segment file, found by reading all of it. Runs in any thread; shares nothing.

A sealed segment whose SHA-256 is right is taken as its footer says. In any other each record is looked at: none is
believed without its CRC, and behind a bad one the next mark with a right record is searched for.
"""

import hashlib
import zlib
from collections.abc import Iterator
from typing import Final

import msgspec

from cncmon_agent import ranges
from cncmon_agent.buffer import footer as footers
from cncmon_agent.buffer import record
from cncmon_agent.buffer.disk import DiskCalls
from cncmon_agent.buffer.footer import PAGE, Footer, Index
from cncmon_agent.buffer.names import HEADER_BYTES, VERSION, SegmentName, version_of
from cncmon_agent.ranges import Range

PIECE: Final = 256 * 1024
"""Bytes read at a time: a log of any size is scanned in this much memory."""
RECORD_BYTES_MAX: Final = 1 << 24


class Found(msgspec.Struct):
    """What a scan found. Seqs are those from `first` to `last`; last is first - 1 where there are none.

    index: an entry a seq as in `footer`, 0 for what is not there; None for a sealed segment that is whole, whose footer
    has it. bad: ranges of seqs that the file should have and has not. damaged: byte ranges in place of them.
    torn: whether half a record of this file follows the last whole one: what a power cut leaves at the end.
    unreadable_pages: pages that the disk could not read. newer: written by a later version of this program; left alone.
    """

    first: int
    last: int
    samples: int = 0
    bytes: int = 0
    index: Index | None = None
    footer: Footer | None = None
    bad: list[tuple[int, int]] = []
    damaged: list[tuple[int, int]] = []
    torn: bool = False
    unreadable_pages: int = 0
    newer: bool = False

    @property
    def whole(self) -> bool:
        """Whether the file is sealed and every byte of it is as it was written."""
        return self.footer is not None and self.index is None


def scan(disk: DiskCalls, fd: int, name: SegmentName, file_bytes: int) -> Found:
    """Read a file and say what is in it. What the disk can't read counts as damaged; nothing is raised for it."""
    reader = Reader(disk, fd)
    version = version_of(reader.read(HEADER_BYTES, 0), name.nonce)
    if version is not None and version > VERSION:
        return Found(name.first, name.first - 1, newer=True)
    try:
        footer = footers.read(disk, fd, file_bytes, name.nonce)
        index = footers.read_index(disk, fd, footer, name.nonce) if footer is not None else None
        if footer is not None and index is not None and _is_as_sealed(disk, fd, footer):
            found = Found(footer.first, footer.last, footer.samples, footer.held_bytes, footer=footer)
            found.bad = _not_in(index, footer.first)
            return found
    except OSError:
        footer = None
    return Walk(reader, name, file_bytes, footer).walk()


def index_of(disk: DiskCalls, fd: int, name: SegmentName, file_bytes: int) -> Index:
    """Return the index of a file, made from its records."""
    return Walk(Reader(disk, fd), name, file_bytes, None).walk().index or footers.empty()


def _not_in(index: Index, first: int) -> list[Range]:
    """Return what was missing already when the file was written: a copy in the cold tier lacks what was damaged."""
    found: list[Range] = []
    if 0 in index:
        for at, entry in enumerate(index):
            if not entry:
                ranges.add(found, first + at, first + at)
    return found


def _is_as_sealed(disk: DiskCalls, fd: int, footer: Footer) -> bool:
    digest = hashlib.sha256()
    for at in range(0, footer.data_bytes, PIECE):
        digest.update(disk.pread(fd, min(PIECE, footer.data_bytes - at), at))
    return digest.digest() == footer.sha256


class Reader:
    """Reads a file in pieces; where the disk can't read a page, zeros stand in its place."""

    def __init__(self, disk: DiskCalls, fd: int) -> None:
        self.unreadable: set[int] = set()
        self._disk = disk
        self._fd = fd

    def read(self, count: int, at: int) -> bytes:
        """Return up to `count` bytes; fewer at the file's end."""
        try:
            return self._disk.pread(self._fd, count, at)
        except OSError:
            return b"".join(self._pages(count, at))

    def _pages(self, count: int, at: int) -> Iterator[bytes]:
        end = at + count
        while at < end:
            part = min(end, at // PAGE * PAGE + PAGE) - at
            try:
                read = self._disk.pread(self._fd, part, at)
            except OSError:
                self.unreadable.add(at // PAGE)
                read = bytes(part)
            yield read
            at += part


class Walk:
    """A look at each record of a file."""

    def __init__(self, reader: Reader, name: SegmentName, file_bytes: int, footer: Footer | None) -> None:
        self._reader = reader
        self._name = name
        self._footer = footer
        self._end = footer.data_bytes if footer else file_bytes
        self._buffer = b""
        self._start = 0
        first = footer.first if footer else name.first
        self._found = Found(first, first - 1, footer=footer)
        self._index = footers.empty()
        self._doubt: int | None = None
        self._half = False

    def walk(self) -> Found:
        """Go through the file."""
        at = HEADER_BYTES
        while at + record.FIXED_BYTES <= self._end:
            after = self._record(at)
            if not after:
                after = self._resync(at)
            at = after
        found = self._found
        if self._footer and found.last < self._footer.last:
            self._miss(found.last + 1, self._footer.last, self._end)
        found.torn = not self._footer and self._half
        found.index = self._index
        found.unreadable_pages = len(self._reader.unreadable)
        return found

    def _view(self, at: int, count: int) -> memoryview:
        """Return `count` bytes from a place on, fewer at the file's end."""
        offset = at - self._start
        if offset < 0 or offset + count > len(self._buffer):
            self._buffer = self._reader.read(min(max(count, PIECE), self._end - at), at)
            self._start, offset = at, 0
        return memoryview(self._buffer)[offset : offset + count]

    def _record(self, at: int) -> int:
        """Take the record at a place; return where the next may begin, or 0 when there is no whole record."""
        head = self._view(at, record.HEAD.size)
        if len(head) < record.HEAD.size:
            return 0
        mark, crc, length = record.HEAD.unpack(head)
        size = record.HEAD.size + length
        nonce = self._name.nonce
        if mark != nonce.mark or not record.FIXED_BYTES <= size <= min(RECORD_BYTES_MAX, self._end - at):
            return 0
        if self._crc(at, size) != crc:
            return 0
        fixed = self._view(at, record.FIXED_BYTES)
        epoch, seq, _, _, _, samples, _, flags, _ = record.BODY.unpack_from(fixed, record.HEAD.size)
        found = self._found
        if epoch != self._name.epoch or not found.last < seq <= found.first + self._end // record.FIXED_BYTES:
            return 0
        if seq > found.last + 1:
            self._miss(found.last + 1, seq - 1, at)
        data = length - record.BODY.size - (record.SOURCE.size if flags & record.HAS_SOURCE else 0)
        self._index.append(footers.pack(at, data, samples))
        found.last = seq
        found.samples += samples
        found.bytes += data + footers.BATCH_OVERHEAD
        self._doubt, self._half = None, False
        return at + record.aligned(size)

    def _crc(self, at: int, size: int) -> int:
        crc = self._name.nonce.seed
        at, end = at + 8, at + size
        while at < end:
            count = min(PIECE, end - at)
            view = self._view(at, count)
            if len(view) < count:
                return -1
            crc = zlib.crc32(view, crc)
            at += count
        return crc

    def _miss(self, first: int, last: int, before: int) -> None:
        """Seqs are missing in front of a place."""
        self._index.extend([0] * (last - first + 1))
        self._found.bad.append((first, last))
        self._found.last = last
        if self._doubt is not None and before > self._doubt:
            self._found.damaged.append((self._doubt, before))

    def _resync(self, at: int) -> int:
        """Return the next place at which a mark stands, behind one at which there is no whole record.

        Zeros up to the end of a page are how a group of records ends, and no damage.
        """
        view = self._view(at, min(PIECE, self._end - at))
        if len(view) < record.ALIGN:
            return self._end
        start = 0
        if bytes(view[:4]) == self._name.nonce.mark:
            self._half = True
            start = record.ALIGN
        raw = self._buffer
        base = at - self._start
        limit = base + len(view)
        hit = raw.find(self._name.nonce.mark, base + start, limit)
        while hit >= 0 and (hit + self._start) % record.ALIGN:
            hit = raw.find(self._name.nonce.mark, hit + 1, limit)
        if hit < 0:
            # Near the piece's end half a mark may stand; places are multiples of 8, so a step back of 8 is enough.
            hit = limit if at + len(view) >= self._end else max(limit - record.ALIGN, base + record.ALIGN)
            hit -= (hit + self._start) % record.ALIGN
            hit = max(hit, base + record.ALIGN)
        if self._doubt is None and raw[base:hit].strip(b"\0"):
            self._doubt = at
        return self._start + hit
