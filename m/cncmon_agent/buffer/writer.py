"""Writes records into one segment file, in whole pages."""

import hashlib
from typing import Final

from cncmon_agent.buffer import footer as footers
from cncmon_agent.buffer.disk import DiskCalls
from cncmon_agent.buffer.footer import PAGE, Index
from cncmon_agent.buffer.names import SegmentName, header_of

_ZEROS: Final = bytes(PAGE)


class Writer:
    """Appends to a file of a fixed size, or (file_bytes None) of any size.

    The last page is kept in memory and written again with each record, filled with zeros: no page has to be read
    before it is written, and nothing of an earlier use of the file stands right behind the last record.
    """

    def __init__(self, disk: DiskCalls, fd: int, name: SegmentName, file_bytes: int | None) -> None:
        self._disk = disk
        self._fd = fd
        self._name = name
        self._file_bytes = file_bytes
        self._tail = header_of(name)
        self._page = 0
        self._group = 0
        self._sha256 = hashlib.sha256()

    @property
    def written_bytes(self) -> int:
        """How much of the file is used by header and records."""
        return self._page + len(self._tail)

    def fits(self, record_bytes: int, count: int) -> bool:
        """Whether a record fits so that the footer of `count` others and this one still does."""
        if self._file_bytes is None:
            return True
        # One more page: a group may be ended in between.
        return self.written_bytes + record_bytes + footers.size_of(count + 1) + PAGE <= self._file_bytes

    def append(self, record: bytes) -> int:
        """Write a record; return its place. Raises OSError, and is as before then but for what is in the file."""
        at = self._page + len(self._tail)
        end = len(self._tail) + len(record)
        pages = b"".join((self._tail, record, _ZEROS[: -end % PAGE]))
        self._disk.pwrite(self._fd, pages, self._page)
        full = end // PAGE * PAGE
        if full:
            self._sha256.update(memoryview(pages)[:full])
            self._page += full
        self._tail = pages[full:end]
        self._group += len(record)
        return at

    def end_group(self) -> None:
        """What was written up to now is synced together; begin the next group in a new page where that saves one.

        A group as large as the last would touch one page more if it began in the used part of this one. Pages that
        are synced are then seldom written again, which is also what a flash disk is least likely to survive.
        """
        group, self._group = self._group, 0
        used = len(self._tail)
        if used and -(-(used + group) // PAGE) > -(-group // PAGE):
            self._sha256.update(self._tail)
            self._sha256.update(_ZEROS[used:])
            self._page += PAGE
            self._tail = b""

    def seal(self, index: Index, first: int) -> tuple[footers.Footer | None, int]:
        """Write the footer; return it and the file's size. Raises OSError. Nothing may be appended afterwards."""
        data_bytes = self.written_bytes
        self._sha256.update(self._tail)
        room = footers.size_of(len(index))
        file_bytes = self._file_bytes or -(-data_bytes // PAGE) * PAGE + room
        digest = self._sha256.digest()
        raw = footers.encode(index, first, data_bytes, digest, file_bytes, self._name.nonce)
        self._disk.pwrite(self._fd, raw, file_bytes - room)
        return footers.parse(raw[-footers.TRAILER.size :], self._name.nonce), file_bytes
