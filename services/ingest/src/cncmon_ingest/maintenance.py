"""Keeping what is stored in order: rollups and states, retention, partitions ahead, compression.

By one worker at a time, as the leader is: another follows as soon as its session with the database is gone. On a
connection of its own, so that a round never keeps the edges waiting for their watermarks.
"""

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, Never

import asyncpg

from cncmon_core import logs
from cncmon_ingest import compression, dead_letters, dirty, ledger, metrics, retention, rows, steps
from cncmon_ingest.connection import connect
from cncmon_ingest.errors import DATABASE_ERRORS, OutageError, translate
from cncmon_ingest.partitions import ensure_partition
from cncmon_ingest.rollups import Rollups
from cncmon_ingest.settings import IngestSettings
from cncmon_ingest.steps import MORE, Step

log = logs.get(__name__)

LOCK_KEY: Final = 0x636E636D03
"""Advisory lock of the one who maintains: "cncm" and 3."""

IDLE_MS_MAX: Final = 30_000
STATEMENT_S_MAX: Final = 120.0
"""Far over what the largest round takes. The server's limit: it ends the statement, and the connection stays usable."""
ANSWER_S_MAX: Final = STATEMENT_S_MAX + 10
"""For a server that does not answer at all."""

AHEAD_DAYS: Final = 7
AHEAD_INTERVAL_S: Final = 600.0
COMPRESSION_INTERVAL_S: Final = 3600.0
RESTORED_INTERVAL_S: Final = 600.0
UNMARKED_INTERVAL_S: Final = 10.0
LATE: Final = timedelta(hours=1)
"""So much older than its storing an unmarked sample is taken to be at most; `cncmon db recompute` is for more."""


class Maintainer:
    """Tries to be the one for as long as it runs. to_do: what it maintains; all there is by default."""

    def __init__(self, settings: IngestSettings, to_do: Sequence[Step] | None = None) -> None:
        self._settings = settings
        # Not made for each connection: a step that broke the last one must not run first on the next.
        self._steps = steps_of(settings) if to_do is None else to_do

    async def run(self) -> Never:
        """Maintain whenever the lock can be had; wait and try again where the database can't be used."""
        while True:
            try:
                connection = await connect(self._settings.database_dsn, ANSWER_S_MAX)
            except OutageError:
                await asyncio.sleep(1)
                continue
            try:
                await self._with(connection)
            except (*DATABASE_ERRORS, RuntimeError) as error:
                # RuntimeError: how uvloop says that the connection was reset.
                log.warning("maintenance is interrupted", reason=str(translate(error)))
            finally:
                metrics.MAINTAINER.set(0)
                connection.terminate()
            await asyncio.sleep(1)

    async def _with(self, connection: asyncpg.Connection) -> None:
        while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", LOCK_KEY):  # noqa: ASYNC110 its end is an event of the server's
            await asyncio.sleep(1)
        await connection.execute(f"SET idle_session_timeout = {IDLE_MS_MAX}")
        await connection.execute(f"SET statement_timeout = {int(STATEMENT_S_MAX * 1000)}")
        metrics.MAINTAINER.set(1)
        log.info("maintaining: this worker computes rollups and keeps retention")
        await steps.run(connection, self._steps)


def steps_of(settings: IngestSettings) -> list[Step]:
    """Return what there is to maintain, in the order in which it is done where all is due."""

    async def compress(connection: asyncpg.Connection) -> float:
        await compression.ensure(connection, settings.compress_after_days)
        return COMPRESSION_INTERVAL_S

    async def forget_restored(connection: asyncpg.Connection) -> float:
        deleted = await ledger.forget_restored(connection, timedelta(seconds=settings.stream_age_s_max))
        return RESTORED_INTERVAL_S if deleted < ledger.FORGET_ROWS * ledger.FORGET_STATEMENTS else MORE

    async def expire_letters(connection: asyncpg.Connection) -> float:
        if not settings.retention_dead_letters_days:
            return retention.INTERVAL_S
        expired = await dead_letters.expire(connection, settings.retention_dead_letters_days)
        return retention.INTERVAL_S if expired < dead_letters.EXPIRE_ROWS_MAX else MORE

    async def count_marks(connection: asyncpg.Connection) -> float:
        metrics.ROLLUP_LAG.set(await connection.fetchval(_LAG))
        return settings.rollup_interval_ms / 1000

    return [
        Step("partitions_ahead", make_partitions_ahead),
        Step("rollup_marks", count_marks),
        Step("rollups", _Turns(settings).next),
        Step("unmarked", mark_for_others),
        Step("restored", forget_restored),
        *retention.steps(settings),
        Step("retention_dead_letters", expire_letters),
        Step("compression", compress),
    ]


class _Turns:
    """Rounds of computing rollups in turns: each is about the marks that there were when it began.

    Under much load marks of one bucket come many a second. Taken as they come, each would have all of that bucket
    computed again; within a turn they are one.
    """

    def __init__(self, settings: IngestSettings) -> None:
        self._share = settings.rollup_share
        self._interval_s = settings.rollup_interval_ms / 1000
        self._rollups = Rollups(timedelta(milliseconds=settings.stale_after_ms))
        self._last: int | None = None
        self._began_s = 0.0

    async def next(self, connection: asyncpg.Connection) -> float:
        """Do a round, and return how long to wait for the next, in seconds."""
        if not self._share:
            return self._interval_s
        began_s = time.monotonic()
        # A backlog of days takes many intervals: what comes meanwhile is newer and goes first.
        if self._last is None or began_s - self._began_s >= self._interval_s:
            self._last = await connection.fetchval("SELECT max(id) FROM dirty_ranges WHERE failure IS NULL")
            self._began_s = began_s
        if self._last is None:
            return self._interval_s
        done = await self._rollups.catch_up(connection, self._last)
        ended_s = time.monotonic()
        # Storing goes first: it has the same processors.
        pause_s = (ended_s - began_s) * (1 / self._share - 1)
        if done.left:
            return max(0.01, pause_s)
        self._last = None
        return max(0.01, pause_s, self._began_s + self._interval_s - ended_s)


_LAG: Final = "SELECT count(*) FROM (SELECT FROM dirty_ranges WHERE failure IS NULL LIMIT 100000) AS waiting"


async def mark_for_others(connection: asyncpg.Connection) -> float:
    """Mark what workers of a version without marks have stored, once none of them is left."""
    others = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name = 'cncmon-ingest')"
    )
    since = await connection.fetchval("SELECT unmarked_since FROM delivery")
    if others and since is None:
        await connection.execute("UPDATE delivery SET unmarked_since = now()")
    elif since is not None and not others:
        async with connection.transaction():
            now: datetime = await connection.fetchval("SELECT clock_timestamp()")
            marks = await dirty.mark_hours(connection, since - LATE, now + LATE)
            await connection.execute("UPDATE delivery SET unmarked_since = NULL")
        log.info("what workers of the version before have stored is computed again", marks=marks)
    return UNMARKED_INTERVAL_S


async def make_partitions_ahead(connection: asyncpg.Connection) -> float:
    """Make the partitions of samples that the coming days need."""
    now: datetime = await connection.fetchval("SELECT now()")
    for day in range(AHEAD_DAYS + 1):
        await ensure_partition(connection, rows.TABLE, now + timedelta(days=day))
    return AHEAD_INTERVAL_S
