"""Reading the stream again beside the live flow, after the database went back (rule D3).

What the database has, the ledger knows; what it lost is stored again. Done once it has passed what was in the stream
when the generation began, and what workers may have acknowledged of a past life until all had heard of the new one.
"""

import asyncio
import contextlib
from datetime import datetime, timedelta
from typing import NamedTuple

import asyncpg
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext, api
from nats.js.errors import NotFoundError

from cncmon_core import logs, names
from cncmon_ingest import metrics
from cncmon_ingest.errors import FeedError
from cncmon_ingest.settings import IngestSettings
from cncmon_ingest.stream_position import StreamPosition
from cncmon_ingest.worker import Worker

log = logs.get(__name__)

AGAIN_S = 1.0


class Span(NamedTuple):
    """What a generation has to read again."""

    generation: int
    first: int
    last: int
    begun: datetime


async def span_of(connection: asyncpg.Connection) -> Span | None:
    """Return what is still to be read again, or None."""
    row = await connection.fetchrow(
        "SELECT generation, reread_from, reread_to, reread_begun FROM delivery "
        "WHERE reread_from IS NOT NULL AND reread_ended IS NULL"
    )
    return Span(*row) if row else None


class Reread:
    """A worker of its own on a durable of its own, `REREAD_<generation>`: what one leader began the next continues."""

    def __init__(self, settings: IngestSettings, span: Span) -> None:
        self._settings = settings
        self._span = span
        self._stop = asyncio.Event()

    @property
    def durable(self) -> str:
        """The consumer's name."""
        return f"{names.DURABLE_REREAD}{self._span.generation}"

    async def run(self, client: Client) -> None:
        """Read until told that it is done."""
        js = client.jetstream(timeout=10)
        await self._forget_others(js)
        while not self._stop.is_set():
            try:
                # Starting anew where the consumer or the stream was deleted meanwhile: the ledger knows the rest.
                await self._ensure_consumer(js)
                log.info("reading the stream again", **self._span._asdict())
                await Worker(self._settings, self._stop, self.durable).session(client)
            except (FeedError, nats.js.errors.Error, nats.errors.TimeoutError) as error:
                log.warning("reading the stream again is interrupted", reason=str(error) or type(error).__name__)
                await asyncio.sleep(AGAIN_S)

    async def _ensure_consumer(self, js: JetStreamContext) -> None:
        config = api.ConsumerConfig(
            durable_name=self.durable,
            ack_policy=api.AckPolicy.EXPLICIT,
            ack_wait=self._settings.ack_wait_ms / 1000,
            max_ack_pending=4 * self._settings.fetch_messages,
            deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=self._span.first,
        )
        try:
            await js.consumer_info(names.STREAM, self.durable)
        except NotFoundError:
            await js.add_consumer(names.STREAM, config)

    async def _forget_others(self, js: JetStreamContext) -> None:
        for info in await js.consumers_info(names.STREAM):
            if info.name.startswith(names.DURABLE_REREAD) and info.name != self.durable:
                await js.delete_consumer(names.STREAM, info.name)

    async def floor(self, js: JetStreamContext) -> int:
        """Return up to which stream sequence everything is read again, or was never lost."""
        try:
            info = await js.consumer_info(names.STREAM, self.durable)
        except NotFoundError:
            return self._span.first - 1
        metrics.REREAD_PENDING.set((info.num_pending or 0) + (info.num_ack_pending or 0))
        if not info.num_pending and not info.num_ack_pending:
            # Of what is gone from the stream there is nothing to be acknowledged.
            return max(self._span.last, info.delivered.stream_seq if info.delivered else 0)
        return max(self._span.first - 1, info.ack_floor.stream_seq if info.ack_floor else 0)

    async def end_if_done(self, connection: asyncpg.Connection, js: JetStreamContext, floor: int) -> bool:
        """Stop reading once all is read; return whether it is."""
        grace = timedelta(milliseconds=self._settings.ack_wait_ms)
        if floor < self._span.last:
            return False
        ended = await connection.fetchval(
            "UPDATE delivery SET reread_ended = now() WHERE generation = $1 AND now() - reread_begun > $2 "
            "RETURNING reread_ended",
            *(self._span.generation, grace),
        )
        if ended is None:
            return False
        self._stop.set()
        with contextlib.suppress(NotFoundError):
            await js.delete_consumer(names.STREAM, self.durable)
        metrics.REREAD_PENDING.set(0)
        log.info("the stream is read again", generation=self._span.generation, up_to=floor)
        return True


class Rereading:
    """The stream read again, where this generation has to: a task beside the leader's rounds."""

    def __init__(
        self, settings: IngestSettings, connection: asyncpg.Connection, client: Client, group: asyncio.TaskGroup
    ) -> None:
        self._settings = settings
        self._connection = connection
        self._client = client
        self._group = group
        self._reread: Reread | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def under_way(self) -> bool:
        """Whether it is not done yet."""
        return self._reread is not None

    def cancel(self) -> None:
        """Read no further here: the next leader goes on."""
        if self._task is not None:
            self._task.cancel()

    async def begin(self) -> None:
        """Read what is to be read again now, instead of what was read again until now."""
        self.cancel()
        if self._task is not None:
            await asyncio.wait([self._task])
        span = await span_of(self._connection)
        self._reread = Reread(self._settings, span) if span else None
        self._task = self._group.create_task(self._reread.run(self._client)) if self._reread else None

    async def place(self, js: JetStreamContext, live: StreamPosition) -> StreamPosition:
        """Return up to where everything is in the database: what the live flow passed in a past life may be missing."""
        if self._reread is None:
            return live
        floor = await self._reread.floor(js)
        if await self._reread.end_if_done(self._connection, js, floor):
            self._reread = None
            return live
        return live._replace(floor=min(live.floor, floor))
