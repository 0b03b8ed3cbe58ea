"""What an error means for the caller (rule B7): data are refused for three classes of SQLSTATE alone."""

import asyncio
import socket

import asyncpg
import pytest

from cncmon_ingest.errors import DATABASE_ERRORS, OutageError, RefusedError, RetryError, speaks_of_data, translate


def violation(constraint: str | None) -> asyncpg.PostgresError:
    error = asyncpg.CheckViolationError("no partition of relation found for row")
    error.constraint_name = constraint
    return error


OF_DATA = [
    asyncpg.NumericValueOutOfRangeError("22003"),
    asyncpg.UntranslatableCharacterError("22P05"),
    asyncpg.NotNullViolationError("23502"),
    asyncpg.UniqueViolationError("23505"),
    asyncpg.ProgramLimitExceededError("54000"),
    asyncpg.StatementTooComplexError("54001"),
    violation("no_cold"),
]
OF_OTHERS = [
    asyncpg.DeadlockDetectedError("40P01"),
    asyncpg.SerializationError("40001"),
    asyncpg.LockNotAvailableError("55P03"),
]
OF_THE_SERVER = [
    asyncpg.DiskFullError("53100"),
    asyncpg.OutOfMemoryError("53200"),
    asyncpg.TooManyConnectionsError("53300"),
    asyncpg.ConfigurationLimitExceededError("53400"),
    asyncpg.ReadOnlySQLTransactionError("25006"),
    asyncpg.IdleInTransactionSessionTimeoutError("25P03"),
    asyncpg.InFailedSQLTransactionError("25P02"),
    asyncpg.InsufficientPrivilegeError("42501"),
    asyncpg.UndefinedTableError("42P01"),
    asyncpg.QueryCanceledError("57014"),
    asyncpg.AdminShutdownError("57P01"),
    asyncpg.CannotConnectNowError("57P03"),
    asyncpg.PostgresIOError("58030"),
    asyncpg.InternalServerError("XX000"),
    asyncpg.DataCorruptedError("XX001"),
]
WITHOUT_SQLSTATE = [
    asyncpg.InterfaceError("connection is closed"),
    asyncpg.InternalClientError("unexpected message"),
    ConnectionResetError("reset by peer"),
    socket.gaierror("name or service not known"),
    TimeoutError(),
    EOFError("the server has gone"),
    asyncio.IncompleteReadError(b"", 4),
]


def name(error: Exception) -> str:
    return type(error).__name__


@pytest.mark.parametrize("error", OF_DATA, ids=name)
def test_delivery_b7_what_speaks_of_the_data_is_refused(error: asyncpg.PostgresError) -> None:
    found = translate(error)
    assert isinstance(found, RefusedError)
    assert found.sqlstate == error.sqlstate
    assert speaks_of_data(error)


@pytest.mark.parametrize("error", OF_OTHERS, ids=name)
def test_delivery_b7_what_was_lost_against_another_is_tried_again(error: Exception) -> None:
    assert isinstance(translate(error), RetryError)
    assert not speaks_of_data(error)


@pytest.mark.parametrize("error", [*OF_THE_SERVER, *WITHOUT_SQLSTATE], ids=name)
def test_delivery_b7_all_else_is_an_outage_and_holds_what_is_in_hand(error: Exception) -> None:
    """Above all what has no SQLSTATE: a database that was killed says nothing of the batch that was being sent."""
    assert isinstance(error, DATABASE_ERRORS)
    found = translate(error)
    assert isinstance(found, OutageError), type(found)
    assert str(found).strip(), "says why"
    assert not speaks_of_data(error)


def test_delivery_b7_a_partition_that_was_dropped_meanwhile_is_no_fault_of_the_rows() -> None:
    """23514 without a constraint's name is what PostgreSQL answers to a row without a partition."""
    assert isinstance(translate(violation(None)), RetryError)
    assert isinstance(translate(violation("")), RetryError)
