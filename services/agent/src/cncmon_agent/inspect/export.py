"""`buffer export`: copies batches into one file, oldest first, each once, with the identities that they have."""

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, Protocol

import msgspec

from cncmon_agent import ranges
from cncmon_agent.buffer.disk import DiskCalls
from cncmon_agent.epochs import Epoch
from cncmon_agent.inspect import jsonl, parquet, text
from cncmon_agent.inspect.errors import InspectError
from cncmon_agent.inspect.folder import DataFolder, SegmentFile
from cncmon_agent.inspect.listing import by_epoch, holes
from cncmon_agent.inspect.reading import Content, Reader
from cncmon_agent.inspect.verify import Problem
from cncmon_agent.ranges import Ranges

FORMAT_VERSION: Final = 1


class Wanted(NamedTuple):
    """What to export, and under whose name. epoch, since_ms (Unix ms): None: all."""

    site: str
    edge: str
    epoch: int | None = None
    since_ms: int | None = None


class Header(msgspec.Struct, omit_defaults=True):
    """The first line of an export. epochs: what the agent has noted of each, such as how far it is delivered."""

    cncmon_export: int
    site: str
    edge: str
    created: str
    epoch: int | None = None
    since_ms: int | None = None
    epochs: list[Epoch] = []


class Writer(Protocol):
    """Writes one format."""

    def add(self, content: Content) -> None:
        """Write a batch. Raises OSError."""
        ...

    def finish(self) -> None:
        """Write what is left; the file itself is closed by others. Raises OSError."""
        ...


FORMATS: Final[dict[str, Callable[[BinaryIO, Header], Writer]]] = {
    "jsonl": jsonl.JsonLines,
    "parquet": parquet.Parquet,
}


class Summary(msgspec.Struct):
    """What was done. missing: ranges of seqs by epoch that are on no disk. unstamped_files: left out."""

    out: str
    batches: int = 0
    samples: int = 0
    events: int = 0
    bytes: int = 0
    damage: list[Problem] = []
    missing: dict[int, Ranges] = {}
    unstamped_files: int = 0


def write(
    folder: DataFolder,
    disk: DiskCalls,
    wanted: Wanted,
    out: Path,
    make_writer: Callable[[BinaryIO, Header], Writer],
    *,
    overwrite: bool = False,
) -> Summary:
    """Write an export; the file appears under its name when all of it is on its disk.

    Raises:
        InspectError: a folder can't be read, the file can't be written, or nothing of what is wanted is there.
    """
    summary = Summary(str(out))
    files = folder.segments()
    if wanted.epoch is not None and wanted.epoch not in {file.name.epoch for file in files}:
        raise InspectError(f"nothing of epoch {wanted.epoch} is on this disk: see `buffer ls`")
    said = folder.epochs()
    noted = [*said.open, said.current] if said else []
    now = datetime.now(UTC).isoformat(timespec="seconds")
    header = Header(FORMAT_VERSION, wanted.site, wanted.edge, now, wanted.epoch, wanted.since_ms, noted)
    with _whole_or_not(out, overwrite=overwrite) as file:
        writer = make_writer(file, header)
        for content in _Walk(folder, disk, wanted, summary).contents(files):
            writer.add(content)
            summary.batches += 1
            summary.samples += content.batch.samples
            summary.events += content.batch.identity.frames - content.batch.samples
        writer.finish()
        summary.bytes = file.tell()
    summary.unstamped_files = len(folder.unstamped())
    return summary


class _Walk:
    """Goes through the epochs. A file that goes away meanwhile may have moved to the cold tier: then it looks again."""

    def __init__(self, folder: DataFolder, disk: DiskCalls, wanted: Wanted, summary: Summary) -> None:
        self._folder = folder
        self._disk = disk
        self._wanted = wanted
        self._summary = summary

    def contents(self, files: list[SegmentFile]) -> Iterator[Content]:
        for epoch_files in by_epoch(files):
            if self._wanted.epoch in (None, epoch_files[0].name.epoch):
                yield from self._epoch(epoch_files)

    def _epoch(self, files: list[SegmentFile]) -> Iterator[Content]:
        epoch = files[0].name.epoch
        held: Ranges = []
        readers: list[Reader] = []
        while files:
            now = [Reader(self._disk, file) for file in files]
            for reader in now:
                yield from self._new(reader, held)
            readers += now
            files = []
            if any(reader.gone for reader in now):
                read = {reader.file.path for reader in readers}
                files = [file for file in self._folder.segments() if file.name.epoch == epoch and file.path not in read]
        self._report(epoch, readers, held)

    def _new(self, reader: Reader, held: Ranges) -> Iterator[Content]:
        """Iterate over those batches of a file that no other had before."""
        since_ms = self._wanted.since_ms
        for content in reader.contents():
            seq = content.batch.identity.seq
            if next(ranges.missing(held, seq, seq), None) is None:
                continue
            ranges.add(held, seq, seq)
            if since_ms is None or content.batch.created_ms >= since_ms:
                yield content

    def _report(self, epoch: int, readers: list[Reader], held: Ranges) -> None:
        for reader in readers:
            for damage in () if reader.gone else reader.damage:
                lost = list(ranges.missing(held, damage.first, damage.last)) if damage.first <= damage.last else []
                if lost or damage.first > damage.last:
                    self._summary.damage.append(Problem(str(reader.file.path), epoch, damage.what, lost))
        if gaps := holes(held):
            self._summary.missing[epoch] = gaps


@contextmanager
def _whole_or_not(out: Path, *, overwrite: bool) -> Iterator[BinaryIO]:
    """Open a file that gets its name once it is synced; where anything fails, nothing is left of it."""
    if out.exists() and not overwrite:
        raise InspectError(f"{out} exists: give another name, or --overwrite")
    part = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(out)
        _sync_folder(out.parent)
    except OSError as error:
        raise InspectError(f"{out} can't be written: {error.strerror or error}") from error
    finally:
        # A stick that was pulled out: the error above says it all.
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    except OSError as error:
        # Some file systems of sticks can't do it for folders.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(folder)


def lines(summary: Summary) -> list[str]:
    """Return a summary for people."""
    said = []
    for problem in summary.damage:
        lost = ", ".join(text.span(*lost) for lost in problem.lost)
        said.append(f"DAMAGED: {problem.path}: {problem.what}" + (f"; not exported: seq {lost}" if lost else ""))
    for epoch, gaps in summary.missing.items():
        shown = ", ".join(text.span(*gap) for gap in gaps)
        said.append(f"epoch {epoch}: not on disk, so not exported: seq {shown}")
    if summary.unstamped_files:
        said.append(
            "not exported: samples that wait for the time to be known (see `buffer ls`). Set the clock, start the agent"
            " with CNCMON_AGENT_CLOCK_TRUSTED=always, and export again: then they have their time"
        )
    skipped = sum(high - low + 1 for problem in summary.damage for low, high in problem.lost)
    said.append(
        f"{summary.out}: {text.number(summary.batches, 'batch')}, {text.number(summary.samples, 'sample')},"
        f" {text.number(summary.events, 'event')}, {text.size(summary.bytes)};"
        f" skipped as damaged: {text.number(skipped, 'batch')}"
    )
    return said
