"""State intervals: putting what was computed anew for some windows of time into what is known around them.

The states themselves are told by the database's function `sample_state`. A sample stands for the time until the next
one, but no longer than its limit: `stale_after`, or three times the smaller of the two distances before it, whichever
is longer. What nothing stands for is `no_data`: neither the state before nor `offline`, which a sender reports.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import pairwise
from typing import NamedTuple

NO_DATA = "no_data"


class Interval(NamedTuple):
    """A machine was in a state over [begins, ends), with a program and an alarm or none.

    undivided: its `offline` was computed before there was `no_data`, and may be either.
    """

    begins: datetime
    ends: datetime
    state: str
    program: str | None = None
    alarm: str | None = None
    undivided: bool = False

    @property
    def what(self) -> tuple[str, str | None, str | None, bool]:
        """What must be equal for two to be one."""
        return self[2:]


class Window(NamedTuple):
    """[begins, ends) whose samples, and those before and behind it, tell its states anew; ends None: up to the last."""

    begins: datetime
    ends: datetime | None


def merged(windows: Iterable[Window]) -> list[Window]:
    """Return windows without overlaps, in order."""
    found: list[Window] = []
    for window in sorted(windows, key=lambda window: window.begins):
        last = found[-1] if found else None
        if last is None or (last.ends is not None and last.ends < window.begins):
            found.append(window)
        elif last.ends is not None and (window.ends is None or window.ends > last.ends):
            found[-1] = Window(last.begins, window.ends)
    return found


def filled(runs: Sequence[Interval], window: Window) -> list[Interval]:
    """Return a window's runs of samples with `no_data` wherever there are none, up to the window's end."""
    found: list[Interval] = []
    for run, following in pairwise([*runs, None]):
        if run is None:
            raise AssertionError("only the last is None")
        found.append(run)
        until = following.begins if following else window.ends
        if until is not None and run.ends < until:
            found.append(Interval(run.ends, until, NO_DATA))
    return found


def replaced(known: Iterable[Interval], windows: Sequence[Window], anew: Iterable[Interval]) -> list[Interval]:
    """Return `known` with what lies in the windows replaced by `anew`; equal ones that meet become one."""
    pieces = [*anew]
    for interval in known:
        pieces += _outside(interval, windows)
    found: list[Interval] = []
    for piece in sorted(pieces, key=lambda piece: piece.begins):
        if found and found[-1].ends == piece.begins and found[-1].what == piece.what:
            found[-1] = found[-1]._replace(ends=piece.ends)
        else:
            found.append(piece)
    return found


def _outside(interval: Interval, windows: Sequence[Window]) -> list[Interval]:
    """Return the parts of an interval that lie in none of the windows, which are in order and without overlaps."""
    found = []
    begins = interval.begins
    for window in windows:
        if begins < min(window.begins, interval.ends):
            found.append(interval._replace(begins=begins, ends=min(window.begins, interval.ends)))
        if window.ends is None:
            return found
        begins = max(begins, window.ends)
    if begins < interval.ends:
        found.append(interval._replace(begins=begins))
    return found


def changes(before: Iterable[Interval], after: Iterable[Interval]) -> list[tuple[datetime, datetime]]:
    """Return [begins, ends) of the times whose state is not what it was, in order; no interval is a state too.

    Each of both are without overlaps.
    """
    had, has = (_edges(intervals) for intervals in (before, after))
    found: list[tuple[datetime, datetime]] = []
    was = now = None
    moments = sorted({*had, *has})
    for moment, until in pairwise(moments):
        was, now = had.get(moment, was), has.get(moment, now)
        if was == now:
            continue
        if found and found[-1][1] == moment:
            found[-1] = (found[-1][0], until)
        else:
            found.append((moment, until))
    return found


def _edges(intervals: Iterable[Interval]) -> dict[datetime, str]:
    """Return from when on which state is; "" where there is none."""
    edges: dict[datetime, str] = {}
    for interval in sorted(intervals):
        edges[interval.begins] = interval.state
        edges[interval.ends] = ""
    return edges
