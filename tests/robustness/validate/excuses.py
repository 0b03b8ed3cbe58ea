"""Gaps and dead letters: an excuse counts only where it is true, and where somebody made it.

A sample in a gap or a dead letter must not be in the table as well; a gap's sample count must be that of the batches in
it; what an agent declared must stand in `gaps` or be stored after all, and nothing else may stand there but what ingest
finds itself (an epoch that was abandoned).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg
import msgspec

from cncmon_core.frames import split_numbered
from cncmon_ingest.dead_letters import is_group
from cncmon_standalone.proof.accepted import Line
from robustness.validate.promised import Promised

FOUND_BY_INGEST = frozenset({"epoch_abandoned"})
"""Reasons that no agent gives."""


class Range(NamedTuple):
    """Batches of one epoch, first and last included."""

    epoch: int
    first: int
    last: int


class Gap(NamedTuple):
    """One row of `gaps`."""

    range: Range
    samples: int | None
    reason: str


@dataclass
class Excuses:
    """What is not in the table and why; `wrong` says in words which excuse is none."""

    gaps: list[Gap] = field(default_factory=list)
    dead: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @property
    def reasons(self) -> set[str]:
        """Why there are gaps."""
        return {gap.reason for gap in self.gaps}


async def examine(connection: asyncpg.Connection, logs: Promised, killed: Iterable[int]) -> Excuses:
    """Return the gaps and dead letters, and what is wrong with them."""
    rows = await connection.fetch("SELECT epoch, seq_from, seq_to, samples, reason FROM gaps ORDER BY 1, 2")
    gaps = [Gap(Range(*row[:3]), row["samples"], row["reason"]) for row in rows]
    letters = await connection.fetch("SELECT identity, frame, reason, payload FROM dead_letters WHERE state = 'dead'")
    found = Excuses(gaps, Counter(row["reason"] for row in letters))
    dead: defaultdict[str, set[int]] = defaultdict(set)
    for row in letters:
        group = split_numbered(row["payload"]) if is_group(row["frame"]) else [(row["frame"], row["payload"])]
        dead[row["identity"]].update(number for number, _ in group)
    if not gaps and not dead:
        return found
    sizes: Counter[Range] = Counter()
    last: dict[int, int] = {}
    excused: dict[str, dict[datetime, int | None]] = defaultdict(dict)
    for line in logs.batches():
        last[line.epoch] = max(line.seq, last.get(line.epoch, 0))
        gap = _gap_of(gaps, line)
        if gap is not None:
            sizes[gap.range] += len(line.samples)
        frames = dead.get(f"{line.epoch}:{line.seq}", set())
        for frame, (machine_id, counter, timestamp) in enumerate(line.samples):
            if gap is not None or frame in frames or -1 in frames:
                excused[machine_id][timestamp] = counter
    found.wrong += _wrong_sizes(gaps, sizes, last, set(killed))
    found.wrong += [wrong async for wrong in _stored_all_the_same(connection, excused)]
    found.wrong += await _undeclared(connection, gaps, last)
    return found


def _gap_of(gaps: list[Gap], line: Line) -> Gap | None:
    return next((gap for gap in gaps if gap.range.epoch == line.epoch and _holds(gap.range, line.seq)), None)


def _holds(seqs: Range, seq: int) -> bool:
    return seqs.first <= seq <= seqs.last


def _wrong_sizes(gaps: list[Gap], sizes: Counter[Range], last: dict[int, int], killed: set[int]) -> Iterator[str]:
    for gap in gaps:
        if gap.range.last > last.get(gap.range.epoch, 0):
            yield f"gap {gap.range} reaches beyond the last accepted batch, {last.get(gap.range.epoch)}"
        # Of an epoch that a kill ended the log may know of batches that no disk and no heartbeat ever knew of.
        elif gap.samples is not None and gap.samples != sizes[gap.range] and gap.range.epoch not in killed:
            yield f"gap {gap.range} is said to be of {gap.samples} samples and is of {sizes[gap.range]}"


async def _stored_all_the_same(connection: asyncpg.Connection, excused: dict[str, dict[datetime, int | None]]) -> Any:
    for machine_id, samples in excused.items():
        rows = await connection.fetch(
            "SELECT time, (extras->>'poll_counter')::bigint AS counter FROM sensor_data "
            "WHERE machine_id = $1 AND time = ANY($2)",
            *(machine_id, list(samples)),
        )
        for row in rows:
            if samples[row["time"]] == row["counter"]:
                yield f"{machine_id} poll {row['counter']} stands in a gap or dead letter and is stored"


async def _undeclared(connection: asyncpg.Connection, gaps: list[Gap], last: dict[int, int]) -> list[str]:
    rows = await connection.fetch("SELECT DISTINCT data FROM events WHERE type = 'gap'")
    declared = [_declared(msgspec.json.decode(row["data"])) for row in rows]
    wrong = []
    for gap in gaps:
        if gap.reason not in FOUND_BY_INGEST:
            left = [gap.range]
            for other in declared:
                left = [part for piece in left for part in _less(piece, other)]
            wrong += [f"gap {piece} ({gap.reason}) was declared by nobody" for piece in left]
    for epoch in {other.epoch for other in declared} - last.keys():
        wrong.append(f"epoch {epoch} was declared a gap and accepted nothing")
    return wrong


def _declared(data: dict[str, Any]) -> Range:
    return Range(data["epoch"], data["seq_from"], data["seq_to"])


def _less(piece: Range, other: Range) -> list[Range]:
    """Return what of a range lies outside of another."""
    if piece.epoch != other.epoch or other.last < piece.first or other.first > piece.last:
        return [piece]
    before = Range(piece.epoch, piece.first, other.first - 1)
    behind = Range(piece.epoch, other.last + 1, piece.last)
    return [part for part in (before, behind) if part.first <= part.last]
