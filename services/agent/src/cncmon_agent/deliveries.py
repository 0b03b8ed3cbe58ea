"""All epochs of this edge on their way to the database, and what is known of the stream that carries them."""

import time
from collections.abc import Iterator
from typing import Final

from prometheus_client import Counter

from cncmon_agent.buffer import Buffer
from cncmon_agent.delivery import Delivery
from cncmon_agent.epochs import Epoch
from cncmon_core import logs
from cncmon_core.watermark import Watermark

log = logs.get(__name__)

IMPOSSIBLE = Counter(
    "cncmon_edge_watermarks_impossible", "Watermarks above the last appended seq; what they name is not freed."
)

OLD_NEWS_S: Final = 60.0
"""A document that seems overtaken and is all that is told for so long is believed: the one before it was wrong."""


class Deliveries:
    """The current epoch and the earlier ones, oldest first; evidence against the stream concerns them all (rule A5)."""

    def __init__(self, buffer: Buffer, epoch: Epoch, duplicate_window_s: float, stream_created: str = "") -> None:
        """stream_created: when the stream was made that the epochs' acknowledgements came from; empty: unknown."""
        self.current = Delivery(buffer, epoch, duplicate_window_s)
        self.current.growing = True
        self.earlier: dict[int, Delivery] = {}
        self.stream_created = stream_created
        self._window_s = duplicate_window_s
        self._acked_in = stream_created
        self._asked = False
        self._past: set[str] = set()
        self._told: Watermark | None = None
        self._refused: tuple[Watermark, float] | None = None
        self.unsure = False
        """Whether the cloud side speaks of another stream than the server did: then the server is to be asked again."""
        self.floor = 0
        """Up to which stream sequence everything is in the database, as far as the cloud side has said."""
        self._highest_taken = epoch.acked_stream_seq

    def __iter__(self) -> Iterator[Delivery]:
        yield from self.earlier.values()
        yield self.current

    def add_earlier(self, buffer: Buffer, epoch: Epoch, *, whole: bool = True) -> Delivery:
        """Drain an earlier epoch's batches too; those of them that came first go first. whole: as of a `Delivery`."""
        # A power cut may have brought back what was freed.
        buffer.free(epoch.freed_seq)
        delivery = Delivery(buffer, epoch, self._window_s, time.monotonic(), whole=whole)
        if self._acked_in in ("", self.stream_created):
            self._highest_taken = max(self._highest_taken, epoch.acked_stream_seq)
        else:
            # The stream that took them was gone before they were read from the disk.
            delivery.lost_from(0)
        delivery.go_live()
        if self._told is not None:
            epoch.forked = epoch.forked or epoch.epoch in self._told.forked
            delivery.passed(self.floor)
            if epoch.epoch in self._told.epochs:
                self._tell(delivery, self._told.epochs[epoch.epoch])
        self.earlier[epoch.epoch] = delivery
        return delivery

    def begin(self, buffer: Buffer, epoch: Epoch) -> Delivery:
        """Publish what comes from now on as another epoch; the one before only drains."""
        ended = self.current
        ended.growing = False
        ended.go_live()
        self.earlier[ended.epoch.epoch] = ended
        self.current = Delivery(buffer, epoch, self._window_s)
        self.current.growing = True
        return self.current

    def forget(self, epoch: int) -> None:
        """An earlier epoch is delivered."""
        del self.earlier[epoch]

    @property
    def resent(self) -> int:
        """Batches that were published again because the stream had lost them."""
        return sum(delivery.resent for delivery in self)

    def unacknowledged(self) -> int:
        """How many batches the stream has not acknowledged."""
        return sum(delivery.unacknowledged() for delivery in self)

    def backlog(self) -> int:
        """How many batches wait in the backlog lane."""
        return sum(delivery.backlog() for delivery in self)

    def known(self, epoch: int) -> bool:
        """Whether the cloud side has spoken of an epoch: without that, nothing can be said of its gaps."""
        return self._told is not None and epoch in self._told.epochs

    @property
    def heard(self) -> bool:
        """Whether the cloud side has told a watermark at all since the start."""
        return self._told is not None

    def problems(self) -> list[str]:
        """Return what is wrong with the epochs here, for people."""
        said = []
        for delivery in self:
            epoch = delivery.epoch.epoch
            if delivery.epoch.forked:
                said.append(
                    f"epoch {epoch} is forked: another agent has this one's memory (a machine cloned or reverted while "
                    "it ran); give one of the two another edge name"
                )
            elif delivery.claimed is not None:
                said.append(
                    f"epoch {epoch}: the database claims to have seq {delivery.claimed}, which was not accepted here "
                    f"by then; nothing from seq {delivery.epoch.doubted_from} on is freed. Was this machine reverted?"
                )
        return said

    def connected(self) -> None:
        """A connection begins."""
        self.current.go_live()

    def connection_lost(self) -> None:
        """Nothing more will be heard of what is in flight."""
        for delivery in self:
            delivery.connection_lost()

    def resume(self) -> None:
        """Try what was postponed again."""
        for delivery in self:
            delivery.resume()

    def next_backlog(self) -> tuple[Delivery, int] | None:
        """Return what to publish next of the backlog of all epochs, oldest epoch first; None when there is none."""
        for delivery in self:
            if (seq := delivery.next_backlog()) is not None:
                return delivery, seq
        return None

    def taken(self, delivery: Delivery, seq: int, stream_seq: int, now_s: float, *, duplicate: bool) -> None:
        """The stream acknowledged a batch.

        A fresh message at or under a sequence that was given out before means that the stream went back: what it gave
        out from there on is lost.
        """
        if not duplicate and stream_seq <= self._highest_taken:
            self._went_back(stream_seq)
        self._highest_taken = max(self._highest_taken, stream_seq)
        if not duplicate and seq <= (delivery.watermark or 0):
            # New to the stream though the database has this seq: a copy of ours, or another agent's batch.
            delivery.careful = True
        delivery.taken(seq, stream_seq, now_s)

    def stream_seen(self, created: str, last_seq: int | None = None) -> None:
        """The server said of the stream when it was made and which sequence it gave out last.

        What it says counts for more than a document, which may be older, or speak of a backup's stream that is back.
        last_seq: only where nothing is in flight, or it may be behind what is acknowledged by the time it is heard.
        """
        self._asked = True
        self.unsure = False
        self._past.discard(created)
        self._made(created)
        if self._told is not None and self._told.stream_created == created:
            self._pass(self._told.committed_floor)
        if last_seq is not None and last_seq < self._highest_taken:
            self._went_back(last_seq + 1)
            self._highest_taken = last_seq

    def told(self, document: Watermark, now_s: float | None = None) -> None:
        """The cloud side said how far it is. A lower seq of the same generation is old news and ignored.

        That epochs are forked is never old news. now_s: monotonic; the present moment where it is not said.
        """
        for delivery in self:
            delivery.epoch.forked = delivery.epoch.forked or delivery.epoch.epoch in document.forked
        if self._is_overtaken(document, time.monotonic() if now_s is None else now_s):
            return
        self._told = document
        for delivery in list(self):
            if (seq := document.epochs.get(delivery.epoch.epoch)) is not None:
                self._tell(delivery, seq)
        if self._asked and document.stream_created != self.stream_created:
            # Written before the server was asked, or the stream was made anew since: that it can tell, and we can't. A
            # floor of another stream would be taken for evidence that everything in this one was passed.
            self.unsure = True
        elif document.stream_created >= self.stream_created and document.stream_created not in self._past:
            # RFC 3339 in UTC sorts by time: where the server may not be asked, the stream that was made last counts.
            self._made(document.stream_created)
            self._pass(document.committed_floor)

    @staticmethod
    def _tell(delivery: Delivery, watermark: int) -> None:
        before = delivery.claimed
        delivery.told(watermark)
        if delivery.claimed is None or before is not None:
            return
        IMPOSSIBLE.inc()
        log.error(
            "the database claims to have batches that were not accepted here: they are not freed",
            epoch=delivery.epoch.epoch,
            watermark=watermark,
            not_freed_from=delivery.epoch.doubted_from,
        )

    def _is_overtaken(self, document: Watermark, now_s: float) -> bool:
        before = self._told
        if before is None or document.generation > before.generation:
            self._refused = None
            return False
        if document.generation == before.generation and not self._is_old_news(document):
            self._refused = None
            return False
        if self._refused is None or self._refused[0] != document:
            self._refused = document, now_s
            return True
        return now_s - self._refused[1] < OLD_NEWS_S

    def _pass(self, floor: int) -> None:
        self.floor = floor
        for delivery in self:
            delivery.passed(floor)

    def _is_old_news(self, document: Watermark) -> bool:
        """Whether it was overtaken: a database of one generation does not go back. Not all epochs are always listed."""
        known = {delivery.epoch.epoch: delivery.watermark or 0 for delivery in self}
        return any(seq < known.get(epoch, 0) for epoch, seq in document.epochs.items())

    def look_for_lost(self, now_s: float) -> None:
        """Send again what the consumers have passed without storing it."""
        for delivery in self:
            delivery.look_for_lost(self.floor, now_s)

    def _made(self, created: str) -> None:
        """Notice another stream of the same name: what the one before had taken is gone."""
        if created == self.stream_created or created in self._past:
            return
        if self.stream_created:
            # Documents written before it was made still speak of the old one: that is no news.
            self._past.add(self.stream_created)
            self._highest_taken = 0
            self._pass(0)
            for delivery in self:
                delivery.lost_from(0)
        self.stream_created = created

    def _went_back(self, stream_seq: int) -> None:
        for delivery in self:
            delivery.lost_from(stream_seq)
        self._highest_taken = stream_seq
        self._pass(min(self.floor, stream_seq - 1))
