"""`buffer ls`: which batches are on disk, by epoch, tier and file."""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

import msgspec

from cncmon_agent import ranges
from cncmon_agent.buffer import footer as footers
from cncmon_agent.buffer.disk import DiskCalls
from cncmon_agent.buffer.scan import Found, scan
from cncmon_agent.buffer.segment import Segment, Tier, of_scan
from cncmon_agent.epochs import Epoch, EpochsFile
from cncmon_agent.inspect import text
from cncmon_agent.inspect.folder import DataFolder, SegmentFile
from cncmon_agent.ranges import Ranges

NOT_SEALED: Final = "open"
"""State of a segment that is being written, or was when the agent or the power went."""


class FileReport(msgspec.Struct):
    """A segment file. batches, samples: those that no file listed before has. Times: Unix ms by the agent's clock."""

    path: str
    tier: Tier
    state: str
    first_seq: int | None
    last_seq: int | None
    batches: int
    samples: int
    disk_bytes: int
    oldest_created_ms: int | None
    newest_created_ms: int | None


class EpochReport(msgspec.Struct):
    """An epoch (one start of the agent). delivered_seq: up to where the database has it, as far as the agent noted.

    missing: ranges of seqs between the first and the last that no file has.
    """

    epoch: int
    first_seq: int | None
    last_seq: int | None
    delivered_seq: int | None
    current: bool
    batches: int
    samples: int
    disk_bytes: int
    oldest_created_ms: int | None
    newest_created_ms: int | None
    missing: Ranges
    files: list[FileReport]


class Listing(msgspec.Struct):
    """A data folder. unstamped: logs of samples that wait for the time to be known, their numbers as epochs."""

    data_dir: str
    site: str
    edge: str
    batches: int
    samples: int
    disk_bytes: int
    epochs: list[EpochReport]
    unstamped: list[EpochReport]


def look(folder: DataFolder, disk: DiskCalls) -> Listing:
    """Return what is in a data folder. Raises InspectError where the folder can't be read."""
    said = folder.epochs()
    epochs = [_epoch(files, said, disk) for files in by_epoch(folder.segments())]
    return Listing(
        data_dir=str(folder.path),
        site=said.site if said else "",
        edge=said.edge if said else "",
        batches=sum(epoch.batches for epoch in epochs),
        samples=sum(epoch.samples for epoch in epochs),
        disk_bytes=sum(epoch.disk_bytes for epoch in epochs),
        epochs=epochs,
        unstamped=[_epoch(files, None, disk) for files in by_epoch(folder.unstamped())],
    )


def by_epoch(files: Iterable[SegmentFile]) -> list[list[SegmentFile]]:
    """Return the files of each epoch, oldest first."""
    found: dict[int, list[SegmentFile]] = {}
    for file in files:
        found.setdefault(file.name.epoch, []).append(file)
    return list(found.values())


def _epoch(files: list[SegmentFile], said: EpochsFile | None, disk: DiskCalls) -> EpochReport:
    number = files[0].name.epoch
    held: Ranges = []
    reports = [report for file in files if (report := _file(file, held, disk)) is not None]
    known = _known(number, said)
    oldest = [report.oldest_created_ms for report in reports if report.oldest_created_ms is not None]
    newest = [report.newest_created_ms for report in reports if report.newest_created_ms is not None]
    return EpochReport(
        epoch=number,
        first_seq=held[0][0] if held else None,
        last_seq=held[-1][1] if held else None,
        delivered_seq=known.freed_seq if known else None,
        current=said is not None and said.current.epoch == number,
        batches=sum(report.batches for report in reports),
        samples=sum(report.samples for report in reports),
        disk_bytes=sum(report.disk_bytes for report in reports),
        oldest_created_ms=min(oldest, default=None),
        newest_created_ms=max(newest, default=None),
        missing=holes(held),
        files=reports,
    )


def holes(held: Ranges) -> Ranges:
    """Return the ranges between those held."""
    return [(low + 1, high - 1) for (_, low), (high, _) in pairwise(held)]


def _known(number: int, said: EpochsFile | None) -> Epoch | None:
    return next((one for one in (said.current, *said.open) if one.epoch == number), None) if said else None


def _file(file: SegmentFile, held: Ranges, disk: DiskCalls) -> FileReport | None:
    """Return what is in a file, and add its seqs to those held; None where it is gone by now."""
    report = FileReport(str(file.path), file.tier, "", None, None, 0, 0, file.bytes, None, None)
    try:
        fd = disk.open(file.path)
    except FileNotFoundError:
        return None
    except OSError as error:
        report.state = f"can't be opened: {error.strerror}"
        return report
    try:
        found = _contents(file, fd, disk)
        segment = of_scan(file.name, file.path.parent, file.tier, file.bytes, found)
        report.state = _state(found)
        _count(segment, held, fd, disk, report)
    finally:
        disk.close(fd)
    return report


