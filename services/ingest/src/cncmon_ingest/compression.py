"""Compressing old chunks: TimescaleDB does it by itself where its community licence is in force."""

from typing import Final

import asyncpg

from cncmon_core import logs

log = logs.get(__name__)

ENABLE: Final = (
    "ALTER TABLE sensor_data SET (timescaledb.compress, timescaledb.compress_segmentby = 'machine_id', "
    "timescaledb.compress_orderby = 'time DESC')"
)
REMOVE: Final = "SELECT remove_compression_policy('sensor_data', if_exists => true)"
ADD: Final = "SELECT add_compression_policy('sensor_data', make_interval(days => $1), if_not_exists => true)"
CURRENT: Final = (
    "SELECT (config ->> 'compress_after')::interval = make_interval(days => $1) FROM timescaledb_information.jobs "
    "WHERE proc_name = 'policy_compression' AND hypertable_name = 'sensor_data'"
)


async def unavailable(connection: asyncpg.Connection) -> str | None:
    """Return in one sentence why this server can't compress, or None where it can."""
    if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')"):
        return "plain PostgreSQL has no compression of chunks; TimescaleDB (community licence) has"
    licence = await connection.fetchval("SELECT current_setting('timescaledb.license', true)")
    if licence != "timescale":
        return f"TimescaleDB runs under the licence {licence!r}, which has no compression; the community licence has"
    return None


async def ensure(connection: asyncpg.Connection, after_days: int) -> None:
    """Have chunks compressed that are older than so many days; 0: none. Where that can't be had, the log says why.

    Raises:
        asyncpg.PostgresError
    """
    reason = await unavailable(connection)
    if reason:
        log.info("chunks are not compressed", reason=reason)
        return
    try:
        if after_days and await connection.fetchval(CURRENT, after_days):
            return
        await connection.execute(REMOVE)
        if after_days:
            await connection.execute(ENABLE)
            await connection.execute(ADD, after_days)
    except asyncpg.InsufficientPrivilegeError as error:
        log.warning("chunks are not compressed", reason=f"{error}: it takes the owner of the table")
        return
    log.info("chunks are compressed", after_days=after_days)
