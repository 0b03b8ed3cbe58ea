"""Says of every earlier epoch that it will not grow, until the database has it (rule A1)."""

from collections.abc import Callable
from datetime import datetime

from cncmon_agent.batcher import Batcher
from cncmon_agent.deliveries import Deliveries
from cncmon_agent.epochs import Epochs
from cncmon_core.events import EPOCH_CLOSED, Event, encode_event


class Closings:
    """Closes what is recovered, and forgets what is closed and delivered."""

    def __init__(self, epochs: Epochs, deliveries: Deliveries, batcher: Batcher, now: Callable[[], datetime]) -> None:
        self._epochs = epochs
        self._deliveries = deliveries
        self._batcher = batcher
        self._now = now
        self._said: dict[int, int] = {}

    def say(self) -> None:
        """Close every earlier epoch that is not closed yet; once, when all of them are recovered."""
        due = [epoch for epoch in self._epochs.open if not epoch.closed]
        if not due:
            return
        events = [
            encode_event(
                Event(
                    EPOCH_CLOSED,
                    self._now(),
                    data={"epoch": epoch.epoch, "last_seq": epoch.last_seq, "samples": epoch.last_samples},
                )
            )
            for epoch in due
        ]
        if (seq := self._batcher.add_events(events)) is not None:
            self._said = {epoch.epoch: seq for epoch in due}

    def step(self) -> list[int]:
        """Note which closings are in the database; return the epochs that are done with, for their logs to go."""
        watermark = self._deliveries.current.watermark or 0
        forgotten = []
        for epoch in list(self._epochs.open):
            if watermark >= self._said.get(epoch.epoch, watermark + 1):
                epoch.closed = True
            delivery = self._deliveries.earlier.get(epoch.epoch)
            if epoch.closed and (delivery is None or delivery.done()):
                if delivery is not None:
                    self._deliveries.forget(epoch.epoch)
                self._epochs.forget(epoch.epoch)
                forgotten.append(epoch.epoch)
        return forgotten
