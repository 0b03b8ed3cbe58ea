"""`buffer verify`: every record's CRC, every payload's SHA-256, every sealed segment's hash."""

import msgspec

from cncmon_agent import ranges
from cncmon_agent.buffer.disk import DiskCalls
from cncmon_agent.inspect import text
from cncmon_agent.inspect.folder import DataFolder, SegmentFile
from cncmon_agent.inspect.listing import by_epoch, holes
from cncmon_agent.inspect.reading import Damage, Reader
from cncmon_agent.ranges import Ranges


class Problem(msgspec.Struct):
    """Something damaged. lost: the seqs that no other file has either."""

    path: str
    epoch: int
    what: str
    lost: Ranges


class Verdict(msgspec.Struct):
    """What was checked and found. notes: what is odd and no damage."""

    files: int = 0
    sealed: int = 0
    batches: int = 0
    samples: int = 0
    problems: list[Problem] = []
    notes: list[str] = []


def check(folder: DataFolder, disk: DiskCalls) -> Verdict:
    """Read every byte of every file that stays there. Raises InspectError where the folder can't be read."""
    verdict = Verdict()
    for files in (*by_epoch(folder.segments()), *by_epoch(folder.unstamped())):
        _check_epoch(files, disk, verdict)
    return verdict


def _check_epoch(files: list[SegmentFile], disk: DiskCalls, verdict: Verdict) -> None:
    held: Ranges = []
    found: list[tuple[Reader, Damage]] = []
    for file in files:
        reader = Reader(disk, file)
        for batch, _ in reader.contents():
            if next(ranges.missing(held, batch.identity.seq, batch.identity.seq), None) is not None:
                verdict.batches += 1
                verdict.samples += batch.samples
            ranges.add(held, batch.identity.seq, batch.identity.seq)
        if reader.gone:
            verdict.notes.append(f"{file.path.name}: the agent has let go of it meanwhile")
            continue
        verdict.files += 1
        verdict.sealed += reader.segment is not None and reader.segment.sealed
        if reader.open_end:
            verdict.notes.append(
                f"{file.path.name}: ends in half a record: it is being written just now, or a power cut has left it"
            )
        found += ((reader, damage) for damage in reader.damage)
    for reader, damage in found:
        _judge(reader, damage, held, verdict)
    for gap in holes(held):
        verdict.notes.append(f"epoch {files[0].name.epoch}: seq {text.span(*gap)} is in no file: dropped, or damaged")


def _judge(reader: Reader, damage: Damage, held: Ranges, verdict: Verdict) -> None:
    lost = list(ranges.missing(held, damage.first, damage.last)) if damage.first <= damage.last else []
    known = damage.first <= damage.last and not lost
    if known and reader.segment is not None and not reader.segment.sealed:
        # A file that was given up when the disk failed under it; its batches were written again elsewhere.
        verdict.notes.append(f"{reader.file.path.name}: {damage.what}; another file has them: nothing is lost")
        return
    verdict.problems.append(Problem(str(reader.file.path), reader.file.name.epoch, damage.what, lost))


def lines(verdict: Verdict) -> list[str]:
    """Return a verdict for people."""
    said = [f"note: {note}" for note in verdict.notes]
    for problem in verdict.problems:
        lost = ", ".join(text.span(*lost) for lost in problem.lost)
        said.append(f"DAMAGED: {problem.path}: {problem.what}" + (f"; lost: seq {lost}" if lost else ""))
    said.append(
        f"{text.number(verdict.files, 'segment file')} read ({verdict.sealed} sealed),"
        f" {text.number(verdict.batches, 'batch')} with {text.number(verdict.samples, 'sample')} are undamaged"
    )
    said.append(f"{text.number(len(verdict.problems), 'problem')} found" if verdict.problems else "no damage found")
    return said
