"""Publishes batches to JetStream and listens for the watermark, for as long as a NATS connection lasts.

Two lanes: live batches at once, the backlog beside them at the pace that is given. Each has its own room in flight, so
that a backlog of days delays no live batch by more than the server takes for it.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC
from functools import partial
from typing import Final

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import PubAck
from prometheus_client import Counter, Gauge, Histogram

from cncmon_agent.accepted_log import AcceptedLog
from cncmon_agent.batch import Batch
from cncmon_agent.batcher import Batcher
from cncmon_agent.deliveries import Deliveries
from cncmon_agent.delivery import Delivery
from cncmon_agent.pace import CommitLag, Latency, Pace
from cncmon_agent.puback import PubAcks
from cncmon_agent.settings import AgentSettings
from cncmon_agent.share import StreamShare
from cncmon_core import logs, names
from cncmon_core.frames import ENCODING_ZSTD, MAX_PAYLOAD_RESERVE_BYTES
from cncmon_core.identity import Kind, subject_of
from cncmon_core.watermark import decode_watermark

log = logs.get(__name__)

PUBLISHED = Counter("cncmon_edge_batches_published", "Batches acknowledged by the stream.", ["lane"])
PUBLISH_ERRORS = Counter("cncmon_edge_publish_errors", "Publishes refused or not acknowledged in time.")
RESENT = Gauge("cncmon_edge_batches_resent", "Batches sent again because the stream had lost them.")
PUBACK_SECONDS = Histogram(
    "cncmon_edge_puback_seconds",
    "Time from publishing a batch to its acknowledgement.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)

WATCH_S = 0.5
"""How often batches are looked through for those that the stream lost, and for acknowledgements that do not come."""

PATIENCE = 4.0
"""Acknowledgements may take this many times as long as they took lately before a batch is published again."""

PATIENCE_S_MAX = 60.0

SHARE_S: Final = 0.05
"""How often it is looked whether the share of the stream has room again; the watermark is told five times a second."""

QUIET_S = 0.05
"""An acknowledgement that is out for less says nothing yet."""

Task = Callable[[Client], Awaitable[None]]


@dataclass(eq=False, slots=True)
class _Flight:
    """A batch that is published and not acknowledged."""

    delivery: Delivery
    seq: int
    kind: Kind
    lane: "_Lane"
    sent_s: float
    size: int


class _Lane:
    """What a lane may have in flight."""

    def __init__(self, name: str, in_flight_max: int, *, paced: bool) -> None:
        self.paced = paced
        self.published = PUBLISHED.labels(name)
        self.room = asyncio.Semaphore(in_flight_max)
        self.waiting = asyncio.Event()
        self.turned_s = time.monotonic()


class Publisher:
    """Carries batches from the buffers to the stream. `session` runs once for each NATS connection."""

    def __init__(
        self,
        settings: AgentSettings,
        batcher: Batcher,
        deliveries: Deliveries,
        record: AcceptedLog | None,
        held_back: Callable[[Batch], bool],
    ) -> None:
        """held_back: whether a batch may not be published yet."""
        self._settings = settings
        self._batcher = batcher
        self._deliveries = deliveries
        self._record = record
        self._held_back = held_back
        self._lanes: list[_Lane] = []
        self._flights: dict[_Flight, asyncio.Future[PubAck]] = {}
        self._refused_until_s = 0.0
        self._stuck: str | None = None
        self._share = StreamShare()
        self.pace = Pace(settings.replay_bytes_per_s_max)
        self.latency = Latency()
        self.lag = CommitLag()
        self.stream_error: str | None = None
        self.progress = asyncio.Event()

    async def session(self, client: Client, *also: Task) -> None:
        """Publish until the connection is gone; run each of `also(client)` beside it."""
        self._batcher.limit(client.max_payload)
        self._stuck = None
        js = PubAcks(client, timeout=self._settings.ack_timeout_ms / 1000)
        await self._look_at_stream(js)
        # All that is collected goes to the backlog's side of the line.
        self._batcher.go(online=True)
        self._deliveries.connected()
        live = _Lane("live", self._settings.in_flight_max, paced=False)
        backlog = _Lane("backlog", self._settings.in_flight_max, paced=True)
        self._lanes = [live, backlog]
        self.latency.begin()
        self.lag.begin()
        self.pace.begin()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._live(client, js, live))
                group.create_task(self._backlog(client, js, backlog))
                group.create_task(self._follow_watermark(client, js))
                group.create_task(self._watch(backlog))
                group.create_task(self._await_stream(js))
                for task in also:
                    group.create_task(_awaited(task(client)))
        finally:
            self._batcher.go(online=False)
            flights, self._flights, self._lanes = list(self._flights.values()), {}, []
            for future in flights:
                future.cancel()
            self._deliveries.connection_lost()

    def ack_latency_s(self, now_s: float) -> float | None:
        """Return how long acknowledgements took since last asked, or the age of the oldest that is missing, if more."""
        mean_s = self.latency.take()
        oldest = next(iter(self._flights), None)
        age_s = now_s - oldest.sent_s if oldest is not None else 0.0
        return max(mean_s, age_s) if mean_s is not None else age_s if age_s > QUIET_S else None

    def still_s(self, now_s: float) -> float:
        """Return for how long the lane that is behind has not been seen to do its work; 0 without a connection."""
        return now_s - min((lane.turned_s for lane in self._lanes), default=now_s)

    def wake(self) -> None:
        """Something is there to be published."""
        for lane in self._lanes:
            lane.waiting.set()

    async def _look_at_stream(self, js: JetStreamContext) -> None:
        """Ask for the stream before the first publish: that none is there, or another one than was (rule A5)."""
        subject = names.samples_subject(self._settings.site, self._settings.edge)
        try:
            info = await js.stream_info(await js.find_stream_name_by_subject(subject))
        except nats.js.errors.NotFoundError:
            self._no_stream(subject)
            return
        except (nats.errors.Error, TimeoutError) as error:
            # No right to ask, or no JetStream there: the first publish will tell.
            log.info("can't ask which stream captures our subject", subject=subject, error=str(error))
            return
        if info.created is not None:
            last_seq = None if self._flights else info.state.last_seq
            self._deliveries.stream_seen(info.created.astimezone(UTC).isoformat(), last_seq)

    async def _await_stream(self, js: JetStreamContext) -> None:
        """Where nothing is there to be published, as on an edge without machines, no PubAck tells of the stream."""
        subject = names.samples_subject(self._settings.site, self._settings.edge)
        while self.stream_error is not None and self.stream_error != self._stuck:
            await asyncio.sleep(self._settings.refused_retry_ms / 1000)
            with contextlib.suppress(nats.js.errors.Error, nats.errors.Error, TimeoutError):
                await js.find_stream_name_by_subject(subject)
                self._accepts()

    def _accepts(self) -> None:
        # What was on its way when the share was full is taken; no more is.
        if self.stream_error != self._stuck and not self._share.full:
            log.info("NATS takes batches again", was=self.stream_error)
            self.stream_error = self._stuck

    def _no_stream(self, subject: str) -> None:
        said = (
            f"no stream captures {subject}: samples are kept here until one does. "
            f"Run `cncmon-ingest bootstrap` against this NATS server (it makes stream {names.STREAM})"
        )
        if self.stream_error != said:
            log.error(said, subject=subject)
        self.stream_error = said

    async def _live(self, client: Client, js: JetStreamContext, lane: _Lane) -> None:
        while True:
            await self._ready(lane)
            current = self._deliveries.current
            seq = current.next_live()
            if seq is None:
                await self._wait(lane, self._batcher.appended)
            else:
                await self._publish(client, js, lane, current, seq)

    async def _backlog(self, client: Client, js: JetStreamContext, lane: _Lane) -> None:
        while True:
            await self._ready(lane)
            # Before one is chosen: what is chosen counts as on its way, and no longer as backlog to set a pace for.
            await self.pace.ready()
            found = self._deliveries.next_backlog()
            if found is None:
                await self._wait(lane, lane.waiting)
            else:
                await self._publish(client, js, lane, *found)

    async def _ready(self, lane: _Lane) -> None:
        lane.turned_s = time.monotonic()
        pause_s = self._refused_until_s - lane.turned_s
        if pause_s > 0:
            await asyncio.sleep(pause_s)
        if self._share.full:
            await self._until_share_has_room(lane)
        await lane.room.acquire()

    async def _until_share_has_room(self, lane: _Lane) -> None:
        """Wait for the database: what is published beyond our share takes the room of others (rule D2)."""
        self._say(
            f"the stream holds this edge's share of what is not in the database yet ({self._share.bytes_max} bytes)"
        )
        while not self._share.has_room:
            lane.turned_s = time.monotonic()
            await asyncio.sleep(SHARE_S)
        self._accepts()

    async def _wait(self, lane: _Lane, event: asyncio.Event) -> None:
        lane.room.release()
        event.clear()
        await event.wait()

    async def _publish(self, client: Client, js: JetStreamContext, lane: _Lane, delivery: Delivery, seq: int) -> None:
        batch = delivery.buffer.get(seq)
        if batch is None:
            # Dropped at the cap, or damaged on the disk, since it was chosen: a gap, derived where that is done.
            delivery.gone(seq)
            lane.room.release()
            return
        if self._held_back(batch):
            delivery.postpone(seq)
            lane.room.release()
            return
        if len(batch.data) + MAX_PAYLOAD_RESERVE_BYTES > client.max_payload:
            # It stays in flight, and so out of the others' way, until there is another connection.
            lane.room.release()
            PUBLISH_ERRORS.inc()
            self._stuck = self.stream_error = _too_large(batch, client.max_payload)
            log.error("a batch is kept here until NATS can take it", reason=self._stuck)
            return
        if lane.paced:
            self.pace.spend(len(batch.data))
        name = batch.identity
        site, edge = self._settings.site, self._settings.edge
        flight = _Flight(delivery, seq, name.kind, lane, time.monotonic(), len(batch.data))
        future = await js.publish_async(
            subject_of(name.kind, site, edge), batch.data, headers=name.to_headers(site, edge, ENCODING_ZSTD)
        )
        self._flights[flight] = future
        future.add_done_callback(partial(self._answered, flight))

    def _answered(self, flight: _Flight, future: "asyncio.Future[PubAck]") -> None:
        """Write down what became of a batch."""
        if self._flights.pop(flight, None) is None:
            # Given up before: its time was out, or its connection is gone.
            return
        flight.lane.room.release()
        error = None if future.cancelled() else future.exception()
        if future.cancelled():
            self._failed(flight)
        elif isinstance(error, nats.js.errors.NoStreamResponseError):
            self._refuse(flight, None)
            self._no_stream(subject_of(flight.kind, self._settings.site, self._settings.edge))
        elif isinstance(error, nats.js.errors.APIError):
            self._refuse(flight, f"NATS refused a batch: {error.description or error} (error {error.err_code})")
        elif error is not None:
            self._refuse(flight, f"a batch was not taken: {str(error) or type(error).__name__}")
        else:
            self._taken(flight, future.result())

    def _taken(self, flight: _Flight, ack: PubAck) -> None:
        now_s = time.monotonic()
        PUBACK_SECONDS.observe(now_s - flight.sent_s)
        self.latency.observe(now_s - flight.sent_s)
        flight.lane.published.inc()
        self._accepts()
        if self._record is not None:
            self._record.acked(flight.delivery.epoch.epoch, flight.seq, ack.seq)
        self._deliveries.taken(flight.delivery, flight.seq, ack.seq, now_s, duplicate=bool(ack.duplicate))
        if ack.duplicate:
            self._refund(flight)
        else:
            self.lag.taken(ack.seq, now_s, self.pace.spent_bytes)
            self._share.taken(ack.seq, flight.size)
        self.progress.set()

    def _refund(self, flight: _Flight) -> None:
        if flight.lane.paced:
            self.pace.refund(flight.size)

    def _failed(self, flight: _Flight) -> None:
        PUBLISH_ERRORS.inc()
        self._refund(flight)
        flight.delivery.failed(flight.seq)
        self.wake()

    def _refuse(self, flight: _Flight, said: str | None) -> None:
        if said is not None:
            self._say(said)
        self._refused_until_s = time.monotonic() + self._settings.refused_retry_ms / 1000
        self._failed(flight)

    def _say(self, said: str) -> None:
        if said != self.stream_error:
            log.error("samples are kept here until NATS takes them", reason=said)
            self.stream_error = said

    async def _follow_watermark(self, client: Client, js: JetStreamContext) -> None:
        """Read our own key by direct get, and hear of changes on the bucket's republish subject (no `kv.watch`)."""
        site, edge = self._settings.site, self._settings.edge
        await client.subscribe(names.republish_subject(names.KV_WATERMARK, site, edge), cb=self._on_republished)
        stream, key = f"KV_{names.KV_WATERMARK}", f"$KV.{names.KV_WATERMARK}.{names.edge_key(site, edge)}"
        while True:
            try:
                message = await js.get_last_msg(stream, key, direct=True)
            except (nats.js.errors.Error, nats.errors.NoRespondersError, TimeoutError):
                # No bucket or no key yet: unknown, which is not zero.
                message = None
            if message is not None and message.data:
                self._on_watermark(message.data)
            if self._deliveries.unsure:
                await self._look_at_stream(js)
            await asyncio.sleep(self._settings.watermark_poll_ms / 1000)

    async def _on_republished(self, message: Msg) -> None:
        self._on_watermark(message.data)

    def _on_watermark(self, data: bytes) -> None:
        try:
            document = decode_watermark(data)
        except msgspec.MsgspecError as error:
            log.warning("watermark document can't be read", error=str(error))
            return
        self._deliveries.told(document)
        self._share.told(document.bytes_max, self._deliveries.stream_created, self._deliveries.floor)
        if (committed := self.lag.told(self._deliveries.floor, time.monotonic())) is not None:
            self.pace.committed(committed)
        if self.lag.empty:
            # Not every message is watched; when all of those are there, only what is in flight is still on its way.
            flying = sum(flight.size for flight in self._flights if flight.lane.paced)
            self.pace.committed(self.pace.spent_bytes - flying)
        self.wake()
        self.progress.set()

    async def _watch(self, backlog: _Lane) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            now_s = time.monotonic()
            self._deliveries.look_for_lost(now_s)
            self._deliveries.resume()
            RESENT.set(self._deliveries.resent)
            # A server that is slow for everybody must not get everything twice on top.
            patience_s = max(self._settings.ack_timeout_ms / 1000, PATIENCE * self.latency.recent_s)
            late_s = now_s - min(patience_s, PATIENCE_S_MAX)
            for flight, future in list(self._flights.items()):
                if flight.sent_s < late_s:
                    # Lost, as likely as slow: it must not make the next one wait ever longer.
                    self.latency.observe(min(now_s - flight.sent_s, self._settings.ack_timeout_ms / 1000))
                    future.cancel()
            if not self._deliveries.backlog():
                # Its pace is zero then, and it waits for another.
                backlog.turned_s = now_s
            # Who waits turns once all the same: that is what tells it from who is dead.
            self._batcher.appended.set()
            self.wake()


def _too_large(batch: Batch, max_payload: int) -> str:
    return (
        f"a batch of {len(batch.data)} bytes does not fit the server's max_payload of {max_payload} bytes "
        f"(less {MAX_PAYLOAD_RESERVE_BYTES} for headers): raise max_payload in its configuration"
    )


async def _awaited(work: Awaitable[None]) -> None:
    await work
