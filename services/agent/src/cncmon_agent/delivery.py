"""What is known of each batch's way: published, taken by the stream, in the database. Rules A4 and A5, without I/O.

A batch is freed only when the database has everything up to it and the stream has acknowledged it to us. It is
published again only on evidence that the stream lost it; a database that stands still for hours is no evidence.
"""

import heapq
from collections.abc import Callable
from enum import Enum
from typing import Final

import msgspec

from cncmon_agent.buffer import Buffer
from cncmon_agent.epochs import Epoch
from cncmon_core.watermark import Watermark


class State(Enum):
    """Where a batch is on its way to the stream."""

    WAITING = "waiting"
    IN_FLIGHT = "in flight"
    TAKEN = "taken"


class Sent(msgspec.Struct):
    """One batch's way. stream_seq: where the stream put it; taken_s: when, monotonic."""

    state: State = State.WAITING
    stream_seq: int = 0
    taken_s: float = 0.0


MARGIN_S: Final = 5.0
"""Added to the duplicate window: the server's clock for it starts when it stored the message, a little after ours."""


class Delivery:
    """The ways of all batches in a buffer of one epoch."""

    def __init__(self, buffer: Buffer, epoch: Epoch, duplicate_window_s: float) -> None:
        self._buffer = buffer
        self._epoch = epoch
        self._window_s = duplicate_window_s + MARGIN_S
        self._sent: dict[int, Sent] = {}
        self._again: list[int] = []
        self._next, _ = buffer.range()
        self._reach = self._next - 1
        self._highest_taken = 0
        self._told: Watermark | None = None
        self._resent = 0

    @property
    def resent(self) -> int:
        """Batches that were published again because the stream had lost them."""
        return self._resent

    @property
    def watermark(self) -> int | None:
        """Up to which seq the database has this epoch; None: unknown, which is not zero."""
        return None if self._told is None else self._told.epochs.get(self._epoch.epoch)

    def unacknowledged(self) -> int:
        """How many batches the stream has not acknowledged."""
        _, end = self._buffer.range()
        return (end - self._next) + sum(sent.state is not State.TAKEN for sent in self._sent.values())

    def next_to_publish(self) -> int | None:
        """Return the seq to publish next and count it as in flight; None when there is none.

        What must be sent again goes first: it is the oldest, and what holds the watermark back.
        """
        while self._again:
            seq = heapq.heappop(self._again)
            sent = self._sent.get(seq)
            if sent is not None and sent.state is State.WAITING:
                sent.state = State.IN_FLIGHT
                return seq
        _, end = self._buffer.range()
        if self._next >= end:
            return None
        seq, self._next = self._next, self._next + 1
        self._sent[seq] = Sent(State.IN_FLIGHT)
        return seq

    def failed(self, seq: int) -> None:
        """The publish was refused, or nothing was heard of it: it waits again. Publishing twice is harmless."""
        sent = self._sent.get(seq)
        if sent is not None and sent.state is State.IN_FLIGHT:
            sent.state = State.WAITING
            heapq.heappush(self._again, seq)

    def connection_lost(self) -> None:
        """Nothing more will be heard of what is in flight."""
        for seq in [seq for seq, sent in self._sent.items() if sent.state is State.IN_FLIGHT]:
            self.failed(seq)

    def taken(self, seq: int, stream_seq: int, now_s: float, *, duplicate: bool) -> None:
        """The stream acknowledged a batch.

        A fresh message at or under a sequence that was given out before means that the stream went back: what it gave
        out from there on is lost.
        """
        if not duplicate and stream_seq <= self._highest_taken:
            self._lost(lambda sent: sent.stream_seq >= stream_seq)
            self._highest_taken = stream_seq
        self._highest_taken = max(self._highest_taken, stream_seq)
        sent = self._sent.get(seq)
        if sent is not None:
            sent.state, sent.stream_seq, sent.taken_s = State.TAKEN, stream_seq, now_s
        self._free()

    def told(self, document: Watermark) -> None:
        """The cloud side said how far it is. A lower seq of the same generation is old news and ignored."""
        before = self._told
        if before is not None:
            if document.generation < before.generation:
                return
            known, said = before.epochs.get(self._epoch.epoch), document.epochs.get(self._epoch.epoch)
            if document.generation == before.generation and known is not None and (said is None or said < known):
                return
            if document.stream_created != before.stream_created:
                self._lost(lambda _sent: True)
                self._highest_taken = 0
        self._told = document
        self._free()

    def look_for_lost(self, now_s: float) -> None:
        """Send again what the consumers have passed without storing it, once the duplicate window lets it through."""
        if self._told is None:
            return
        floor, watermark = self._told.committed_floor, self.watermark or 0
        self._lost(
            lambda sent: sent.stream_seq <= floor and now_s - sent.taken_s > self._window_s,
            above=watermark,
        )

    def _lost(self, is_lost: Callable[[Sent], bool], above: int = 0) -> None:
        for seq, sent in self._sent.items():
            if sent.state is State.TAKEN and seq > above and is_lost(sent):
                sent.state = State.WAITING
                heapq.heappush(self._again, seq)
                self._reach = min(self._reach, seq - 1)
                self._resent += 1

    def _free(self) -> None:
        while (sent := self._sent.get(self._reach + 1)) is not None and sent.state is State.TAKEN:
            self._reach += 1
            if self._reach > self._epoch.acked_seq:
                batch = self._buffer.get(self._reach)
                self._epoch.acked_seq = self._reach
                self._epoch.acked_samples += batch.samples if batch else 0
        first, _ = self._buffer.range()
        up_to = min(self._reach, self.watermark or 0)
        if up_to >= first:
            self._buffer.free(up_to)
            for seq in range(first, up_to + 1):
                self._sent.pop(seq, None)
            self._epoch.freed_seq = up_to
