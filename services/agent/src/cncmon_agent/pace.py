"""The pace of the backlog, and the acknowledgement times that it is learned from."""

import asyncio
import contextlib
import time
from collections import deque
from typing import Final

BURST_S: Final = 0.05
"""How much may be sent at once, as time at the given rate: short enough that a live batch is never far behind."""

RECENT: Final = 0.2
"""Weight of the newest time in the recent one: some ten of them count."""

QUIET_S: Final = 1.0
"""Five rounds of the watermark: who has waited longer waits for the database."""

PASSED_S: Final = 1.5
"""Over how long it is averaged what gets into the database: some seven documents."""

WAITING_MAX: Final = 4096
"""Messages whose way to the database is watched: 20 s of them, `APART_S` apart."""

APART_S: Final = 0.005


class Pace:
    """A token bucket of bytes. Rate 0 holds everything back until it is raised."""

    def __init__(self, bytes_per_s: float) -> None:
        self.spent_bytes = 0
        self._rate = bytes_per_s
        self._tokens = 0.0
        self._at_s = time.monotonic()
        self._changed = asyncio.Event()
        self._committed = 0
        self._window: float | None = None

    def begin(self) -> None:
        """A connection begins: nothing is on its way."""
        self._committed = self.spent_bytes
        self._window = None
        self._changed.set()

    def committed(self, spent_bytes: int) -> None:
        """The database has what was sent before so many bytes were."""
        self._committed = max(self._committed, spent_bytes)
        self._changed.set()

    def refund(self, size: int) -> None:
        """So much of what was sent will not get there by that, or was there before."""
        self._committed = min(self.spent_bytes, self._committed + size)
        self._changed.set()

    def bound(self, window_bytes: float | None) -> None:
        """Have so much on its way to the database at most; None: any amount."""
        self._window = window_bytes
        self._changed.set()

    @property
    def _full(self) -> bool:
        return self._window is not None and self.spent_bytes - self._committed >= self._window

    @property
    def bytes_per_s(self) -> float:
        """The rate."""
        return self._rate

    @bytes_per_s.setter
    def bytes_per_s(self, rate: float) -> None:
        self._earn()
        self._rate = rate
        self._changed.set()

    def _earn(self) -> None:
        now_s = time.monotonic()
        self._tokens = min(self._tokens + (now_s - self._at_s) * self._rate, self._rate * BURST_S)
        self._at_s = now_s

    async def ready(self) -> None:
        """Wait until something may be sent."""
        self._earn()
        while self._tokens < 0 or not self._rate or self._full:
            self._changed.clear()
            wait_s = -self._tokens / self._rate if self._rate and not self._full else None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), wait_s)
            self._earn()

    def spend(self, size: int) -> None:
        """So much was sent. A batch larger than the burst goes into debt, and the next one waits the longer."""
        self._tokens -= size
        self.spent_bytes += size


class Latency:
    """How long acknowledgements take, in seconds: lately, and on average since last asked."""

    def __init__(self) -> None:
        self.recent_s = 0.0
        self._sum_s = 0.0
        self._number = 0

    def begin(self) -> None:
        """A new connection: another server perhaps, another route."""
        self.recent_s = self._sum_s = 0.0
        self._number = 0

    def observe(self, latency_s: float) -> None:
        """Take one more."""
        self.recent_s = latency_s if not self.recent_s else self.recent_s + RECENT * (latency_s - self.recent_s)
        self._sum_s += latency_s
        self._number += 1

    def take(self) -> float | None:
        """Return the mean of those since the last call, or None where there were none."""
        if not self._number:
            return None
        mean_s = self._sum_s / self._number
        self._sum_s, self._number = 0.0, 0
        return mean_s


class CommitLag:
    """How long the stream's messages wait for the database, from what the watermark documents say of the floor.

    A backlog that is replayed faster than the database takes it stands in the stream before every live batch, however
    quick the acknowledgements are: this is what tells.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, float, int]] = deque()
        self._passed: deque[tuple[float, int]] = deque()
        self._heard = False
        self._newest_s: float | None = None

    def begin(self) -> None:
        """A new connection."""
        self._waiting.clear()
        self._passed.clear()
        self._heard = False
        self._newest_s = None

    @property
    def empty(self) -> bool:
        """Whether nothing is known to be on its way."""
        return not self._waiting

    def taken(self, stream_seq: int, now_s: float, spent_bytes: int = 0) -> None:
        """The stream took a message of ours. spent_bytes: of the backlog, sent up to then."""
        if self._waiting and stream_seq < self._waiting[-1][0]:
            # Another stream, or one that went back: no floor of it will ever pass what the one before gave out.
            self._waiting.clear()
        # While the database is away there is nothing to be learned from more of them.
        if len(self._waiting) < WAITING_MAX and (not self._waiting or now_s - self._waiting[-1][1] >= APART_S):
            self._waiting.append((stream_seq, now_s, spent_bytes))

    def told(self, floor: int, now_s: float) -> int | None:
        """Everything up to a stream sequence is in the database; return `spent_bytes` of the newest message there, or
        None where that is no news.
        """
        newest: tuple[int, float, int] | None = None
        while self._waiting and self._waiting[0][0] <= floor:
            newest = self._waiting.popleft()
        if newest is None:
            return None
        self._heard = True
        self._newest_s = now_s - newest[1]
        self._passed.append((now_s, newest[2]))
        while now_s - self._passed[0][0] > PASSED_S and len(self._passed) > 2:
            self._passed.popleft()
        return newest[2]

    def committed_bytes_s(self) -> float | None:
        """Return how much of the backlog gets into the database a second, of late; None where nothing has yet."""
        if not self._heard:
            return None
        (began_s, before), (ended_s, after) = self._passed[0], self._passed[-1]
        return (after - before) / (ended_s - began_s) if ended_s > began_s else 0.0

    def take(self, now_s: float) -> float | None:
        """Return how long the newest message took that got there since the last call, or the age of the oldest that
        did not, if that is more; None where nothing is known.
        """
        waits_s = now_s - self._waiting[0][1] if self._waiting and self._heard else None
        newest_s, self._newest_s = self._newest_s, None
        if waits_s is None or newest_s is None:
            # A document comes every 200 ms: until then an age alone says nothing, unless it is larger than that.
            return newest_s if newest_s is not None else waits_s if (waits_s or 0.0) > QUIET_S else None
        return max(waits_s, newest_s)
