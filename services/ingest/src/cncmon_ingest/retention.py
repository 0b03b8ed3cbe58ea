"""Retention: what is older than its table keeps it is given up, in parts that are bounded.

One chunk or partition a transaction: a transaction that drops a thousand takes more locks than a server has room for,
and the more there are to be dropped the less it can succeed.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

import asyncpg

from cncmon_core import logs
from cncmon_ingest import metrics
from cncmon_ingest.settings import IngestSettings
from cncmon_ingest.steps import MORE, Step

log = logs.get(__name__)

INTERVAL_S: Final = 600.0
GRACE_DAYS: Final = 1
"""Dropped so much later than samples are refused as too old: what was taken just before must find its day whole."""

PARTS_MAX: Final = 20
"""Chunks or partitions dropped in one turn, after which rollups have theirs; to find them takes as long as three."""
DELETE_ROWS_MAX: Final = 10_000
"""Rows deleted in one turn and statement, so that none holds locks for long."""

ROWS: Final = {
    "state_intervals": (
        "DELETE FROM state_intervals WHERE (machine_id, from_time) IN (SELECT machine_id, from_time "
        "FROM state_intervals WHERE to_time < $1 ORDER BY to_time LIMIT $2)"
    ),
    "edge_silences": (
        "DELETE FROM edge_silences WHERE ctid IN (SELECT ctid FROM edge_silences "
        "WHERE to_time < $1 ORDER BY to_time LIMIT $2)"
    ),
    "events": "DELETE FROM events WHERE ctid IN (SELECT ctid FROM events WHERE time < $1 ORDER BY time LIMIT $2)",
}
"""Tables that are small enough to lie in one piece."""


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
    # They tell why there is nothing in these.
    found["edge_silences"] = found["state_intervals"]
    return found


def steps(settings: IngestSettings) -> list[Step]:
    """Return one step for each table that does not keep everything."""
    return [Step(f"retention_{table}", _dropping(table, days)) for table, days in retention(settings).items() if days]


def _dropping(table: str, days: int) -> Callable[[asyncpg.Connection], Awaitable[float]]:
    async def work(connection: asyncpg.Connection) -> float:
        moment: datetime = await connection.fetchval("SELECT now() - make_interval(days => $1)", days + GRACE_DAYS)
        try:
            more = await (_delete(connection, table, moment) if table in ROWS else _drop(connection, table, moment))
        except asyncpg.LockNotAvailableError:
            # Somebody reads what is to go, for long: next time.
            log.info("retention has to wait: the table is in use", table=table)
            more = False
        return MORE if more else INTERVAL_S

    return work


async def _drop(connection: asyncpg.Connection, table: str, moment: datetime) -> bool:
    """Drop the oldest chunks or partitions that end at or before a moment; return whether there may be more."""
    parts = await connection.fetch("SELECT oldest_parts($1, $2, $3)", table, moment, PARTS_MAX)
    for (part,) in parts:
        # A transaction each: a thousand in one take more locks than a server has room for.
        dropped = await connection.fetchval("SELECT drop_part($1, $2, $3)", table, part, moment)
        metrics.DROPPED_CHUNKS.labels(table).inc(dropped)
        log.info("retention", table=table, dropped=part, older_than=moment.isoformat())
    return len(parts) == PARTS_MAX


async def _delete(connection: asyncpg.Connection, table: str, moment: datetime) -> bool:
    done: str = await connection.execute(ROWS[table], moment, DELETE_ROWS_MAX)
    return done == f"DELETE {DELETE_ROWS_MAX}"
