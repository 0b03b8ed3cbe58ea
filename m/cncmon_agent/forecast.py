"""How many hours of outage the buffer can still take, from what it accepts.

Pure: no I/O and no clock. The same figure is the metric `cncmon_edge_buffer_hours_left`, the heartbeat's `hours_left`
and what the controller acts on, so that nobody is told of another limit than the one that is acted on.
"""

import math
from typing import Final

MEMORY_S: Final = 600.0
"""Time constant of the accepted rate: long against a machine's cycle of minutes, short against the hours forecast."""

BUCKET_S: Final = 10.0
"""Rates are averaged over this long first: batches come seconds apart, and slots without one are not a low rate.
Nothing is told before the first is full: the first batches after a start say nothing of the hours to come."""

JUMP: Final = 4.0
"""A bucket counts at most as this many times the rate so far: a burst (an import of unstamped samples) is no trend."""

HOURS_MAX: Final = 24.0 * 365
"""Longer than a year is no limit in sight: at a few bytes a second the figure would only be noise."""


class RateMeter:
    """A robust average of bytes per second: exponentially weighted by time, right from the first bucket on.

    The weight of what was never seen is divided out, as in Kingma and Ba, Adam (2015), section 3: after a minute it is
    the plain mean of that minute, not a tenth of it.
    """

    def __init__(self, memory_s: float = MEMORY_S) -> None:
        self._memory_s = memory_s
        self._sum = 0.0
        self._weight = 0.0
        self._bucket_bytes = 0.0
        self._bucket_s = 0.0

    def observe(self, bytes_per_s: float, dt_s: float) -> None:
        """Take the rate of a slot of `dt_s` seconds. Slots without length, negative or infinite rates are ignored."""
        if not 0 < dt_s < math.inf or not 0 <= bytes_per_s < math.inf:
            return
        self._bucket_bytes += bytes_per_s * dt_s
        self._bucket_s += dt_s
        if self._bucket_s < BUCKET_S:
            return
        rate, before = self._bucket_bytes / self._bucket_s, self.bytes_per_s
        if before:
            # What follows a rate of 0 has nothing to be compared with, and is believed.
            rate = min(rate, before * JUMP)
        keep = math.exp(-self._bucket_s / self._memory_s)
        self._sum = self._sum * keep + rate * (1 - keep)
        self._weight = self._weight * keep + (1 - keep)
        self._bucket_bytes = self._bucket_s = 0.0

    @property
    def bytes_per_s(self) -> float | None:
        """The rate; None until the first bucket of `BUCKET_S` seconds is full."""
        return self._sum / self._weight if self._weight else None


def hours_left(
    capacity_bytes: float,
    held_bytes: float,
    inflow_bytes_s: float | None,
    *,
    recompressible_bytes: float = 0.0,
    gain: float | None = None,
) -> float | None:
    """Return for how many hours more everything can be kept, if nothing is freed; None: no limit in sight.

    capacity_bytes: room in all, on disk or, when there is no disk, in memory. held_bytes: of it in use.
    inflow_bytes_s: what is accepted, compressed, from a `RateMeter`; None (not known yet) and 0 give None.
    recompressible_bytes: of what is held, what will be compressed harder. gain: the share of bytes that this saves, 0
    to 1, as measured on this edge's own segments; None: not measured, and so not counted on.
    """
    if inflow_bytes_s is None or inflow_bytes_s <= 0:
        return None
    kept = 1.0 - min(max(gain or 0.0, 0.0), 0.95)
    room = capacity_bytes - held_bytes + recompressible_bytes * (1.0 - kept)
    hours = max(room, 0.0) / (inflow_bytes_s * kept) / 3600
    return None if hours > HOURS_MAX else hours
