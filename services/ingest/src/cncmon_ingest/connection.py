"""Connections to the database, fit for the transaction; and in plain words why there is none."""

import socket
from urllib.parse import urlsplit

import asyncpg

from cncmon_ingest import durability
from cncmon_ingest.errors import DATABASE_ERRORS, NotConnectedError, translate

APPLICATION = "cncmon-ingest/marks"
"""How our sessions are told from those of versions that did not mark what they store (before migration 3)."""

DSN = "CNCMON_INGEST_DATABASE_DSN"
CONNECT_S_MAX = 10
LOCK_TIMEOUT_MS = 5_000
IDLE_IN_TRANSACTION_TIMEOUT_MS = 10_000
TRANSACTION_S_MAX = 20.0
"""Well under ack_wait's default, and far over what a transaction of the largest fetch takes."""


async def connect(
    dsn: str, statement_s_max: float | None = TRANSACTION_S_MAX, *, warn: bool = True
) -> asyncpg.Connection:
    """Return a connection fit for the transaction. statement_s_max: how long it waits for the answer to a statement.

    warn: whether to log that the server's settings can lose what was acknowledged, as services do. A command that
    people call prints its answer alone; for them `cncmon db check` says it.

    Raises:
        NotConnectedError: it can't be had, or the server would acknowledge commits that a crash can take back; says
            what to do.
    """
    try:
        connection: asyncpg.Connection = await asyncpg.connect(
            dsn,
            timeout=CONNECT_S_MAX,
            command_timeout=statement_s_max,
            server_settings={
                "application_name": APPLICATION,
                "lock_timeout": str(LOCK_TIMEOUT_MS),
                "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_TIMEOUT_MS),
                "default_transaction_isolation": "read committed",
                # Compiling the statements of a round takes a second, running them a third of one.
                "jit": "off",
                # A worker whose node vanished must not keep its locks for the two hours that are the system's default.
                "tcp_keepalives_idle": "5",
                "tcp_keepalives_interval": "5",
                "tcp_keepalives_count": "3",
                "tcp_user_timeout": "20000",
            },
        )
    except (*DATABASE_ERRORS, ValueError) as error:
        raise NotConnectedError(_why_not(dsn, error)) from error
    try:
        problem = await _problem_of(connection, warn)
    except BaseException as error:
        connection.terminate()
        if isinstance(error, DATABASE_ERRORS):
            raise NotConnectedError(str(translate(error))) from error
        raise
    if problem:
        connection.terminate()
        raise NotConnectedError(problem)
    return connection


def _why_not(dsn: str, error: Exception) -> str:
    """Return why there is no connection, and what to do; the URL's password is not in it."""
    try:
        url = urlsplit(dsn)
        host, port, user, name = url.hostname or "the database", url.port, url.username, url.path.lstrip("/")
    except ValueError:
        host, port, user, name = "", None, None, ""
    where = f"{host}:{port}" if port else host
    match error:
        case asyncpg.InvalidPasswordError() | asyncpg.InvalidAuthorizationSpecificationError():
            return f"{where} refuses the user {user!r}: correct user and password in {DSN} ({error})"
        case asyncpg.InvalidCatalogNameError():
            return f"{where} has no database {name!r}: create it, or correct its name in {DSN}"
        case ValueError():
            # What asyncpg says of a URL may hold the password.
            return f"{DSN} is no PostgreSQL URL: write it as postgresql://USER:PASSWORD@HOST:5432/DATABASE"
        case TimeoutError():
            return f"{where} does not answer within {CONNECT_S_MAX} s"
        case socket.gaierror():
            return f"the name {host!r} is not known here: correct the host in {DSN} ({error})"
        case ConnectionRefusedError():
            return f"nothing listens at {where}: start the database, or correct host and port in {DSN}"
        case _:
            return f"{where}: {translate(error)}"


async def _problem_of(connection: asyncpg.Connection, warn: bool) -> str | None:
    settings = await durability.values(connection)
    commit = settings["synchronous_commit"]
    if commit not in durability.DURABLE_COMMITS:
        return f"synchronous_commit is {commit!r}; it must be 'on', or acknowledged samples can be lost"
    if warn:
        durability.warn(settings)
    if await connection.fetchval("SELECT pg_is_in_recovery()"):
        return f"the server is read-only, a replica: {DSN} must lead to the primary"
    if await connection.fetchval("SHOW transaction_read_only") == "on":
        return "the server is read-only by its settings: set default_transaction_read_only = off"
    return None