def _contents(file: SegmentFile, fd: int, disk: DiskCalls) -> Found:
    """Return what a sealed segment says of itself; only of another is every record read."""
    try:
        footer = footers.read(disk, fd, file.bytes, file.name.nonce)
        if footer is not None and footers.read_index(disk, fd, footer, file.name.nonce) is not None:
            return Found(footer.first, footer.last, footer=footer)
    except OSError:
        # What the disk can't read, the scan goes around.
        footer = None
    return scan(disk, fd, file.name, file.bytes)


def _state(found: Found) -> str:
    if found.newer:
        return "of a later version"
    if found.bad or found.unreadable_pages or (found.footer is not None and not found.whole):
        return "damaged"
    return "sealed" if found.footer is not None else NOT_SEALED


def _count(segment: Segment, held: Ranges, fd: int, disk: DiskCalls, report: FileReport) -> None:
    if segment.last < segment.first:
        return
    index = segment.load_index(disk, fd)
    for first, last in _runs(index, segment.first):
        for low, high in list(ranges.missing(held, first, last)):
            report.batches += high - low + 1
            report.samples += sum(footers.samples(index[seq - segment.first]) for seq in range(low, high + 1))
        ranges.add(held, first, last)
        report.first_seq = first if report.first_seq is None else report.first_seq
        report.last_seq = last
    if report.first_seq is None or report.last_seq is None:
        return
    for seq in (report.first_seq, report.last_seq):
        try:
            batch = segment.read(disk, fd, seq, index[seq - segment.first])
        except OSError:
            batch = None
        if batch is not None:
            report.newest_created_ms = batch.created_ms
            if report.oldest_created_ms is None:
                report.oldest_created_ms = batch.created_ms


def _runs(index: footers.Index, first: int) -> Iterator[tuple[int, int]]:
    """Iterate over the ranges of seqs that have an entry."""
    begin: int | None = None
    for seq, entry in enumerate(index, first):
        if entry and begin is None:
            begin = seq
        elif not entry and begin is not None:
            yield begin, seq - 1
            begin = None
    if begin is not None:
        yield begin, first + len(index) - 1


def lines(listing: Listing, *, files: bool) -> Iterator[str]:
    """Iterate over a listing's lines for people; with every file or without."""
    where = f"site {listing.site}, edge {listing.edge}" if listing.site else "site and edge are not noted in it"
    yield f"{listing.data_dir}: {where}"
    yield (
        f"{text.number(listing.batches, 'batch')} with {text.number(listing.samples, 'sample')}"
        f" in {text.number(len(listing.epochs), 'epoch')}, {text.size(listing.disk_bytes)} on disk"
    )
    for epoch in listing.epochs:
        yield ""
        yield from _epoch_lines(epoch, f"epoch {epoch.epoch}", files=files)
    for epoch in listing.unstamped:
        yield ""
        yield from _epoch_lines(epoch, f"samples without time, log {epoch.epoch}", files=files)


def _epoch_lines(epoch: EpochReport, name: str, *, files: bool) -> Iterator[str]:
    notes = "  (the agent's last start)" if epoch.current else ""
    delivered = f", in the database up to {epoch.delivered_seq}" if epoch.delivered_seq else ""
    yield f"{name}{notes}{delivered}"
    right = frozenset({2, 3, 4, 5, 6})
    rows: list[tuple[object, ...]] = [
        ("tier", "state", "first seq", "last seq", "batches", "samples", "on disk", "oldest (UTC)", "newest (UTC)")
    ]
    if files:
        rows[0] = (*rows[0], "file")
        rows += [(*_row(report.tier, report.state, [report]), Path(report.path).name) for report in epoch.files]
    else:
        for tier in ("cold", "warm"):
            for state in dict.fromkeys(report.state for report in epoch.files if report.tier == tier):
                group = [report for report in epoch.files if (report.tier, report.state) == (tier, state)]
                rows.append(_row(tier, f"{len(group)} {state}", group))
    yield from ("  " + line for line in text.table(rows, right))
    if epoch.missing:
        shown = ", ".join(text.span(*gap) for gap in epoch.missing[:10])
        yield f"  not on disk (dropped or damaged): {shown}{', …' if len(epoch.missing) > 10 else ''}"


def _row(tier: str, state: str, reports: list[FileReport]) -> tuple[object, ...]:
    firsts = [report.first_seq for report in reports if report.first_seq is not None]
    lasts = [report.last_seq for report in reports if report.last_seq is not None]
    oldest = [report.oldest_created_ms for report in reports if report.oldest_created_ms is not None]
    newest = [report.newest_created_ms for report in reports if report.newest_created_ms is not None]
    return (
        tier,
        state,
        min(firsts, default="-"),
        max(lasts, default="-"),
        sum(report.batches for report in reports),
        sum(report.samples for report in reports),
        text.size(sum(report.disk_bytes for report in reports)),
        text.time(min(oldest, default=None)),
        text.time(max(newest, default=None)),
    )
