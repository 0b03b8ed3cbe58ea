"""Waits: over as soon as the condition holds, bounded by minutes, and at the bound the message says what was last seen.

A bound here never decides between right and wrong: it only ends what will never come. It is the same on every machine,
and far longer than the slowest one takes.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

WAIT_S_MAX: Final = 240.0
"""Bound of a wait for something that must come; below pytest's own limit for a test, which can't give a reason."""


LOOKS_SHARE: Final = 0.2
"""Part of a wait that its looks may take, or those at a table that grows keep what is awaited from getting done."""

PAUSE_S_MAX: Final = 1.0


class _Looks:
    """The looks at one condition, until its bound."""

    def __init__(self, condition: Callable[[], Any], timeout_s: float, what: str | Callable[[], object] | None) -> None:
        self._condition = condition
        self._timeout_s = timeout_s
        self._what = what
        self._end_s = time.monotonic() + timeout_s
        self._began_s = 0.0

    def begin(self) -> None:
        """A look begins."""
        self._began_s = time.monotonic()

    def pause_s(self, every_s: float) -> float:
        """Return how long to wait until the next look: longer where a look takes long."""
        took_s = time.monotonic() - self._began_s
        return max(every_s, min(took_s / LOOKS_SHARE, PAUSE_S_MAX))

    def note(self, seen: object) -> None:
        """Take note of a look at which the condition did not hold.

        Raises:
            AssertionError: the bound is reached; says what was waited for and what was seen last.
        """
        if time.monotonic() < self._end_s:
            return
        what = self._what() if callable(self._what) else self._what
        raise AssertionError(f"after {self._timeout_s:g} s not: {what or self._source()}; last: {seen!r}")

    def _source(self) -> str:
        """Return the condition's code and the values that it refers to."""
        try:
            lines = " ".join(line.strip() for line in inspect.getsource(self._condition).splitlines())
            known = inspect.getclosurevars(self._condition).nonlocals
        except (OSError, TypeError, ValueError):
            return repr(self._condition)
        values = ", ".join(f"{name}={value!r:.200}" for name, value in known.items() if not callable(value))
        return lines + (f" with {values}" if values else "")


async def until(
    condition: Callable[[], Any | Awaitable[Any]],
    timeout_s: float = WAIT_S_MAX,
    *,
    what: str | Callable[[], object] | None = None,
    every_s: float = 0.01,
) -> Any:
    """Wait until a condition returns something true, or an awaitable of it; return that.

    what: says in a failure's message what was waited for, or is called for it; otherwise the condition's code does.

    Raises:
        AssertionError: it does not hold after `timeout_s`; says what was seen last.
    """
    looks = _Looks(condition, timeout_s, what)
    while True:
        looks.begin()
        seen = condition()
        if inspect.isawaitable(seen):
            seen = await seen
        if seen:
            return seen
        looks.note(seen)
        await asyncio.sleep(looks.pause_s(every_s))


def until_blocking(
    condition: Callable[[], Any],
    timeout_s: float = WAIT_S_MAX,
    *,
    what: str | Callable[[], object] | None = None,
    every_s: float = 0.05,
) -> Any:
    """Wait as `until` does, outside an event loop."""
    looks = _Looks(condition, timeout_s, what)
    while True:
        looks.begin()
        if seen := condition():
            return seen
        looks.note(seen)
        time.sleep(looks.pause_s(every_s))
