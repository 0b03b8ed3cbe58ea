import asyncio
from datetime import timedelta

import asyncpg
import pytest

from cncmon_core.names import Origin
from cncmon_ingest import migrate
from cncmon_ingest.advance import advance
from cncmon_ingest.errors import MigrationError
from cncmon_ingest.reconcile import reconcile


async def test_migrating_twice_does_nothing(database: asyncpg.Connection) -> None:
    assert await migrate.version(database) == migrate.LATEST
    assert await migrate.migrate(database) == 0


async def test_two_at_once_migrate_once(database: asyncpg.Connection, postgres_dsn: str) -> None:
    await database.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    assert await migrate.version(database) == 0
    second = await asyncpg.connect(postgres_dsn)
    done = await asyncio.gather(migrate.migrate(database), migrate.migrate(second))
    await second.close()
    assert sorted(done) == [0, len(migrate.shipped())]


async def test_a_failing_migration_leaves_nothing(
    database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = migrate.Migration(migrate.LATEST + 1, "bad", "CREATE TABLE half (a int); SELECT 1 / 0")
    shipped = migrate.shipped()
    monkeypatch.setattr(migrate, "shipped", lambda: [*shipped, bad])
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate.migrate(database)
    assert await database.fetchval("SELECT to_regclass('half')") is None
    assert await migrate.version(database) == migrate.LATEST


async def test_a_database_of_before_goes_on(database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    await database.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    shipped = migrate.shipped()
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "shipped", lambda: shipped[:1])
        assert await migrate.migrate(database) == 1
    await database.execute(
        """
        INSERT INTO watermarks (epoch, site, edge, seq, batches_stored, samples_stored, closed_seq, closed_samples)
        VALUES (1, 'hall', 'e1', 5, 5, 51, 6, 60), (2, 'hall', 'e1', 0, 0, 0, NULL, NULL);
        INSERT INTO ledger (epoch, seq, sha256, stored, dead, disposition)
        VALUES (1, 6, '\\x00', 10, 0, 'stored'), (2, 1, '\\x00', 10, 0, 'stored')
        """
    )
    assert await migrate.migrate(database) == len(shipped) - 1
    assert await advance(database) == {Origin("hall", "e1")}
    rows = await database.fetch("SELECT seq, base, samples_stored FROM watermarks ORDER BY epoch")
    assert [tuple(row) for row in rows] == [(6, None, 61), (1, None, 10)]
    books = await reconcile(database, timedelta(0))
    assert books.balanced, "what nobody counted is not held against it"


async def test_a_newer_schema_is_refused(database: asyncpg.Connection) -> None:
    await database.execute("INSERT INTO schema_migrations (number, name, checksum) VALUES (9999, 'future', 'x')")
    with pytest.raises(MigrationError, match=r"9999.*use a newer version"):
        await migrate.migrate(database)


async def test_a_changed_migration_is_refused(database: asyncpg.Connection) -> None:
    await database.execute("UPDATE schema_migrations SET checksum = 'x' WHERE number = 1")
    with pytest.raises(MigrationError, match=r"migration 1 .initial. was applied with another text"):
        await migrate.migrate(database)


async def test_time_bucket_is_there_without_timescaledb(database: asyncpg.Connection) -> None:
    found = await database.fetchval("SELECT time_bucket('10 s', '2026-01-01 00:00:17+00'::timestamptz)::text")
    assert found == "2026-01-01 00:00:10+00"


def test_numbers_are_without_holes() -> None:
    assert [migration.number for migration in migrate.shipped()] == list(range(1, migrate.LATEST + 1))
