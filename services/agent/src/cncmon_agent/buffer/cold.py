"""The cold tier: a sealed segment written again, its batches compressed harder and packed without gaps.

The identity's witness is the hash of the uncompressed frames, so that nothing downstream sees the difference.
"""

from pathlib import Path

from cncmon_agent.batch import Batch
from cncmon_agent.buffer import footer as footers
from cncmon_agent.buffer import record
from cncmon_agent.buffer.disk import DiskCalls
from cncmon_agent.buffer.footer import Index
from cncmon_agent.buffer.log import SegmentLog
from cncmon_agent.buffer.names import UNFINISHED_SUFFIX, SegmentName
from cncmon_agent.buffer.segment import Segment
from cncmon_agent.buffer.writer import Writer
from cncmon_core import frames
from cncmon_core.errors import MessageError


class ColdWork:
    """One segment on its way. `run` in any thread, once; then it goes back to `Spool.moved`.

    made: the copy, safe on its disk; None when it could not be made.
    """

    def __init__(
        self,
        disk: DiskCalls,
        log: SegmentLog,
        segment: Segment,
        first: int,
        folder: Path,
        name: SegmentName,
        level: int,
    ) -> None:
        self.log = log
        self.segment = segment
        self.made: Segment | None = None
        self._disk = disk
        self._first = first
        self._folder = folder
        self._name = name
        self._level = level

    def run(self) -> None:
        """Copy the segment; the copy is synced, its name too, before anybody hears of it."""
        unfinished = self._folder / f"{self._name}{UNFINISHED_SUFFIX}"
        try:
            source = self._disk.open(self.segment.path)
            try:
                made = self._copy(source, unfinished)
            finally:
                self._disk.close(source)
            self._disk.rename(unfinished, made.path)
            self._disk.sync_folder(self._folder)
        except OSError:
            self.discard(unfinished)
            self.discard(self._folder / str(self._name))
            return
        self.made = made

    def discard(self, path: Path) -> None:
        """Remove a file that is not needed. Where that fails it is a harmless duplicate at the next start."""
        try:
            self._disk.unlink(path)
        except OSError:
            return

    def _copy(self, source: int, path: Path) -> Segment:
        index = self._index(source)
        fd = self._disk.open(path, write=True, create=True)
        try:
            made = Segment(self._name, self._folder, "cold", 0, self._first, self._first - 1, index=footers.empty())
            writer = Writer(self._disk, fd, self._name, None)
            for seq in range(self._first, self.segment.last + 1):
                self._copy_one(source, seq, index[seq - self.segment.first], made, writer)
            if made.index is not None:
                made.footer, made.file_bytes = writer.seal(made.index, made.first)
            self._disk.fdatasync(fd)
        finally:
            self._disk.close(fd)
        made.index = None
        return made

    def _index(self, source: int) -> Index:
        if self.segment.index is not None:
            return self.segment.index
        found = self.segment.footer and footers.read_index(
            self._disk, source, self.segment.footer, self.segment.name.nonce
        )
        if not found:
            raise OSError("the index is damaged")
        return found

    def _copy_one(self, source: int, seq: int, entry: int, made: Segment, writer: Writer) -> None:
        batch = None
        if entry:
            try:
                batch = self.segment.read(self._disk, source, seq, entry)
            except OSError:
                batch = None
        if batch is None:
            made.miss(seq)
            return
        harder = self._harder(batch)
        made.add(writer.append(record.encode(harder, self._name.nonce)), harder)

    def _harder(self, batch: Batch) -> Batch:
        try:
            data = frames.compress(frames.decompress(batch.data), self._level)
        except MessageError:
            # Not for us to judge: it goes on as it is.
            return batch
        if len(data) >= len(batch.data):
            return batch
        return Batch(batch.identity, data, batch.samples, batch.created_ms, batch.source)
