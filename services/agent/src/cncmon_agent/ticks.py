"""Wakes everybody who is due at the same moment at once.

To wake a process that sleeps costs more than a poll does (docs/decisions/0012 has the figures): a hundred machines that
are polled ten times a second are woken for in groups, not one by one. To that end polls begin on a grid that all
machines share; the time between two polls of a machine remains exactly what was asked for.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Final
from weakref import ReferenceType, WeakKeyDictionary

GRIDS_MS: Final = (200, 100, 50, 20, 10, 5, 2, 1)
"""Most divide one another, so that groups of different intervals coincide."""

GROUPS_MIN: Final = 5
"""Machines of one interval are spread over at least so many moments of it: no group is much more than a fifth."""


def aligned_s(moment_s: float, interval_s: float) -> float:
    """Return the first moment on the grid of a poll interval (whole ms) that is not before this one, in seconds.

    The grid divides the interval: polls that begin on it stay on it.
    """
    interval_ms = round(interval_s * 1000)
    grid_ms = next((g for g in GRIDS_MS if interval_ms % g == 0 and g * GROUPS_MIN <= interval_ms), 1)
    return math.ceil(moment_s * 1000 / grid_ms) * grid_ms / 1000


class Ticks:
    """The moments of one event loop that somebody waits for: one timer each, however many wait."""

    def __init__(self) -> None:
        self._waiting: dict[int, list[Callable[[], None]]] = {}

    def call(self, due_s: float, callback: Callable[[], None]) -> None:
        """Call back at a moment of monotonic time, taken to the nearest ms, or soon if it was. It must not raise."""
        due_ms = round(due_s * 1000)
        waiting = self._waiting.get(due_ms)
        if waiting is None:
            waiting = self._waiting[due_ms] = []
            loop = asyncio.get_running_loop()
            loop.call_later(max(due_ms / 1000 - time.monotonic(), 0), self._wake, due_ms)
        waiting.append(callback)

    def drop(self, due_s: float, callback: Callable[[], None]) -> None:
        """Call back no more, if that was still to come."""
        with contextlib.suppress(KeyError, ValueError):
            self._waiting[round(due_s * 1000)].remove(callback)

    def at(self, due_s: float) -> "asyncio.Future[None]":
        """Return a future that is done at that moment."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.call(due_s, partial(_finish, future))
        return future

    def _wake(self, due_ms: int) -> None:
        for callback in self._waiting.pop(due_ms):
            callback()


def _finish(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


_of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, ReferenceType[Ticks]] = WeakKeyDictionary()
"""Weak on both sides: ticks have futures, and these have their loop."""


def of_running_loop() -> Ticks:
    """Return the ticks of the running event loop, the same for all as long as somebody keeps them or waits."""
    loop = asyncio.get_running_loop()
    known = _of_loop.get(loop)
    ticks = known() if known is not None else None
    if ticks is None:
        ticks = Ticks()
        _of_loop[loop] = ReferenceType(ticks)
    return ticks
