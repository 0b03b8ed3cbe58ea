import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from cncmon_core.names import Origin
from cncmon_ingest import migrate
from cncmon_ingest.advance import advance
from cncmon_ingest.errors import MigrationError
from cncmon_ingest.migrate import Migration
from cncmon_ingest.reconcile import reconcile
from cncmon_ingest.rollups import Rollups
from testkit.fixtures import on_both_servers


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


async def test_a_schema_is_fit_for_older_programs_unless_it_says_otherwise(
    database: asyncpg.Connection,
) -> None:
    assert (await migrate.schema(database)) == (migrate.LATEST, 0)
    await database.execute("INSERT INTO schema_migrations (number, name, checksum) VALUES (9998, 'adds', 'x')")
    assert (await migrate.schema(database)).problem() is None, "rolled back, a program works on what a newer one made"
    await database.execute("INSERT INTO schema_migrations VALUES (9999, 'takes away', 'x', now(), 9998)")
    assert "migration 9998 at least" in str((await migrate.schema(database)).problem())
    assert Migration(9999, "takes_away", "-- Why.\n-- oldest program: 9998\nDROP TABLE t").oldest == 9998
    assert Migration(9999, "adds", "-- the oldest program: 3\nSELECT 1").oldest == 0


async def test_a_schema_that_only_older_programs_looked_after(database: asyncpg.Connection) -> None:
    await database.execute("ALTER TABLE schema_migrations DROP COLUMN oldest")
    assert (await migrate.schema(database)) == (migrate.LATEST, 0)
    assert await migrate.migrate(database) == 0
    assert await database.fetchval("SELECT max(oldest) FROM schema_migrations") == 0


async def test_a_changed_migration_is_refused(database: asyncpg.Connection) -> None:
    await database.execute("UPDATE schema_migrations SET checksum = 'x' WHERE number = 1")
    with pytest.raises(MigrationError, match=r"migration 1 .initial. was applied with another text"):
        await migrate.migrate(database)


async def test_time_bucket_is_there_without_timescaledb(database: asyncpg.Connection) -> None:
    found = await database.fetchval("SELECT time_bucket('10 s', '2026-01-01 00:00:17+00'::timestamptz)::text")
    assert found == "2026-01-01 00:00:10+00"


def test_numbers_are_without_holes() -> None:
    assert [migration.number for migration in migrate.shipped()] == list(range(1, migrate.LATEST + 1))


HOURS = 50
"""Of samples in the database of before: three days and a bit."""


async def _before_rollups(database: asyncpg.Connection, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make of the database what version 2 left, with samples of two machines, and a role that may only read."""
    await database.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    shipped = migrate.shipped()
    # TimescaleDB can be created only by a session that has not had it yet.
    another = await asyncpg.connect(dsn)
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "shipped", lambda: shipped[:2])
        await migrate.migrate(another)
    await another.close()
    await database.execute(
        f"""
        INSERT INTO sensor_data (time, machine_id, temperature, machine_state)
        SELECT date_trunc('second', now()) - n * INTERVAL '20 s', 'm' || n % 2, n, 'running'
        FROM generate_series(1, {HOURS} * 180) AS n;
        INSERT INTO machines (machine_id, site, edge) VALUES ('m0', 'hall', 'e1'), ('m1', 'hall', 'e1');
        DO $$ BEGIN CREATE ROLE looker; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
        GRANT SELECT ON sensor_data TO looker
        """
    )


@on_both_servers
async def test_samples_of_before_are_kept_rolled_up_and_readable(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = await asyncpg.connect(postgres_dsn)
    await _before_rollups(database, postgres_dsn, monkeypatch)
    await database.close()
    database = await asyncpg.connect(postgres_dsn)
    samples = "SELECT time, machine_id, temperature, machine_state FROM sensor_data ORDER BY 1, 2"
    before = await database.fetch(samples)
    await migrate.migrate(database)
    assert await database.fetch(samples) == before
    rollups = Rollups(timedelta(seconds=15))
    while (await rollups.catch_up(database)).left:
        pass
    counted = "SELECT machine_id, sum(samples)::int FROM rollup_1h GROUP BY 1 ORDER BY 1"
    assert [tuple(row) for row in await database.fetch(counted)] == [("m0", HOURS * 90), ("m1", HOURS * 90)]
    for table in ("sensor_data", "rollup_10s", "rollup_1min", "rollup_1h", "state_intervals"):
        assert await database.fetchval("SELECT has_table_privilege('looker', $1, 'SELECT')", table), table
    await database.execute("DROP OWNED BY looker; DROP ROLE looker")
    await database.close()


async def test_what_comes_during_an_upgrade_is_neither_lost_nor_doubled(
    database: asyncpg.Connection, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions that copy as a worker of the version before does, without pause, while the schema is brought up."""
    await _before_rollups(database, postgres_dsn, monkeypatch)
    before = await database.fetchval("SELECT count(*) FROM sensor_data")
    stop, copied = asyncio.Event(), 0

    async def write(number: int) -> None:
        nonlocal copied
        connection = await asyncpg.connect(postgres_dsn, server_settings={"lock_timeout": "5000"})
        while not stop.is_set():
            rows = [(datetime.now(UTC) - timedelta(days=n % 3), f"m{number}", float(n)) for n in range(100)]
            async with connection.transaction():
                await connection.copy_records_to_table(
                    "sensor_data", records=rows, columns=["time", "machine_id", "temperature"]
                )
            copied += len(rows)
        await connection.close()

    async with asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(write(number))
        await asyncio.sleep(0.3)
        await migrate.migrate(database)
        await asyncio.sleep(0.3)
        stop.set()
    assert copied > 0
    assert await database.fetchval("SELECT count(*) FROM sensor_data") == before + copied
