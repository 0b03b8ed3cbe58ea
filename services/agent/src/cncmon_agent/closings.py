"""Says of every earlier epoch that it will not grow, until the database has it (rule A1).

Said again where the batch that said it was not taken, or was dropped or damaged before it was delivered: the watermark
passes over such a batch, and is no sign then that anybody has heard.
"""

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
        self._begun = False

    def begin(self) -> None:
        """A new epoch begins: what was said under the one before is to be said again."""
        self._said.clear()

    def say(self) -> None:
        """Close every earlier epoch that is not closed yet, nor said to be; once all of them are recovered."""
        self._begun = True
        # A forked epoch is nobody's to close: the other agent may go on under it.
        due = [
            epoch for epoch in self._epochs.open if not (epoch.closed or epoch.forked) and epoch.epoch not in self._said
        ]
        if not due:
            return
        events = [
            encode_event(
                Event(
                    EPOCH_CLOSED,
                    self._now(),
                    data={"epoch": epoch.epoch, "last_seq": epoch.last_seq, "samples": epoch.counted},
                )
            )
            for epoch in due
        ]
        if (seq := self._batcher.add_events(events)) is not None:
            self._said |= {epoch.epoch: seq for epoch in due}

    def step(self) -> list[int]:
        """Note which closings are in the database; return the epochs that are done with, for their logs to go.

        Before the watermark can pass a batch that is missing, it has to be declared: to be called at least as often.
        """
        if not self._begun:
            return []
        current = self._deliveries.current
        unheard = current.unheard(set(self._said.values()))
        self._said = {epoch: seq for epoch, seq in self._said.items() if seq not in unheard}
        self.say()
        watermark = current.watermark or 0
        forgotten = []
        for epoch in list(self._epochs.open):
            if watermark >= self._said.get(epoch.epoch, watermark + 1):
                epoch.closed = True
            delivery = self._deliveries.earlier.get(epoch.epoch)
            if (epoch.closed or epoch.forked) and (delivery is None or delivery.done()):
                if delivery is not None:
                    self._deliveries.forget(epoch.epoch)
                self._epochs.forget(epoch.epoch)
                self._said.pop(epoch.epoch, None)
                forgotten.append(epoch.epoch)
        return forgotten
