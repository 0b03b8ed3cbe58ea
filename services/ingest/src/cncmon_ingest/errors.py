"""The exceptions of ingest, by what the caller must do.

CncmonError
├── OutageError        the database can't be used now: hold what is in hand, ack nothing
│   └── NotConnectedError  this worker can't reach it: if others can, they may have what is in hand
│       └── ForeignError       it is not the stream's database: wait until somebody adopts it
├── RefusedError       the database refuses data: find which frame, dead-letter it, store the rest
├── RetryError         lost against another worker: try the same again at once
├── MigrationError     the schema can't be brought up to date: stop, say why
├── LateError          the isolated process did not answer in time: find out whether that is the message's fault
├── ExportError        a file is no export that can be read: tell, go on with the next
└── FeedError          the consumer or its stream is gone: begin a new session
"""

import asyncpg

from cncmon_core.errors import CncmonError


class OutageError(CncmonError):
    """The database can't be used now; says why."""


class NotConnectedError(OutageError):
    """No connection to the database can be had."""


class ForeignError(NotConnectedError):
    """The stream's samples went into another database; says what to do."""

    def __init__(self, why: str) -> None:
        super().__init__(f"this is not the stream's database: {why}. {ADOPT}")


ADOPT = "If it is to be from now on, run: cncmon db adopt"


class RefusedError(CncmonError):
    """The database refuses data: SQLSTATE class 22, 23 or 54."""

    def __init__(self, sqlstate: str, text: str) -> None:
        super().__init__(f"{sqlstate}: {text}")
        self.sqlstate = sqlstate


class RetryError(CncmonError):
    """Deadlock, serialization failure or lock time-out."""


class MigrationError(CncmonError):
    """The schema can't be brought up to date."""


class LateError(CncmonError):
    """The isolated process did not answer in time."""


class ExportError(CncmonError):
    """A file, or the rest of it, can't be imported; says why."""


class FeedError(CncmonError):
    """The consumer delivers nothing any more."""


def speaks_of_data(error: Exception) -> bool:
    """Whether the database refuses what it was given: SQLSTATE class 22, 23 or 54 (a limit that the data break)."""
    return isinstance(error, asyncpg.PostgresError) and (error.sqlstate or "")[:2] in ("22", "23", "54")


_CHECK_VIOLATION = "23514"
_RETRY = frozenset({"40P01", "40001", "55P03"})


_ADVICE = {
    "53100": "the database's disk is full: make room there; samples wait in the stream meanwhile",
    "53300": "the database has no connection left: raise its max_connections, or run fewer workers",
    "53400": "a limit of the database's settings is reached: raise it",
    "25006": "the database is read-only: it became a replica, or default_transaction_read_only was switched on",
    "42501": "the user lacks a right: cncmon db check names it",
    "42P01": "a table is missing: run cncmon-ingest bootstrap",
    "42703": "a column is missing: run cncmon-ingest bootstrap",
    "57P03": "the database starts or stops just now",
}
"""SQLSTATE → what to do, or what is going on (PostgreSQL manual, appendix A)."""


def translate(error: Exception) -> CncmonError:
    """Return what an asyncpg or socket error means for the caller (SQLSTATE: PostgreSQL manual, appendix A).

    Only classes 22, 23 and 54 speak of the data. Everything else, an error without SQLSTATE above all, is taken for an
    outage: holding a good batch costs time, dead-lettering it costs the data.
    """
    sqlstate = getattr(error, "sqlstate", None) or ""
    if sqlstate == _CHECK_VIOLATION and not getattr(error, "constraint_name", None):
        # Not about a row: the partition that it belongs to was dropped meanwhile.
        return RetryError(str(error))
    if speaks_of_data(error):
        return RefusedError(sqlstate, str(error))
    if sqlstate in _RETRY:
        return RetryError(str(error))
    said = str(error) or type(error).__name__
    if sqlstate in _ADVICE:
        return OutageError(f"{_ADVICE[sqlstate]} ({sqlstate} {said})")
    return OutageError(f"{sqlstate} {said}" if sqlstate else said)


DATABASE_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
    EOFError,
)
"""What an asyncpg call raises when it can't do its work; each is passed to `translate`."""
