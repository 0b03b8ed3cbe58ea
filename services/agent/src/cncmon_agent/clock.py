"""Wall time that does not jump: the monotonic clock, anchored to the wall clock."""

import time
from datetime import UTC, datetime, timedelta
from typing import Final

from prometheus_client import Counter

STEP_NS: Final = 100_000_000
"""A difference of 100 ms between the two clocks is a step (somebody set the clock); less is measuring noise."""

STEPS = Counter("cncmon_edge_clock_steps", "Steps of the wall clock that were seen.")

_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock:
    """Stamps samples. Both clocks are slewed alike by NTP, so they differ only where the wall clock was set."""

    def __init__(self) -> None:
        self._anchor_ns = time.time_ns() - time.monotonic_ns()

    def now(self) -> datetime:
        """Return the wall time in UTC, µs."""
        return _UNIX_EPOCH + timedelta(microseconds=(time.monotonic_ns() + self._anchor_ns) // 1000)

    def follow(self) -> bool:
        """Anchor again where the wall clock was stepped; return whether it was."""
        anchor_ns = time.time_ns() - time.monotonic_ns()
        if abs(anchor_ns - self._anchor_ns) < STEP_NS:
            return False
        self._anchor_ns = anchor_ns
        STEPS.inc()
        return True
