"""Publishes the buffer to JetStream and listens for the watermark, for as long as a NATS connection lasts."""

import asyncio
import time
from collections.abc import Awaitable, Callable

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
from cncmon_agent.buffer import Buffer
from cncmon_agent.delivery import Delivery
from cncmon_agent.settings import AgentSettings
from cncmon_core import logs, names
from cncmon_core.frames import ENCODING_ZSTD, MAX_PAYLOAD_RESERVE_BYTES
from cncmon_core.identity import subject_of
from cncmon_core.watermark import decode_watermark

log = logs.get(__name__)

PUBLISHED = Counter("cncmon_edge_batches_published", "Batches acknowledged by the stream.")
PUBLISH_ERRORS = Counter("cncmon_edge_publish_errors", "Publishes refused or not acknowledged in time.")
RESENT = Gauge("cncmon_edge_batches_resent", "Batches sent again because the stream had lost them.")
PUBACK_SECONDS = Histogram(
    "cncmon_edge_puback_seconds",
    "Time from publishing a batch to its acknowledgement.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)

WATCH_S = 0.5
"""How often batches are looked through for those that the stream lost."""

Task = Callable[[Client], Awaitable[None]]


class Publisher:
    """Carries batches from the buffer to the stream. `session` runs once for each NATS connection."""

    def __init__(
        self, settings: AgentSettings, buffer: Buffer, batcher: Batcher, delivery: Delivery, record: AcceptedLog | None
    ) -> None:
        self._settings = settings
        self._buffer = buffer
        self._batcher = batcher
        self._delivery = delivery
        self._record = record
        self._room = asyncio.Semaphore(settings.in_flight_max)
        self._refused_until_s = 0.0
        self._stuck: str | None = None
        self.stream_error: str | None = None
        self.progress = asyncio.Event()

    async def session(self, client: Client, also: Task) -> None:
        """Publish until the connection is gone; run `also(client)` beside it."""
        self._batcher.limit(client.max_payload)
        self._stuck = None
        self._batcher.go(online=True)
        try:
            js = client.jetstream(timeout=self._settings.ack_timeout_ms / 1000)
            await self._look_for_stream(js)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._publish(client, js, group))
                group.create_task(self._follow_watermark(client, js))
                group.create_task(self._watch())
                group.create_task(_awaited(also(client)))
        finally:
            self._batcher.go(online=False)
            self._delivery.connection_lost()
            self._room = asyncio.Semaphore(self._settings.in_flight_max)

    async def _look_for_stream(self, js: JetStreamContext) -> None:
        subject = names.samples_subject(self._settings.site, self._settings.edge)
        try:
            await js.find_stream_name_by_subject(subject)
        except nats.js.errors.NotFoundError:
            self._no_stream(subject)
        except (nats.errors.Error, TimeoutError) as error:
            # No right to ask, or no JetStream there: the first publish will tell.
            log.info("can't ask which stream captures our subject", subject=subject, error=str(error))

    def _no_stream(self, subject: str) -> None:
        said = (
            f"no stream captures {subject}: samples are kept here until one does. "
            f"Run `cncmon-ingest bootstrap` against this NATS server (it makes stream {names.STREAM})"
        )
        if self.stream_error != said:
            log.error(said, subject=subject)
        self.stream_error = said

    async def _publish(self, client: Client, js: JetStreamContext, group: asyncio.TaskGroup) -> None:
        while True:
            pause_s = self._refused_until_s - time.monotonic()
            if pause_s > 0:
                await asyncio.sleep(pause_s)
            await self._room.acquire()
            seq = self._delivery.next_to_publish()
            if seq is None:
                self._room.release()
                self._batcher.appended.clear()
                await self._batcher.appended.wait()
                continue
            batch = self._buffer.get(seq)
            if batch is None:
                raise AssertionError(f"seq {seq} is to be published and not in the buffer")
            if len(batch.data) + MAX_PAYLOAD_RESERVE_BYTES > client.max_payload:
                # It stays in flight, and so out of the others' way, until there is another connection.
                self._room.release()
                PUBLISH_ERRORS.inc()
                self._stuck = self.stream_error = _too_large(batch, client.max_payload)
                log.error("samples are kept here for now", reason=self._stuck)
                continue
            name = batch.identity
            site, edge = self._settings.site, self._settings.edge
            future = await js.publish_async(
                subject_of(name.kind, site, edge), batch.data, headers=name.to_headers(site, edge, ENCODING_ZSTD)
            )
            group.create_task(self._acknowledged(batch, future))

    async def _acknowledged(self, batch: Batch, future: "asyncio.Future[PubAck]") -> None:
        """Wait for one PubAck and write down what became of the batch."""
        started_s = time.monotonic()
        seq, room = batch.identity.seq, self._room
        try:
            ack = await asyncio.wait_for(future, self._settings.ack_timeout_ms / 1000)
        except nats.js.errors.NoStreamResponseError:
            self._refuse(seq, None)
            self._no_stream(subject_of(batch.identity.kind, self._settings.site, self._settings.edge))
        except nats.js.errors.APIError as error:
            self._refuse(seq, f"NATS refused a batch: {error.description or error} (error {error.err_code})")
        except TimeoutError:
            PUBLISH_ERRORS.inc()
            self._delivery.failed(seq)
            self._batcher.appended.set()
        else:
            now_s = time.monotonic()
            PUBACK_SECONDS.observe(now_s - started_s)
            PUBLISHED.inc()
            if self.stream_error != self._stuck:
                log.info("NATS takes batches again", was=self.stream_error)
                self.stream_error = self._stuck
            if self._record is not None:
                self._record.acked(batch, ack.seq)
            self._delivery.taken(seq, ack.seq, now_s, duplicate=bool(ack.duplicate))
            self.progress.set()
        finally:
            room.release()

    def _refuse(self, seq: int, said: str | None) -> None:
        PUBLISH_ERRORS.inc()
        if said is not None and said != self.stream_error:
            log.error("samples are kept here for now", reason=said)
            self.stream_error = said
        self._refused_until_s = time.monotonic() + self._settings.refused_retry_ms / 1000
        self._delivery.failed(seq)
        self._batcher.appended.set()

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
            await asyncio.sleep(self._settings.watermark_poll_ms / 1000)

    async def _on_republished(self, message: Msg) -> None:
        self._on_watermark(message.data)

    def _on_watermark(self, data: bytes) -> None:
        try:
            document = decode_watermark(data)
        except msgspec.MsgspecError as error:
            log.warning("watermark document can't be read", error=str(error))
            return
        self._delivery.told(document)
        self._batcher.appended.set()
        self.progress.set()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            self._delivery.look_for_lost(time.monotonic())
            RESENT.set(self._delivery.resent)
            self._batcher.appended.set()


def _too_large(batch: Batch, max_payload: int) -> str:
    return (
        f"a batch of {len(batch.data)} bytes does not fit the server's max_payload of {max_payload} bytes "
        f"(less {MAX_PAYLOAD_RESERVE_BYTES} for headers): raise max_payload in its configuration"
    )


async def _awaited(work: Awaitable[None]) -> None:
    await work
