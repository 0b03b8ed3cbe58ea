"""Tests whose time is counted, not passed: `pytestmark = pytest.mark.virtual_time`.

Their event loop's clock stands still while anything is left to do, and jumps to the next timer when nothing is. So a
test of 1.5 s ends after some milliseconds, and no other load on the machine can make anything late. It fits what runs
within one process: sockets between two ends in it, and threads that the loop waits for, which take no time. It does not
fit what waits for another process.
"""

import asyncio
import selectors
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

_SETTLE_S: Final = 0.0005
"""Real time that the kernel gets to pass on what was sent on the loopback interface, before time jumps."""

_THREADS_S: Final = 0.002
"""Real time between two looks while a thread works."""

_TICK_NS: Final = 1000
"""What any look at a clock adds, so that no two moments are the same."""

_REAL: Final = {name: getattr(time, name) for name in ("monotonic", "monotonic_ns", "time", "time_ns", "sleep")}
_REAL_GETTIME_NS: Final = time.clock_gettime_ns


class _Selector(selectors.DefaultSelector):
    """A selector that lets virtual time pass instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ns: int = _REAL["monotonic_ns"]()
        self.threads = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        if self.threads:
            return super().select(_THREADS_S)
        if timeout is None:
            return super().select(None)
        events = super().select(_SETTLE_S)
        if not events:
            self.now_ns += int(timeout * 1e9) + 1
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own, which the module `time` shows from its making until it is closed."""

    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)
        wall_ns = _REAL["time_ns"]() - self._clock.now_ns
        shown: dict[str, Callable[..., Any]] = {
            "monotonic": lambda: self._look_ns() / 1e9,
            "monotonic_ns": self._look_ns,
            "time": lambda: (self._look_ns() + wall_ns) / 1e9,
            "time_ns": lambda: self._look_ns() + wall_ns,
            "sleep": self._stand_still,
            "clock_gettime_ns": self._gettime_ns,
        }
        for name, function in shown.items():
            setattr(time, name, function)

    def time(self) -> float:
        return self._clock.now_ns / 1e9

    def close(self) -> None:
        for name, function in (_REAL | {"clock_gettime_ns": _REAL_GETTIME_NS}).items():
            setattr(time, name, function)
        super().close()

    def run_in_executor(  # type: ignore[override]  # the types of its arguments are those of its base
        self, executor: Any, func: Any, *args: Any
    ) -> asyncio.Future[Any]:
        """Time stands still while a thread works."""
        future = super().run_in_executor(executor, func, *args)
        self._clock.threads += 1
        future.add_done_callback(self._thread_done)
        return future

    def _thread_done(self, _: object) -> None:
        self._clock.threads -= 1

    def _look_ns(self) -> int:
        self._clock.now_ns += _TICK_NS
        return self._clock.now_ns

    def _stand_still(self, seconds: float) -> None:
        self._clock.now_ns += int(seconds * 1e9)

    def _gettime_ns(self, clock: int) -> int:
        return self._look_ns() if clock in (time.CLOCK_BOOTTIME, time.CLOCK_MONOTONIC) else _REAL_GETTIME_NS(clock)


def loop_factories(*, virtual: bool) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Return the one event loop that a test runs in, as pytest-asyncio asks for it."""
    return {"virtual": VirtualLoop} if virtual else {"real": asyncio.new_event_loop}
