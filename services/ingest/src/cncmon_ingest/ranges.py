"""Gaps as ranges of seqs: cut out what turned up, join what touches. Pure arithmetic, however long a range is."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Literal, NamedTuple

from cncmon_core.events import SEQ_MAX

State = Literal["declared", "passed", "abandoned"]


class Gap(NamedTuple):
    """A row of `gaps`: batches low to high of an epoch. base: samples of the epoch before low. None: unknown."""

    epoch: int
    low: int
    high: int
    samples: int | None
    base: int | None
    reason: str
    state: State
    declared: datetime

    @property
    def batches(self) -> int:
        """How many seqs it spans."""
        return self.high - self.low + 1

    @property
    def end(self) -> int | None:
        """Samples of the epoch up to and including high."""
        return None if self.base is None or self.samples is None else self.base + self.samples


class Found(NamedTuple):
    """What is not missing within a gap: batches low to high with so many samples, after `base` others of the epoch.

    None: unknown.
    """

    low: int
    high: int
    base: int | None
    samples: int | None


def without(gap: Gap, found: Sequence[Found]) -> list[Gap]:
    """Return what is left of a gap, in order. `found` is sorted, disjoint and within the gap.

    The sample counts follow from the cumulative ones. Where one of these is unknown, what remains of the gap's count is
    shared out by length: single pieces may then be off, their sum is not.
    """
    pieces: list[Gap] = []
    low, base = gap.low, gap.base
    for item in (*found, Found(gap.high + 1, gap.high + 1, gap.end, 0)):
        if item.low > low:
            samples = None if base is None or item.base is None else max(0, item.base - base)
            pieces.append(gap._replace(low=low, high=item.low - 1, base=base, samples=samples))
        low, base = item.high + 1, None if item.base is None or item.samples is None else item.base + item.samples
    taken = [item.samples for item in found if item.samples is not None]
    if gap.samples is None or len(taken) < len(found):
        return pieces
    left = gap.samples - sum(taken) - sum(piece.samples or 0 for piece in pieces)
    return _shared_out(pieces, max(0, left))


def _shared_out(pieces: list[Gap], left: int) -> list[Gap]:
    unknown = sum(piece.batches for piece in pieces if piece.samples is None)
    shared = []
    for piece in pieces:
        if piece.samples is None:
            part = left * piece.batches // unknown
            left, unknown = left - part, unknown - piece.batches
            piece = piece._replace(samples=part)
        shared.append(piece)
    return shared


def beside(holes: Iterable[tuple[int, int]], known: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the parts of `holes` that no range of `known` covers. Both sorted and disjoint."""
    taken = list(known)
    parts = []
    first = 0
    for low, high in holes:
        while first < len(taken) and taken[first][1] < low:
            first += 1
        at = first
        while low <= high:
            if at == len(taken) or taken[at][0] > high:
                parts.append((low, high))
                break
            if taken[at][0] > low:
                parts.append((low, taken[at][0] - 1))
            low = taken[at][1] + 1
            at += 1
    return parts


def counted(low: int, high: int, points: Mapping[int, int]) -> tuple[int | None, int | None]:
    """Return (base, samples) of batches low to high. points: seq → samples of the epoch before it, where known."""
    base, end = points.get(low), points.get(high + 1)
    return base, None if base is None or end is None else max(0, end - base)


def joined(gaps: Iterable[Gap]) -> list[Gap]:
    """Return gaps of one epoch, sorted and disjoint, with those joined that touch and say the same."""
    result: list[Gap] = []
    for gap in gaps:
        last = result[-1] if result else None
        if last and last.high + 1 == gap.low and (last.reason, last.state) == (gap.reason, gap.state):
            both = None if last.samples is None or gap.samples is None else last.samples + gap.samples
            samples = None if both is None or both > SEQ_MAX else both
            result[-1] = last._replace(high=gap.high, samples=samples, declared=max(last.declared, gap.declared))
        else:
            result.append(gap)
    return result


def union(parts: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return what any of the ranges covers, sorted, as ranges that don't touch. What ends before it begins is none."""
    result: list[tuple[int, int]] = []
    for low, high in sorted(part for part in parts if part[0] <= part[1]):
        if result and low <= result[-1][1] + 1:
            result[-1] = result[-1][0], max(high, result[-1][1])
        else:
            result.append((low, high))
    return result
