"""Connections: bounded in what they wait for, and what is said of a server that can lose what it acknowledged."""

import asyncpg
import pytest

from cncmon_ingest import durability, metrics
from cncmon_ingest.connection import IDLE_IN_TRANSACTION_TIMEOUT_MS, LOCK_TIMEOUT_MS, connect
from cncmon_ingest.errors import NotConnectedError, RetryError, translate
from testkit.waiting import until


async def test_delivery_b1_a_transaction_waits_for_no_lock_for_ever(
    postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """Another session's lock, which nobody lifts, ends in an error that is tried again."""
    ours = await connect(postgres_dsn, None)
    found = await ours.fetchval("SELECT setting FROM pg_settings WHERE name = 'lock_timeout'")
    assert found == str(LOCK_TIMEOUT_MS)
    async with database.transaction():
        await database.execute("LOCK TABLE watermarks IN SHARE ROW EXCLUSIVE MODE")
        # Not for its five seconds, but by the same setting.
        await ours.execute("SET lock_timeout = 1")
        with pytest.raises(asyncpg.LockNotAvailableError) as refused:
            await ours.execute("DELETE FROM watermarks")
        assert isinstance(translate(refused.value), RetryError)
    await ours.close()


async def test_delivery_b1_a_worker_that_stands_still_in_a_transaction_lets_its_locks_go(
    postgres_dsn: str, database: asyncpg.Connection
) -> None:
    ours = await connect(postgres_dsn)
    name = "idle_in_transaction_session_timeout"
    assert await ours.fetchval("SELECT setting FROM pg_settings WHERE name = $1", name) == str(
        IDLE_IN_TRANSACTION_TIMEOUT_MS
    )
    await ours.execute(f"SET {name} = 1")
    await ours.execute("BEGIN; LOCK TABLE watermarks IN SHARE ROW EXCLUSIVE MODE")
    # Whoever waits for it gets it.
    await database.execute("BEGIN; LOCK TABLE watermarks IN SHARE ROW EXCLUSIVE MODE; COMMIT")
    await until(ours.is_closed, what="the server ends the session that stands still")


async def test_a_server_that_does_not_wait_for_its_disk_is_warned_of(
    postgres_dsn: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests' server has fsync off: work goes on, the metric says so, and the log once for many connections."""
    monkeypatch.setattr(durability, "_warned", set())
    for _ in range(2):
        await (await connect(postgres_dsn)).close()
    assert metrics.UNSAFE_SETTINGS.labels("fsync")._value.get() == 1
    assert metrics.UNSAFE_SETTINGS.labels("full_page_writes")._value.get() == 0
    assert capsys.readouterr().out.count("set fsync = on") == 1


async def test_commits_that_a_crash_takes_back_are_refused(postgres_dsn: str, database: asyncpg.Connection) -> None:
    name = await database.fetchval("SELECT current_database()")
    for value in ("off", "local", "remote_write"):
        await database.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = {value}')
        with pytest.raises(NotConnectedError, match=rf"synchronous_commit is '{value}'; it must be 'on'"):
            await connect(postgres_dsn)
    await database.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = remote_apply')
    await (await connect(postgres_dsn)).close()
