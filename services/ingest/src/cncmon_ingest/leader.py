"""The leader: one worker at a time computes watermarks from the ledger, prunes it, and tells the edges.

Leadership is a PostgreSQL advisory lock of a session: it ends with the connection, so a dead leader is followed at
once.
"""

import asyncio
import contextlib
import math
import time
from datetime import UTC, datetime
from typing import NamedTuple, Never

import asyncpg
import msgspec
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from cncmon_core import logs, names
from cncmon_core.names import Origin
from cncmon_core.watermark import Watermark, decode_watermark, encode_watermark
from cncmon_ingest import metrics
from cncmon_ingest.abandoned import Abandoned, enter_freed
from cncmon_ingest.advance import advance
from cncmon_ingest.care import care_for_stream
from cncmon_ingest.connection import connect
from cncmon_ingest.edges import Edges
from cncmon_ingest.errors import DATABASE_ERRORS, OutageError, translate
from cncmon_ingest.generation import Generation
from cncmon_ingest.reread import Reread, span_of
from cncmon_ingest.settings import IngestSettings

log = logs.get(__name__)

LOCK_KEY = 0x636E636D02
"""Advisory lock of the leader: "cncm" and 2."""

MIRROR_MS = 1000
"""Between two looks at whether KV still says what the database is."""

IDLE_MS_MAX = 30_000
"""The database ends a leader's session that has said nothing for so long."""

EPOCHS_TOLD_MAX = 300
"""Epochs in one edge's document: an agent asks for those on its disk, and there are few."""

_EPOCHS = """
SELECT site, edge, epoch, seq FROM (
    SELECT *, row_number() OVER (PARTITION BY site, edge ORDER BY advanced DESC) AS place FROM watermarks
    WHERE (site, edge) IN (SELECT * FROM unnest($1::text[], $2::text[]))
) newest WHERE place <= $3
"""

_ACTIVE = "SELECT DISTINCT site, edge FROM watermarks WHERE advanced > now() - INTERVAL '1 day' AND edge <> ''"


class _Place(NamedTuple):
    stream_created: datetime
    floor: int


class _Interval:
    """Says when something is due that need not be done in every round."""

    def __init__(self, interval_ms: int) -> None:
        self._interval_s = interval_ms / 1000
        self._last_s = -math.inf

    def due(self, now_s: float) -> bool:
        """Return whether it is, and count from now if so."""
        if now_s - self._last_s < self._interval_s:
            return False
        self._last_s = now_s
        return True


class Leader:
    """Tries to lead for as long as a NATS session lasts."""

    def __init__(self, settings: IngestSettings) -> None:
        self._settings = settings
        self._stream_created = datetime.min.replace(tzinfo=UTC)

    async def session(self, client: Client) -> None:
        """Lead whenever the lock can be had; wait and try again where the database can't be used."""
        while True:
            try:
                connection = await connect(self._settings.database_dsn)
            except OutageError:
                await asyncio.sleep(1)
                continue
            try:
                await self._with(connection, client)
            except* (*DATABASE_ERRORS, OutageError) as errors:
                first = errors.exceptions[0]
                log.info("leadership ended", reason=str(first if isinstance(first, OutageError) else translate(first)))
            finally:
                metrics.LEADER.set(0)
                metrics.EDGE_CLONES.clear()
                connection.terminate()
            await asyncio.sleep(1)

    async def _with(self, connection: asyncpg.Connection, client: Client) -> None:
        while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", LOCK_KEY):  # noqa: ASYNC110 its end is an event of the server's
            await asyncio.sleep(1)
        # A leader that is frozen, or whose node is gone, must not keep the others from leading.
        await connection.execute(f"SET idle_session_timeout = {IDLE_MS_MAX}")
        metrics.LEADER.set(1)
        log.info("leading: this worker computes the watermarks")
        js = client.jetstream(timeout=10)
        edges = Edges()
        bucket = await js.key_value(names.KV_WATERMARK)
        generation = Generation(connection, js, bucket)
        # Before anything is told or purged: the database may not be what it was.
        await generation.settle()
        async with asyncio.TaskGroup() as group:
            group.create_task(edges.listen(js))
            rereading = _Rereading(self._settings, connection, client, group)
            await rereading.begin()
            await self._lead(connection, js, edges, generation, rereading)

    async def _lead(
        self,
        connection: asyncpg.Connection,
        js: JetStreamContext,
        edges: Edges,
        generation: Generation,
        rereading: "_Rereading",
    ) -> Never:
        teller = _Teller(connection, await js.key_value(names.KV_WATERMARK))
        self._stream_created = await _created(js)
        settings = self._settings
        sweeps, writes = _Interval(settings.sweep_interval_ms), _Interval(settings.edges_interval_ms)
        mirrors = _Interval(MIRROR_MS)
        abandoned = Abandoned(settings.abandon_grace_s)
        while True:
            # The floor first: all that it covers was committed before, so the watermarks read after it can't lack any.
            place = await rereading.place(js, await _place(js, self._stream_created))
            changed = await advance(connection)
            now_s = time.monotonic()
            if writes.due(now_s):
                await edges.write(connection, now_s)
            if mirrors.due(now_s):
                await generation.mirror()
            if sweeps.due(now_s):
                await generation.write_floor(*place)
                if await generation.begin_if_asked():
                    await rereading.begin()
                    continue
                changed |= await self._sweep(connection, js, place, abandoned)
                if not rereading.under_way:
                    changed |= await enter_freed(connection)
                teller.forget()
            await teller.tell(changed, place)
            await asyncio.sleep(settings.leader_interval_ms / 1000)

    async def _sweep(
        self, connection: asyncpg.Connection, js: JetStreamContext, place: _Place, abandoned: Abandoned
    ) -> set[Origin]:
        """Do what need not be done in every round; return the edges whose documents are to be looked at again."""
        stream = await js.stream_info(names.STREAM)
        # Header-less messages that the stream no longer holds can't be delivered again.
        await connection.execute(
            "DELETE FROM ledger_unidentified WHERE stream = $1 AND (stream_seq < $2 OR stream_created <> $3)",
            *(names.STREAM, stream.state.first_seq, place.stream_created),
        )
        await connection.execute(
            "DELETE FROM suspects WHERE stream_seq < $1 OR stream_created <> $2",
            *(stream.state.first_seq, place.stream_created),
        )
        await care_for_stream(js, self._settings, place.floor)
        await abandoned.look(connection, stream.state.last_seq, place.floor)
        return {Origin(row["site"], row["edge"]) for row in await connection.fetch(_ACTIVE)}


