"""The database that a command works on: that of the system which runs here, or the one of `--dsn`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from cncmon_standalone import state
from cncmon_standalone.embedded.database import ERRORS as DATABASE_ERRORS
from cncmon_standalone.errors import StandaloneError


@asynccontextmanager
async def connected(
    data: Path | None, dsn: str | None, *, command_timeout_s: float | None = 60
) -> AsyncIterator[asyncpg.Connection]:
    """Yield a connection.

    Raises:
        StandaloneError: nothing runs, or the database does not answer or has not our tables.
    """
    try:
        connection = await asyncpg.connect(
            dsn or state.find(data).database_dsn, timeout=5, command_timeout=command_timeout_s
        )
    except (*DATABASE_ERRORS, ValueError) as error:
        raise StandaloneError(f"the database does not answer: {error}. See: cncmon doctor") from error
    try:
        yield connection
    except asyncpg.UndefinedTableError as error:
        raise StandaloneError(f"the database has not our tables ({error}). See: cncmon db upgrade") from error
    except DATABASE_ERRORS as error:
        raise StandaloneError(f"the database: {error}") from error
    finally:
        await connection.close(timeout=2)
