"""What a declaration of missing batches makes of what is known of an epoch. Pure: no database, no clock."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from cncmon_core.events import SEQ_MAX
from cncmon_core.events import Gap as Declared
from cncmon_ingest import ranges
from cncmon_ingest.ranges import Found, Gap, State


class Row(NamedTuple):
    """A batch in the ledger. base, end: samples of the epoch before it and with it; None: unknown."""

    seq: int
    base: int | None
    end: int | None


class Hole(NamedTuple):
    """Batches low to high that the ledger lacks. base, end: samples of the epoch before and with them, where known."""

    low: int
    high: int
    base: int | None
    end: int | None


class Epoch:
    """The ranges of an epoch that declarations speak of: where the ledger has holes there, and the gaps in and beside
    them.

    seq, base: the epoch's watermark. holes, gaps: sorted and disjoint. declared_to: the highest seq that `declare` has
    entered.
    """

    def __init__(self, seq: int, base: int | None, holes: Sequence[Hole], gaps: Sequence[Gap]) -> None:
        self.seq = seq
        self.base = base
        self.gaps = list(gaps)
        self.declared_to = 0
        self._holes = holes

    def work(self, gap: Declared) -> int:
        """Return how many holes and gaps `declare` would look at."""
        holes, near = self._indices(*self._range(gap))
        return len(range(*holes.indices(len(self._holes)))) + len(range(*near.indices(len(self.gaps))))

    def declare(self, gap: Declared, state: State, now: datetime) -> int:
        """Enter what of a range is above the watermark, in no ledger row and in no gap; return how many batches.

        What is `abandoned` and is declared by its agent becomes `declared`. Repeated, it changes nothing.
        """
        low, high = self._range(gap)
        if low > high:
            return 0
        where, beside = self._indices(low, high)
        holes = [_clipped(hole, low, high) for hole in self._holes[where]]
        # With the neighbours that only touch: a gap that grows stays one row.
        near = self.gaps[beside]
        weaker = [old for old in near if old.state == "abandoned" and state != "abandoned"]
        stronger = [old for old in near if not (old.state == "abandoned" and state != "abandoned")]
        missing = ranges.beside([hole[:2] for hole in holes], [(old.low, old.high) for old in stronger])
        if not missing:
            return 0
        points = self._points(gap, holes, near)
        new = [
            Gap(gap.epoch, *part, samples, at, gap.reason, state, now)
            for part in missing
            for at, samples in [ranges.counted(*part, points)]
        ]
        if len(new) == 1 and new[0].samples is None:
            new[0] = new[0]._replace(samples=_remainder(gap, holes, stronger))
        left = [piece for old in weaker for piece in _cut(old, new)]
        self.gaps[beside] = ranges.joined(sorted([*new, *left, *stronger], key=lambda item: item.low))
        self.declared_to = max(self.declared_to, missing[-1][1])
        return sum(item.batches for item in new)

    def _range(self, gap: Declared) -> tuple[int, int]:
        return max(gap.seq_from, self.seq + 1), gap.seq_to

    def _indices(self, low: int, high: int) -> tuple[slice, slice]:
        holes = slice(
            bisect_left(self._holes, low, key=lambda hole: hole.high),
            bisect_right(self._holes, high, key=lambda hole: hole.low),
        )
        gaps = slice(
            bisect_left(self.gaps, low - 1, key=lambda old: old.high),
            bisect_right(self.gaps, high + 1, key=lambda old: old.low),
        )
        return holes, gaps

    def _points(self, gap: Declared, holes: Sequence[Hole], near: Sequence[Gap]) -> dict[int, int]:
        """Return seq → samples of the epoch before it, from all that is known around a declaration."""
        known = [(old.low, old.base) for old in near] + [(old.high + 1, old.end) for old in near]
        known += [(gap.seq_from, gap.base), (gap.seq_to + 1, gap.end), (self.seq + 1, self.base)]
        # Last, and so before all others: what came with the batches themselves.
        known += [(hole.low, hole.base) for hole in holes] + [(hole.high + 1, hole.end) for hole in holes]
        points = {at: samples for at, samples in known if samples is not None}
        if gap.samples is not None and gap.seq_from in points:
            points.setdefault(gap.seq_to + 1, points[gap.seq_from] + gap.samples)
        # An edge may claim anything; what the database could not add up is as good as unknown.
        return {at: samples for at, samples in points.items() if samples <= SEQ_MAX}


def holes_of(low: int, high: int, rows: Iterable[Row]) -> list[Hole]:
    """Return the holes between batches low to high. rows: sorted, from low - 1 to high + 1."""
    holes = []
    at, base = low, None
    for row in rows:
        if row.seq > at:
            holes.append(Hole(at, min(row.seq - 1, high), base, row.base))
        at, base = max(at, row.seq + 1), row.end
    if at <= high:
        holes.append(Hole(at, high, base, None))
    return holes


def split(gap: Declared, at: int) -> tuple[Declared, Declared]:
    """Return a declaration as two, up to a seq and from the next on. Their counts follow from what lies at the seq."""
    end = gap.end
    if end is None and gap.base is not None and gap.samples is not None:
        end = gap.base + gap.samples
    return (
        msgspec.structs.replace(gap, seq_to=at, samples=None, end=None),
        msgspec.structs.replace(gap, seq_from=at + 1, samples=None, base=None, end=end),
    )


def _clipped(hole: Hole, low: int, high: int) -> Hole:
    return Hole(
        max(hole.low, low),
        min(hole.high, high),
        hole.base if hole.low >= low else None,
        hole.end if hole.high <= high else None,
    )


def _remainder(gap: Declared, holes: Sequence[Hole], known: Iterable[Gap]) -> int | None:
    """Return the samples of a declared range less those of the gaps in it; None: something else is in it, too."""
    if [hole[:2] for hole in holes] != [(gap.seq_from, gap.seq_to)]:
        return None
    left = gap.samples
    for old in known:
        if old.low <= gap.seq_to and old.high >= gap.seq_from:
            within = gap.seq_from <= old.low and old.high <= gap.seq_to
            left = None if left is None or old.samples is None or not within else max(0, left - old.samples)
    return left


def _cut(old: Gap, new: Sequence[Gap]) -> list[Gap]:
    """Return what of a gap is in none of others, which are sorted."""
    first = bisect_left(new, old.low, key=lambda item: item.high)
    last = bisect_right(new, old.high, key=lambda item: item.low)
    found = [
        Found(max(item.low, old.low), min(item.high, old.high), item.base, item.samples) for item in new[first:last]
    ]
    return ranges.without(old, found)
