"""What is known of each batch's way: published, taken by the stream, in the database. Rules A4, A5 and A7, without I/O.

A batch is freed only when the database has everything up to it and the stream has acknowledged it to us. It is
published again only on evidence that the stream lost it; a database that stands still for hours is no evidence.
"""

import heapq
from collections import deque
from collections.abc import Callable, Collection
from typing import Final

from cncmon_agent.buffer import Buffer
from cncmon_agent.epochs import Epoch
from cncmon_agent.ways import Ways

MARGIN_S: Final = 5.0
"""Added to the duplicate window: the server's clock for it starts when it stored the message, a little after ours."""


class Delivery:
    """The ways of all batches of one epoch, in two lanes.

    Live: what is appended after `go_live`, the beginning of a connection. Backlog: what was waiting by then, and what
    must be sent again. An earlier epoch has a backlog only.
    """

    def __init__(
        self, buffer: Buffer, epoch: Epoch, duplicate_window_s: float, now_s: float = 0.0, *, whole: bool = True
    ) -> None:
        """now_s: what the last run of the agent knew to be taken counts as taken at this moment, monotonic.

        whole: whether the buffer has all that there is; where some may be on a disk that is not there, a hole in it is
        no sign that the stream has anything.
        """
        self.buffer = buffer
        self.epoch = epoch
        self.watermark: int | None = None
        self.growing = False
        """Whether batches are still appended to it: then the database can't have more than that of it."""
        self.claimed: int | None = None
        """The watermark that can't be true, while it is claimed."""
        self.careful = False
        """Whether the watermark may speak of another batch: then ours is freed only once the consumers passed it."""
        self._floor = 0
        self._passed_to = 0
        self.pinned_from: Callable[[], int | None] = lambda: None
        """The first seq that may not be freed yet, or None (rule A8: it was moved here and that is not noted)."""
        self.resent = 0
        self._whole = whole
        self._window_s = duplicate_window_s + MARGIN_S
        self._ways = Ways()
        self._in_flight: set[int] = set()
        self._again: list[int] = []
        self._postponed: list[int] = []
        self._closed: deque[tuple[int, int]] = deque()
        first, end = buffer.range()
        self._reach = first - 1
        self._next_live = first
        if epoch.acked_stream_seq:
            # Not where each of them is, but that all are at or under this place: enough for evidence against it.
            self._reach = max(self._reach, min(epoch.acked_seq, end - 1))
            self._ways.take_all(first, self._reach, epoch.acked_stream_seq, now_s)
            self._next_live = self._reach + 1
        self._advance()

    def go_live(self) -> None:
        """A connection begins: what is waiting now is backlog, what comes from now on is live."""
        _, end = self.buffer.range()
        if self._next_live < end:
            self._closed.append((self._next_live, end))
        self._next_live = max(self._next_live, end)

    def unacknowledged(self) -> int:
        """How many batches the stream has not acknowledged."""
        _, end = self.buffer.range()
        return max(0, end - self._next_live) + self.backlog() + len(self._in_flight)

    def backlog(self) -> int:
        """How many batches wait in the backlog lane."""
        return sum(to - at for at, to in self._closed) + len(self._again) + len(self._postponed)

    def next_live(self) -> int | None:
        """Return the next live seq to publish and count it as in flight; None when there is none."""
        _, end = self.buffer.range()
        if self._next_live >= end:
            return None
        seq, self._next_live = self._next_live, self._next_live + 1
        self._in_flight.add(seq)
        return seq

    def next_backlog(self) -> int | None:
        """Return the next seq of the backlog, oldest first, and count it as in flight; None when there is none.

        What must be sent again goes first: it is the oldest, and what holds the watermark back.
        """
        while self._again:
            seq = heapq.heappop(self._again)
            if seq not in self._ways and seq not in self._in_flight and self._held(seq):
                self._in_flight.add(seq)
                return seq
        first, _ = self.buffer.range()
        while self._closed:
            at, to = self._closed.popleft()
            at = max(at, first)
            if at + 1 < to:
                self._closed.appendleft((at + 1, to))
            if at < to and at not in self._ways and at not in self._in_flight:
                self._in_flight.add(at)
                return at
        return None

    def _held(self, seq: int) -> bool:
        first, end = self.buffer.range()
        return first <= seq < end

    def gone(self, seq: int) -> None:
        """A batch that was to be published can't be had: dropped at the cap, damaged on the disk, or only not now.

        Not now: there are no descriptors or no memory to read it with. It is no gap then, and must not be forgotten.
        """
        self._in_flight.discard(seq)
        if is_held(self.buffer, seq):
            self._postponed.append(seq)
        self._advance()

    def postpone(self, seq: int) -> None:
        """A batch may not be published yet."""
        self._in_flight.discard(seq)
        self._postponed.append(seq)

    def resume(self) -> None:
        """Try what was postponed again."""
        for seq in self._postponed:
            heapq.heappush(self._again, seq)
        self._postponed.clear()

    def failed(self, seq: int) -> None:
        """The publish was refused, or nothing was heard of it: it waits again. Publishing twice is harmless."""
        if seq in self._in_flight:
            self._in_flight.discard(seq)
            heapq.heappush(self._again, seq)

    def connection_lost(self) -> None:
        """Nothing more will be heard of what is in flight."""
        for seq in sorted(self._in_flight):
            self.failed(seq)

    def taken(self, seq: int, stream_seq: int, now_s: float) -> None:
        """The stream acknowledged a batch."""
        self._in_flight.discard(seq)
        if self._held(seq):
            self._ways.take(seq, stream_seq, now_s)
        self._advance()

    def told(self, watermark: int) -> None:
        """The database has this epoch up to a seq.

        More than was appended can't be true, unless another agent has our memory. That is a reason for an alarm and no
        more (rule A7): such a watermark frees nothing, nor does a later one free what was not appended by then.
        """
        _, end = self.buffer.range()
        limit = self.epoch.doubted_from or (end if self.growing else watermark + 1)
        if watermark >= limit and not self.epoch.forked:
            self.epoch.doubted_from, self.claimed = limit, watermark
            return
        self.epoch.doubted_from, self.claimed = 0, None
        # An earlier epoch may have had more than this disk has of it: lost to a power cut, or another disk's.
        self.careful = self.careful or watermark >= max(end, self.epoch.last_seq + 1)
        self.watermark = watermark
        self._advance()

    def passed(self, floor: int) -> None:
        """The consumers have committed everything up to a place in the stream."""
        self._floor = floor
        if self._is_careful():
            self._advance()

    def _is_careful(self) -> bool:
        return self.careful or self.epoch.forked

    def look_for_lost(self, floor: int, now_s: float) -> None:
        """Send again what the consumers have passed without storing it, once the duplicate window lets it through.

        What stands right above the watermark is certainly not stored. Above a hole of our own making (backlog that is
        not sent yet) nothing can be said, so the look ends at the first batch of which nothing is known.
        """
        first = seq = max(self.watermark or 0, self._first() - 1) + 1
        while (way := self._ways.get(seq)) is not None and way[0] <= floor and now_s - way[1] > self._window_s:
            self._ways.forget(seq)
            seq += 1
        if seq > first:
            self._lost([(first, seq)])

    def lost_from(self, stream_seq: int) -> None:
        """The stream no longer has what it gave out from a sequence on (0: anything)."""
        # Of a batch under the watermark that may be another's, the stream held the only copy beside ours.
        kept = self._first() - 1 if self._is_careful() else self.watermark or 0
        if lost := self._ways.lose(stream_seq, kept):
            self._lost(lost)
        self.epoch.acked_stream_seq = min(self.epoch.acked_stream_seq, max(0, stream_seq - 1))

    def _lost(self, ranges: list[tuple[int, int]]) -> None:
        """Let ranges of seqs (in order, ends excluded) wait again: they are the oldest, and so the first to be sent."""
        self._closed = deque(sorted([*self._closed, *ranges]))
        self._reach = min(self._reach, ranges[0][0] - 1)
        self._passed_to = min(self._passed_to, self._reach)
        self._acked(min(self.epoch.acked_seq, self._reach))
        self.resent += sum(to - at for at, to in ranges)

    def missing(self) -> list[tuple[int, int]]:
        """Return the ranges of seqs that are neither held nor known to be in the database: the gaps (rule A7).

        Derived and never remembered: nothing that is dropped or damaged can be forgotten between two saves.
        """
        known = max(self.epoch.freed_seq, self.watermark or 0)
        first, end = self.buffer.range()
        # Before what is held, within it, and behind it where a synced end was damaged.
        ranges = [(1, first - 1), *self.buffer.holes(), (end, self.epoch.last_seq)]
        return [(max(low, known + 1), high) for low, high in ranges if high >= low and high > known]

    def unheard(self, seqs: Collection[int]) -> set[int]:
        """Return which of some batches are missing: what they said was not heard, whatever the watermark says."""
        missing = self.missing() if seqs else []
        return {seq for seq in seqs if any(low <= seq <= high for low, high in missing)}

    def done(self) -> bool:
        """Whether nothing of this epoch is left to be delivered or declared."""
        first, end = self.buffer.range()
        return first == end and max(self.watermark or 0, self.epoch.freed_seq) >= max(self.epoch.last_seq, end - 1)

    def settle(self) -> None:
        """Bring the epoch's sample counts up to its seqs: done before they are saved, not for every batch."""
        epoch = self.epoch
        if not epoch.acked_samples:
            epoch.acked_samples = samples_before(self.buffer, epoch, epoch.acked_seq + 1) or 0

    def _first(self) -> int:
        return self.buffer.range()[0]

    def _advance(self) -> None:
        """Move over what is taken (or no longer held, which nobody will acknowledge), and free what may be freed."""
        first, end = self.buffer.range()
        reach = max(self._reach, first - 1)
        holes: list[tuple[int, int]] | None = None
        while True:
            if (way := self._ways.get(reach + 1)) is not None:
                reach += 1
                self.epoch.acked_stream_seq = max(self.epoch.acked_stream_seq, way[0])
                continue
            if reach + 1 >= end or reach + 1 in self._in_flight:
                # No hole, then. Those of a log of a day with many damaged records are not to be looked at for each ack.
                break
            holes = self.buffer.holes() if holes is None else holes
            hole = next((high for low, high in holes if low <= reach + 1 <= high), None)
            if hole is None:
                break
            reach = hole
        self._reach = reach
        if self._whole:
            self._acked(max(self.epoch.acked_seq, reach))
        up_to = min(reach, self.watermark or 0)
        if self._is_careful():
            up_to = self._passed(first, up_to)
        if (pinned := self.pinned_from()) is not None:
            up_to = min(up_to, pinned - 1)
        if up_to >= first:
            self._count_freed(up_to)
            self.buffer.free(up_to)
            self._ways.drop(up_to)
            self.epoch.freed_seq = max(self.epoch.freed_seq, up_to)

    def _acked(self, seq: int) -> None:
        if seq != self.epoch.acked_seq:
            # Counted when somebody asks: 0 is unknown.
            self.epoch.acked_seq, self.epoch.acked_samples = seq, 0

    def _passed(self, first: int, up_to: int) -> int:
        """Return up to which seq, at most `up_to`, the consumers have passed our batches in the stream."""
        seq = max(self._passed_to, first - 1)
        while seq < up_to and ((way := self._ways.get(seq + 1)) is None or way[0] <= self._floor):
            seq += 1
        self._passed_to = seq
        return min(seq, up_to)

    def _count_freed(self, up_to: int) -> None:
        """Note how many samples the epoch has up to a seq; 0, which means unknown, where neither side of it tells."""
        if (last := self.buffer.get(up_to)) is not None:
            samples = last.identity.base + last.samples
        elif (behind := self.buffer.get(up_to + 1)) is not None:
            samples = behind.identity.base
        else:
            samples = 0
        self.epoch.freed_samples = samples
        if up_to == self.epoch.acked_seq and samples:
            self.epoch.acked_samples = samples


def is_held(buffer: Buffer, seq: int) -> bool:
    """Whether a batch is there, also where it can't be read just now."""
    first, end = buffer.range()
    return first <= seq < end and not any(low <= seq <= high for low, high in buffer.holes())


def samples_before(buffer: Buffer, epoch: Epoch, seq: int) -> int | None:
    """Return how many samples of an epoch come before a seq, or None where that can't be told."""
    if (batch := buffer.get(seq)) is not None:
        return batch.identity.base
    if (batch := buffer.get(seq - 1)) is not None:
        return batch.identity.base + batch.samples
    for known, samples in (
        (0, 0),
        (epoch.freed_seq, epoch.freed_samples),
        (epoch.acked_seq, epoch.acked_samples),
        (epoch.last_seq, epoch.last_samples),
    ):
        if seq == known + 1 and (samples or not known):
            return samples
    return None
