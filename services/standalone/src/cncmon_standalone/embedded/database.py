"""Our database in the embedded PostgreSQL: initdb makes the server's own ones only."""

import asyncpg

from cncmon_standalone.embedded.postgres import DATABASE

_TIMEOUT_S = 3.0

ERRORS = (OSError, TimeoutError, EOFError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What asyncpg raises when a server doesn't answer or is killed in the middle of an answer."""


async def ensure(dsn: str) -> str | None:
    """Make the database if it isn't there; return None, or in one sentence why it can't be used yet."""
    try:
        connection = await asyncpg.connect(dsn.rsplit("/", 1)[0] + "/postgres", timeout=_TIMEOUT_S)
        try:
            if await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE) is None:
                await connection.execute(f"CREATE DATABASE {DATABASE}")
        finally:
            await connection.close()
    except asyncpg.DuplicateDatabaseError:
        return None
    except ERRORS as error:
        return str(error) or type(error).__name__
    return None
