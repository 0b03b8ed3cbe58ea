"""Keeping what is stored in order: rollups and states, retention, partitions ahead, compression.

By one worker at a time, as the leader is: another follows as soon as its session with the database is gone. On a
connection of its own, so that a round never keeps the edges waiting for their watermarks.
"""

import asyncio
import math
import time
from datetime import datetime, timedelta
from typing import Final, Never

import asyncpg

from cncmon_core import logs
from cncmon_ingest import compression, dead_letters, dirty, ledger, metrics
from cncmon_ingest.connection import connect
from cncmon_ingest.errors import DATABASE_ERRORS, OutageError, translate
from cncmon_ingest.rollups import Rollups
from cncmon_ingest.settings import IngestSettings

log = logs.get(__name__)

LOCK_KEY: Final = 0x636E636D03
"""Advisory lock of the one who maintains: "cncm" and 3."""

IDLE_MS_MAX: Final = 30_000
STATEMENT_S_MAX: Final = 120.0
"""Far over what the largest round takes."""

AHEAD_DAYS: Final = 7
CARE_INTERVAL_S: Final = 600.0
GRACE_DAYS: Final = 1
"""Dropped so much later than samples are refused as too old: what was taken just before must find its day whole."""

LOOK_INTERVAL_S: Final = 10.0
LATE: Final = timedelta(hours=1)
"""So much older than its storing an unmarked sample is taken to be at most; `cncmon db recompute` is for more."""

DELETE_ROWS: Final = 10_000
"""Deleted in one statement, so that none holds locks for long."""


class Maintainer:
    """Tries to be the one for as long as it runs."""

    def __init__(self, settings: IngestSettings) -> None:
        self._settings = settings

    async def run(self) -> Never:
        """Maintain whenever the lock can be had; wait and try again where the database can't be used."""
        while True:
            try:
                connection = await connect(self._settings.database_dsn, STATEMENT_S_MAX)
            except OutageError:
                await asyncio.sleep(1)
                continue
            try:
                await self._with(connection)
            except DATABASE_ERRORS as error:
                log.warning("maintenance is interrupted", reason=str(translate(error)))
            finally:
                metrics.MAINTAINER.set(0)
                connection.terminate()
            await asyncio.sleep(1)

    async def _with(self, connection: asyncpg.Connection) -> Never:
        while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", LOCK_KEY):  # noqa: ASYNC110 its end is an event of the server's
            await asyncio.sleep(1)
        await connection.execute(f"SET idle_session_timeout = {IDLE_MS_MAX}")
        metrics.MAINTAINER.set(1)
        log.info("maintaining: this worker computes rollups and keeps retention")
        await compression.ensure(connection, self._settings.compress_after_days)
        turns = _Turns(self._settings)
        cared_s = looked_s = -math.inf
        while True:
            if time.monotonic() - looked_s >= LOOK_INTERVAL_S:
                await mark_for_others(connection)
                looked_s = time.monotonic()
            if time.monotonic() - cared_s >= CARE_INTERVAL_S:
                await care(connection, self._settings)
                cared_s = time.monotonic()
            metrics.ROLLUP_LAG.set(await connection.fetchval(_LAG))
            await asyncio.sleep(await turns.next(connection))


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


async def mark_for_others(connection: asyncpg.Connection) -> None:
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


async def care(connection: asyncpg.Connection, settings: IngestSettings) -> None:
    """Make partitions ahead and give up what is older than its retention."""
    await connection.execute(
        "SELECT ensure_partition('sensor_data', now() + make_interval(hours => 24 * day)) "
        "FROM generate_series(0, $1::int) AS day",
        AHEAD_DAYS,
    )
    await ledger.forget_restored(connection, timedelta(seconds=settings.stream_age_s_max))
    if settings.retention_dead_letters_days:
        await dead_letters.expire(connection, settings.retention_dead_letters_days)
    for table, days in retention(settings).items():
        if days:
            await _drop_older(connection, table, days + GRACE_DAYS)


def retention(settings: IngestSettings) -> dict[str, int]:
    """Return how many days each table keeps; 0: all. What is computed from another is kept at least as long as that."""
    days = settings.retention_days
    found = {"sensor_data": days, "events": settings.retention_events_days}
    for table, own in (
        ("rollup_10s", settings.retention_10s_days),
        ("rollup_1min", settings.retention_1min_days),
        ("rollup_1h", settings.retention_1h_days),
    ):
        found[table] = days = max(days, own) if days and own else 0
    own = settings.retention_states_days
    found["state_intervals"] = max(found["rollup_10s"], own) if own and found["rollup_10s"] else 0
    return found


_ROWS: Final = {
    "state_intervals": (
        "DELETE FROM state_intervals WHERE (machine_id, from_time) IN (SELECT machine_id, from_time "
        "FROM state_intervals WHERE to_time < $1 ORDER BY to_time LIMIT $2)"
    ),
    "events": "DELETE FROM events WHERE ctid IN (SELECT ctid FROM events WHERE time < $1 ORDER BY time LIMIT $2)",
}
"""Tables that are small enough to lie in one piece."""


async def _drop_older(connection: asyncpg.Connection, table: str, days: int) -> None:
    moment: datetime = await connection.fetchval("SELECT now() - make_interval(days => $1)", days)
    try:
        if table not in _ROWS:
            dropped = await connection.fetchval("SELECT drop_older($1, $2)", table, moment)
            if dropped:
                metrics.DROPPED_CHUNKS.labels(table).inc(dropped)
                log.info("retention", table=table, dropped=dropped, older_than=moment.isoformat())
            return
        full = f"DELETE {DELETE_ROWS}"
        while await connection.execute(_ROWS[table], moment, DELETE_ROWS) == full:  # noqa: ASYNC110 leaves others room
            await asyncio.sleep(0.1)
    except asyncpg.LockNotAvailableError:
        # Somebody reads what is to go, for long: next time.
        log.info("retention has to wait: the table is in use", table=table)
