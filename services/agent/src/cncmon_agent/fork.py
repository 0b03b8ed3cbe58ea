"""A new epoch while the agent runs, once it has learned that another agent has its memory (rule A1).

Batches that are appended by then stay under the forked epoch and are delivered there. Those of before the fork are the
same on both sides, and ingest knows the second of them; under another epoch they would be stored twice. Those that
differ become dead letters of whichever agent comes second. Only what is appended from now on is certainly ours alone.
"""

import math
import time
from collections.abc import Awaitable, Callable
from typing import Final

from prometheus_client import Counter

from cncmon_agent.batcher import Batcher
from cncmon_agent.beats import Beats
from cncmon_agent.closings import Closings
from cncmon_agent.deliveries import Deliveries
from cncmon_agent.delivery import Delivery
from cncmon_agent.epochs import Epochs
from cncmon_agent.gaps import GapTeller
from cncmon_agent.mover import Mover
from cncmon_agent.storage import Storage
from cncmon_core import logs

log = logs.get(__name__)

PAUSE_S: Final = 60.0
"""Between two new epochs of one process at least: who names every epoch as forked must not fill the disk with them."""

FORKED = Counter("cncmon_edge_epochs_forked", "New epochs begun since another agent has this one's memory.")


class Fork:
    """Begins a new epoch where the current one is forked."""

    def __init__(
        self,
        epochs: Epochs,
        storage: Storage,
        batcher: Batcher,
        deliveries: Deliveries,
        mover: Mover,
        gaps: GapTeller,
        closings: Closings,
        beats: Beats,
        save: Callable[[], Awaitable[None]],
        pin: Callable[[Delivery], None],
    ) -> None:
        """save: write the epochs file where it changed. pin: tell a delivery what may not be freed."""
        self._epochs = epochs
        self._storage = storage
        self._batcher = batcher
        self._deliveries = deliveries
        self._mover = mover
        self._gaps = gaps
        self._closings = closings
        self._beats = beats
        self._save = save
        self._pin = pin
        self._begun_s = -math.inf

    async def step(self) -> None:
        """Begin a new epoch if there has to be one: first on disk, then in memory, all at once."""
        if not self._epochs.current.forked or time.monotonic() - self._begun_s < PAUSE_S:
            return
        # Synced before anything is published under it. What is appended meanwhile still belongs to the old one.
        self._epochs.prepare()
        await self._save()
        if self._epochs.changes() is None:
            self._begin()

    def _begin(self) -> None:
        self._begun_s = time.monotonic()
        ended = self._epochs.current
        if self._storage.spool is not None:
            _, end = self._storage.buffer.range()
            ended.last_seq, ended.last_samples = end - 1, self._batcher.samples
        epoch = self._epochs.begin()
        buffer = self._storage.begin(epoch.epoch)
        self._batcher.begin(epoch.epoch, buffer)
        self._pin(self._deliveries.begin(buffer, epoch))
        self._mover.begin(epoch.epoch)
        # What was said under the old epoch may not be heard: the twin's batch may stand in its place.
        self._gaps.begin()
        self._closings.begin()
        self._beats.renew()
        FORKED.inc()
        log.error(
            "another agent has this one's memory (a machine cloned or reverted while it ran): a new epoch is begun; "
            "give one of the two another edge name",
            forked=ended.epoch,
            epoch=epoch.epoch,
        )
