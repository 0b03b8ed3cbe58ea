"""The leader: one worker at a time computes watermarks from the ledger, prunes it, and tells the edges.

Leadership is a PostgreSQL advisory lock of a session: it ends with the connection, so a dead leader is followed at
once.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Final

import asyncpg
from nats.aio.client import Client
from nats.js import JetStreamContext

from cncmon_core import logs, names
from cncmon_ingest import forks, metrics
from cncmon_ingest.abandoned import Abandoned, enter_freed
from cncmon_ingest.advance import advance
from cncmon_ingest.connection import connect
from cncmon_ingest.edges import Edges
from cncmon_ingest.errors import DATABASE_ERRORS, ForeignError, OutageError, translate
from cncmon_ingest.generation import Generation
from cncmon_ingest.reread import Rereading
from cncmon_ingest.settings import IngestSettings
from cncmon_ingest.stream_position import StreamPosition, committed_position, stream_state
from cncmon_ingest.sweep import sweep
from cncmon_ingest.watermark_documents import WatermarkDocuments

log = logs.get(__name__)

LOCK_KEY = 0x636E636D02
"""Advisory lock of the leader: "cncm" and 2."""

CHECK_MS = 1000
"""Between two comparisons of database and mirror while nothing changes."""

IDLE_MS_MAX = 30_000
"""The database ends a leader's session that has said nothing for so long."""


FORKED_LATELY: Final = timedelta(minutes=10)
"""Edges of forks found since then are looked at in every round: nothing of theirs need move for them to be told."""


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

    async def session(self, client: Client) -> None:
        """Lead whenever the lock can be had; wait and try again where the database can't be used."""
        refused = ""
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
                reason = str(first if isinstance(first, OutageError) else translate(first))
                metrics.DATABASE_REFUSED.set(isinstance(first, ForeignError))
                if not isinstance(first, ForeignError):
                    log.info("leadership ended", reason=reason)
                elif reason != refused:
                    refused = reason
                    log.error("this database does not lead", reason=reason)
            finally:
                metrics.LEADER.set(0)
                metrics.EDGE_CLONES.clear()
                connection.terminate()
            await asyncio.sleep(1)

    async def _with(self, connection: asyncpg.Connection, client: Client) -> None:
        while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", LOCK_KEY):
            metrics.DATABASE_REFUSED.set(0)
            await asyncio.sleep(1)
        # A leader that is frozen, or whose node is gone, must not keep the others from leading.
        await connection.execute(f"SET idle_session_timeout = {IDLE_MS_MAX}")
        metrics.LEADER.set(1)
        log.info("leading: this worker computes the watermarks")
        async with leading(self._settings, connection, client) as rounds:
            while True:
                await rounds.next(time.monotonic())
                await asyncio.sleep(self._settings.leader_interval_ms / 1000)


@contextlib.asynccontextmanager
async def leading(settings: IngestSettings, connection: asyncpg.Connection, client: Client) -> "AsyncIterator[Rounds]":
    """Do what a leader does before its first round, and beside its rounds.

    Raises:
        asyncpg.PostgresError, OutageError: leadership ends; in an ExceptionGroup where it ends beside the rounds.
    """
    js = client.jetstream(timeout=10)
    edges = Edges()
    bucket = await js.key_value(names.KV_WATERMARK)
    generation = Generation(connection, js, bucket, adopts=settings.adopt_database)
    # Before anything is told or purged: the database may not be what it was.
    await generation.settle()
    metrics.DATABASE_REFUSED.set(0)
    async with asyncio.TaskGroup() as group:
        listening = group.create_task(edges.listen(js))
        rereading = Rereading(settings, connection, client, group)
        await rereading.begin()
        rounds = Rounds(settings, connection, js, edges, generation, rereading)
        await rounds.begin()
        yield rounds
        listening.cancel()
        rereading.cancel()


class Rounds:
    """What a leader does again and again. Made once for each time that it leads."""

    def __init__(
        self,
        settings: IngestSettings,
        connection: asyncpg.Connection,
        js: JetStreamContext,
        edges: Edges,
        generation: Generation,
        rereading: Rereading,
    ) -> None:
        self._settings = settings
        self._connection = connection
        self._js = js
        self._edges = edges
        self._generation = generation
        self._rereading = rereading
        self._sweeps, self._writes = _Interval(settings.sweep_interval_ms), _Interval(settings.edges_interval_ms)
        self._checks = _Interval(CHECK_MS)
        self._recorded: StreamPosition | None = None
        self._abandoned = Abandoned(settings.abandon_grace_s)

    async def begin(self) -> None:
        """Look up what does not change while this leader leads."""
        self._documents = WatermarkDocuments(
            self._connection,
            await self._js.key_value(names.KV_WATERMARK),
            self._settings.stream_bytes_per_edge_max,
        )
        self._stream_created, _ = await stream_state(self._js)

    async def next(self, now_s: float) -> None:
        """Do what is due at a moment of the monotonic clock.

        Raises:
            asyncpg.PostgresError, OutageError: leadership ends.
        """
        connection, js, rereading = self._connection, self._js, self._rereading
        # The floor first: all that it covers was committed before, so the watermarks read after it can't lack any.
        place = await rereading.place(js, await committed_position(js, self._stream_created))
        changed = await advance(connection)
        if self._writes.due(now_s) or self._edges.behind:
            await self._edges.write(connection, now_s)
        if changed or place != self._recorded:
            # Before edges are told: they free what is in the database, so an older copy of it must be noticed.
            await self._generation.record(place)
            self._recorded = place
        elif self._checks.due(now_s):
            await self._generation.check()
        if self._sweeps.due(now_s):
            # Before anything is purged: another database may lead by now.
            await self._generation.check()
            if await self._generation.begin_if_asked():
                await rereading.begin()
                return
            changed |= await sweep(connection, js, self._settings, place, self._abandoned)
            if not rereading.under_way:
                changed |= await enter_freed(connection)
            self._documents.forget()
        await self._documents.write(changed | await forks.edges_since(connection, FORKED_LATELY), place)
