"""The connection pool: bounded in number and time, read-only, and back by itself when the database is back."""

import asyncio
from typing import Any, Final

import asyncpg

from cncmon_api import metrics
from cncmon_api.errors import DatabaseDownError, QueryTooSlowError, TooBusyError
from cncmon_api.settings import ApiSettings
from cncmon_core import logs

log = logs.get(__name__)

CLIENT_GRACE_S: Final = 2.0
"""How much longer than the database itself we wait for a query: then the connection is dead, not slow."""

_BROKEN: Final = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.exceptions.OperatorInterventionError,
)
"""The connection is of no use any more, the next one may be."""

_UNUSABLE: Final[dict[type[Exception], str]] = {
    asyncpg.InvalidAuthorizationSpecificationError: "it refuses our user or password: check CNCMON_API_DATABASE_DSN",
    asyncpg.InvalidCatalogNameError: "the database named in CNCMON_API_DATABASE_DSN does not exist",
    asyncpg.UndefinedTableError: "its tables are not there yet: run `cncmon-ingest bootstrap`",
    asyncpg.UndefinedFunctionError: "its tables are of another version: run `cncmon-ingest bootstrap`",
    asyncpg.UndefinedColumnError: "its tables are of another version: run `cncmon-ingest bootstrap`",
    asyncpg.InsufficientPrivilegeError: "our user may not read its tables: grant SELECT",
    asyncpg.exceptions.InsufficientResourcesError: "it is out of connections, memory or disk",
}


async def _leave_as_is(_connection: Any) -> None:
    """Replace asyncpg's reset: our sessions only read and hold nothing, and it costs a round trip."""


class Database:
    """Runs queries; remembers whether the last one could be run at all."""

    def __init__(self, settings: ApiSettings, connections_max: int) -> None:
        self._settings = settings
        self._connections_max = connections_max
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._said = "not asked yet"

    @property
    def trouble(self) -> str | None:
        """One sentence on what is wrong, or None: the check for readiness."""
        return self._said or None

    async def open(self) -> None:
        """Make the pool; connects to nothing yet, so that the API starts without its database."""
        settings = self._settings
        self._pool = await asyncpg.create_pool(
            settings.database_dsn,
            min_size=0,
            max_size=self._connections_max,
            timeout=settings.database_timeout_ms / 1000,
            reset=_leave_as_is,
            server_settings={
                "application_name": "cncmon-api",
                "default_transaction_read_only": "on",
                "statement_timeout": str(settings.statement_timeout_ms),
                "timezone": "UTC",
                "jit": "off",  # compiling costs more than any of these queries
            },
        )

    async def close(self) -> None:
        """Close all connections, those in use by force."""
        if self._pool is None:
            return
        try:
            async with asyncio.timeout(CLIENT_GRACE_S):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def fetch(self, sql: str, *args: Any) -> list[asyncpg.Record]:
        """Return the rows of one statement.

        Raises:
            DatabaseDownError: it can't be reached or used; the sentence says why and what to do.
            QueryTooSlowError: it took longer than `statement_timeout_ms`.
            TooBusyError: every connection was in use for `database_timeout_ms`.
        """
        for last_try in (False, True):
            try:
                rows = await self._fetch_once(sql, args)
            except (QueryTooSlowError, TooBusyError):
                raise
            except asyncpg.exceptions.QueryCanceledError as error:
                self._note_up()
                limit_s = self._settings.statement_timeout_ms / 1000
                raise QueryTooSlowError(
                    f"The database ended the query after {limit_s:g} s. Ask for a shorter range or fewer fields."
                ) from error
            except _BROKEN as error:
                if isinstance(error, asyncpg.exceptions.ClientConfigurationError):
                    raise self._down("CNCMON_API_DATABASE_DSN is no PostgreSQL URL that can be used", error) from error
                if isinstance(error, ValueError):
                    raise  # an argument that does not fit its type: our own fault
                # A connection that died while it lay in the pool says nothing about the database: try a new one.
                if self._pool is not None:
                    await self._pool.expire_connections()
                if last_try or isinstance(error, OSError):
                    raise self._down(_why(error), error) from error
            except tuple(_UNUSABLE) as error:
                said = next(_UNUSABLE[kind] for kind in _UNUSABLE if isinstance(error, kind))
                raise self._down(said, error) from error
            else:
                self._note_up()
                return rows
        raise AssertionError("unreachable: the last try returns or raises")

    async def _fetch_once(self, sql: str, args: tuple[Any, ...]) -> list[asyncpg.Record]:
        pool = self._pool
        if pool is None:
            raise self._down("the pool is not open", None)
        wait_s = self._settings.database_timeout_ms / 1000
        try:
            connection = await pool.acquire(timeout=wait_s)
        except TimeoutError as error:
            if pool.get_idle_size() == 0 and pool.get_size() == pool.get_max_size():
                raise TooBusyError(f"No database connection became free within {wait_s:g} s. Try again.") from error
            raise self._down(f"it does not answer within {wait_s:g} s", error) from error
        try:
            async with asyncio.timeout(self._settings.statement_timeout_ms / 1000 + CLIENT_GRACE_S):
                return list(await connection.fetch(sql, *args))
        except BaseException as error:
            # asyncpg would ask the server to cancel, over a new connection and without a time limit (#1326).
            if isinstance(error, TimeoutError | asyncio.CancelledError):
                connection.terminate()
            if isinstance(error, TimeoutError):
                await pool.expire_connections()
                raise self._down("it has stopped answering", error) from error
            raise
        finally:
            await pool.release(connection, timeout=CLIENT_GRACE_S)

    def _note_up(self) -> None:
        metrics.DATABASE_UP.set(1)
        if self._said:
            log.info("the database answers", before=self._said)
            self._said = ""

    def _down(self, why: str, error: BaseException | None) -> DatabaseDownError:
        """Return the exception to raise; what the driver said goes to the log, not to callers: it may name hosts."""
        metrics.DATABASE_UP.set(0)
        detail = f"The database is not available: {why}. This service tries again by itself."
        if self._said != detail:
            log.warning("the database is not available", why=why, error=repr(error))
            self._said = detail
        return DatabaseDownError(detail)


def _why(error: BaseException) -> str:
    if isinstance(error, asyncpg.exceptions.OperatorInterventionError):
        return "it is starting, stopping or recovering"
    return "it can't be reached"
