"""Reads a segment file without trusting it: every batch that comes out is the one that went in."""

import os
from collections.abc import Iterator
from typing import NamedTuple

from cncmon_agent.batch import Batch
from cncmon_agent.buffer import footer as footers
from cncmon_agent.buffer.disk import DiskCalls
from cncmon_agent.buffer.scan import Found, scan
from cncmon_agent.buffer.segment import Segment, of_scan
from cncmon_agent.inspect import text
from cncmon_agent.inspect.folder import SegmentFile
from cncmon_core import frames
from cncmon_core.errors import RejectedError


class Damage(NamedTuple):
    """Something that is not as it was written. first, last: the seqs it costs; last < first: none, or not known."""

    what: str
    first: int = 1
    last: int = 0


class Content(NamedTuple):
    """A batch and the frames in it, checked against its SHA-256."""

    batch: Batch
    parts: list[bytes]


class Reader:
    """One file. Its attributes are complete once `contents` is exhausted.

    gone: the agent has let go of the file, or taken it into other use, since it was listed: what looks like damage is
    none. open_end: half a record stands behind the last: just being written, or what a power cut left. segment: None
    where the file could not be read at all.
    """

    def __init__(self, disk: DiskCalls, file: SegmentFile) -> None:
        self.file = file
        self.segment: Segment | None = None
        self.damage: list[Damage] = []
        self.gone = False
        self.open_end = False
        self._disk = disk

    def contents(self) -> Iterator[Content]:
        """Iterate over the undamaged batches in order of seq. Raises nothing for a damaged file or a failing disk."""
        try:
            fd = self._disk.open(self.file.path)
        except FileNotFoundError:
            self.gone = True
            return
        except OSError as error:
            self.damage.append(Damage(f"can't be opened: {error.strerror}"))
            return
        try:
            yield from self._scanned(fd)
            self.gone = not _is_there(fd, self.file)
        finally:
            self._disk.close(fd)

    def _scanned(self, fd: int) -> Iterator[Content]:
        found = scan(self._disk, fd, self.file.name, self.file.bytes)
        if found.newer:
            self.damage.append(Damage("written by a later version of the agent: use that one's command"))
            return
        self.segment = of_scan(self.file.name, self.file.path.parent, self.file.tier, self.file.bytes, found)
        self.open_end = found.torn
        self._note(found)
        index = self.segment.load_index(self._disk, fd)
        for seq in range(found.first, found.last + 1):
            entry = index[seq - found.first]
            if entry and (content := self._content(fd, self.segment, seq, entry)) is not None:
                yield content

    def _note(self, found: Found) -> None:
        places = ", ".join(f"{start}-{end - 1}" for start, end in found.damaged)
        at = f" (bytes {places})" if places else ""
        for first, last in found.bad:
            which = f"{'record' if first == last else 'records'} {text.span(first, last)}"
            self.damage.append(Damage(f"{which}: missing, or the CRC is wrong{at}", first, last))
        if found.unreadable_pages:
            self.damage.append(Damage(f"the disk can't read {found.unreadable_pages} of its pages of 4 KiB"))
        if found.footer is not None and not found.whole:
            self.damage.append(Damage("the segment's SHA-256 or its index is not as sealed"))

    def _content(self, fd: int, segment: Segment, seq: int, entry: int) -> Content | None:
        place = f"record {seq} (byte {footers.place(entry)})"
        try:
            batch = segment.read(self._disk, fd, seq, entry)
        except OSError as error:
            self.damage.append(Damage(f"{place}: the disk can't read it: {error.strerror}", seq, seq))
            return None
        if batch is None:
            self.damage.append(Damage(f"{place}: its CRC is wrong", seq, seq))
            return None
        try:
            payload = frames.decompress(batch.data)
            batch.identity.check_payload(payload)
            parts, rest = frames.split(payload)
        except RejectedError as error:
            self.damage.append(Damage(f"{place}: {error.detail}", seq, seq))
            return None
        if rest is not None or len(parts) != batch.identity.frames:
            self.damage.append(
                Damage(f"{place}: it has not the {batch.identity.frames} frames that it says it has", seq, seq)
            )
            return None
        return Content(batch, parts)


def _is_there(fd: int, file: SegmentFile) -> bool:
    """Whether the file's name still is that of what was read. A spare has another name, and other content soon."""
    try:
        return os.fstat(fd).st_ino == file.path.stat().st_ino
    except OSError:
        return False
