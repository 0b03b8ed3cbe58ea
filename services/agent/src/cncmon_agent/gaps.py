"""Declares what will never come, as events: derived again and again, until the database has it (rule A7)."""

import time
from collections.abc import Callable
from datetime import datetime
from itertools import islice
from typing import Final, NamedTuple

from cncmon_agent.batcher import Batcher
from cncmon_agent.deliveries import Deliveries
from cncmon_agent.delivery import Delivery, samples_before
from cncmon_agent.mover import Lost, Mover
from cncmon_core import logs
from cncmon_core.events import GAP, Event, encode_event

log = logs.get(__name__)

UNKNOWN_S: Final = 30.0
"""How long after connecting an epoch of which the cloud side says nothing is taken to be unknown there: five polls of
the watermark, and a leader's change.
"""

REPEAT_S: Final = 30.0
"""A declaration that is stored, while the watermark has not passed the gap, is made again after this long: the database
may have gone back.
"""

GAPS_MAX: Final = 1000
"""Declarations in one batch."""


class Key(NamedTuple):
    """Batches low..high of an epoch."""

    epoch: int
    low: int
    high: int


class Gap(NamedTuple):
    """Batches low..high of an epoch; samples: how many those held, base, end: of the epoch before and with them, where
    that can be told.
    """

    epoch: int
    low: int
    high: int
    samples: int | None
    reason: str
    base: int | None = None
    end: int | None = None


class GapTeller:
    """Compares what is held with what the database has, and says what is neither here nor there."""

    def __init__(
        self, deliveries: Deliveries, batcher: Batcher, mover: Mover | None, now: Callable[[], datetime]
    ) -> None:
        self._deliveries = deliveries
        self._batcher = batcher
        self._mover = mover
        self._now = now
        self._said: dict[Key, tuple[int, float]] = {}
        self._connected_s: float | None = None

    def go(self, *, online: bool) -> None:
        """A connection begins or ends: without one nothing is said, since nothing is known."""
        self._connected_s = time.monotonic() if online else None

    def begin(self) -> None:
        """A new epoch begins: what was said under the one before is to be said again."""
        self._said.clear()

    def step(self, *, earlier: bool = True) -> None:
        """Declare what is to be declared now. earlier: of what earlier starts left, too."""
        if self._connected_s is None:
            return
        self._forget_unheard()
        lost = self._lost()
        of = self._deliveries if earlier else [self._deliveries.current]
        asked = [delivery for delivery in of if self._asked(delivery)]
        ranges = [(delivery, Key(delivery.epoch.epoch, *found)) for delivery in asked for found in delivery.missing()]
        missing = {key for _, key in ranges} | {Key(*one) for one in lost}
        self._said = {key: said for key, said in self._said.items() if key in missing}
        # What they held is read from the disk, so only of those to be declared now: there may be many thousands.
        due = [gap_of(delivery, *key[1:]) for delivery, key in islice(filter(self._due_of, ranges), GAPS_MAX)]
        due += [Gap(*one, one.last - one.first + 1, "unstamped_lost") for one in lost if self._due(Key(*one))]
        due = due[:GAPS_MAX]
        if not due:
            return
        seq = self._batcher.add_events([self._event(gap) for gap in due])
        if seq is None:
            return
        for gap in due:
            log.warning("samples are missing: declared as a gap", **gap._asdict())
            self._said[Key(*gap[:3])] = seq, time.monotonic()

    def _forget_unheard(self) -> None:
        """What was said in a batch that is missing itself is to be said again."""
        unheard = self._deliveries.current.unheard({seq for seq, _ in self._said.values()})
        if unheard:
            self._said = {key: said for key, said in self._said.items() if said[0] not in unheard}

    def _asked(self, delivery: Delivery) -> bool:
        """Whether enough is known to speak of an epoch's gaps: a missing watermark is unknown, not zero."""
        if self._deliveries.known(delivery.epoch.epoch):
            return True
        return self._connected_s is not None and time.monotonic() - self._connected_s > UNKNOWN_S

    def _due_of(self, found: tuple[Delivery, Key]) -> bool:
        return self._due(found[1])

    def _due(self, key: Key) -> bool:
        said = self._said.get(key)
        if said is None:
            return True
        seq, at_s = said
        return (self._deliveries.current.watermark or 0) >= seq and time.monotonic() - at_s > REPEAT_S

    def _lost(self) -> list[Lost]:
        """Return what was lost before it had a time; what is declared in the database is not lost any more."""
        if self._mover is None:
            return []
        for lost in self._mover.lost():
            said = self._said.get(Key(*lost))
            if said is not None and (self._deliveries.current.watermark or 0) >= said[0]:
                self._mover.declared(lost)
        return self._mover.lost()

    def _event(self, gap: Gap) -> bytes:
        data = {
            "epoch": gap.epoch,
            "seq_from": gap.low,
            "seq_to": gap.high,
            "samples": gap.samples,
            "reason": gap.reason,
            "base": gap.base,
            "end": gap.end,
        }
        return encode_event(Event(GAP, self._now(), data=data))


def gaps_of(delivery: Delivery) -> list[Gap]:
    """Return the gaps of one epoch."""
    return [gap_of(delivery, low, high) for low, high in delivery.missing()]


def gap_of(delivery: Delivery, low: int, high: int) -> Gap:
    """Return what is to be said of missing batches; their samples as the cumulative counts around them tell of."""
    first, end = delivery.buffer.range()
    before, after = (samples_before(delivery.buffer, delivery.epoch, seq) for seq in (low, high + 1))
    samples = None if before is None or after is None else max(0, after - before)
    reason = "dropped" if high < first else "lost" if low >= end else "damaged"
    return Gap(delivery.epoch.epoch, low, high, samples, reason, before, after)