class _Rereading:
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

    async def begin(self) -> None:
        """Read what is to be read again now, instead of what was read again until now."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        span = await span_of(self._connection)
        self._reread = Reread(self._settings, span) if span else None
        self._task = self._group.create_task(self._reread.run(self._client)) if self._reread else None

    async def place(self, js: JetStreamContext, live: _Place) -> _Place:
        """Return up to where everything is in the database: what the live flow passed in a past life may be missing."""
        if self._reread is None:
            return live
        floor = await self._reread.floor(js)
        if await self._reread.end_if_done(self._connection, js, floor):
            self._reread = None
            return live
        return live._replace(floor=min(live.floor, floor))


async def _created(js: JetStreamContext) -> datetime:
    created = (await js.stream_info(names.STREAM)).created
    if created is None:
        raise AssertionError("the server always says when a stream was made")
    return created


async def _place(js: JetStreamContext, stream_created: datetime) -> _Place:
    """Return how far the consumers are: acknowledged means committed, since nothing is acknowledged before."""
    info = await js.consumer_info(names.STREAM, names.DURABLE)
    floor = info.ack_floor.stream_seq if info.ack_floor else 0
    metrics.PENDING.set(info.num_pending or 0)
    metrics.ACK_PENDING.set(info.num_ack_pending or 0)
    metrics.FLOOR.set(floor)
    return _Place(stream_created, floor)


class _Teller:
    """Writes the watermark documents, each by compare-and-set against the revision it has seen."""

    def __init__(self, connection: asyncpg.Connection, bucket: KeyValue) -> None:
        self._connection = connection
        self._bucket = bucket
        self._told: dict[str, tuple[int, Watermark | None]] = {}

    def forget(self) -> None:
        """Look at the bucket again next time: somebody may have deleted it."""
        self._told.clear()

    async def tell(self, edges: set[Origin], place: _Place) -> None:
        """Bring the documents of some edges up to date."""
        edges = {origin for origin in edges if origin.site and origin.edge}
        if not edges:
            return
        generation = await self._connection.fetchval("SELECT generation FROM delivery")
        documents: dict[Origin, dict[int, int]] = {}
        for row in await self._connection.fetch(
            _EPOCHS, [origin.site for origin in edges], [origin.edge for origin in edges], EPOCHS_TOLD_MAX
        ):
            documents.setdefault(Origin(row["site"], row["edge"]), {})[row["epoch"]] = row["seq"]
        created = place.stream_created.astimezone(UTC).isoformat()
        for number, (origin, epochs) in enumerate(documents.items(), 1):
            if number % 100 == 0:
                # Many edges take long: the database must not take this session for a frozen one.
                await self._connection.execute("SELECT 1")
            await self._put(origin, Watermark(generation, created, place.floor, epochs))

    async def _put(self, origin: Origin, document: Watermark) -> None:
        key = names.edge_key(*origin)
        revision, told = self._told.pop(key) if key in self._told else await self._read(key)
        if told != document:
            # A conflict: another leader wrote, having read the database since. The next round looks again.
            with contextlib.suppress(KeyWrongLastSequenceError):
                revision = await self._bucket.update(key, encode_watermark(document), last=revision)
                self._told[key] = revision, document
        else:
            self._told[key] = revision, document

    async def _read(self, key: str) -> tuple[int, Watermark | None]:
        try:
            entry = await self._bucket.get(key)
        except KeyNotFoundError as error:
            # A deleted key leaves a marker, whose revision the next write must name.
            return (error.entry.revision or 0) if error.entry else 0, None
        try:
            return entry.revision or 0, decode_watermark(entry.value or b"")
        except msgspec.MsgspecError as error:
            log.warning("a watermark document can't be read and is written anew", key=key, error=str(error))
            return entry.revision or 0, None
