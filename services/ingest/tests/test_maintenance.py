"""Retention, partitions made ahead, compression, and who maintains."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from cncmon_ingest import compression, maintenance
from cncmon_ingest.maintenance import LOCK_KEY, Maintainer, care, retention
from cncmon_ingest.rollups import Rollups
from cncmon_ingest.settings import IngestSettings
from testkit.fixtures import on_both_servers
from testkit.ingest import until

DAY = timedelta(days=1)
NOW = datetime.now(UTC)

PARTITIONS = """
SELECT inhrelid::regclass::text AS name, pg_get_expr(relpartbound, c.oid) AS bounds
FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = 'sensor_data'::regclass ORDER BY 1
"""


def settings_for(dsn: str, **changes: int) -> IngestSettings:
    return IngestSettings(dsn, rollup_interval_ms=100, **changes)


async def add(connection: asyncpg.Connection, *ages: timedelta) -> None:
    """Store a sample of each age, with a rollup of each width and an interval of that time."""
    for age in ages:
        moment = NOW - age
        await connection.execute("SELECT ensure_partition(name, $1) FROM storage", moment)
        await connection.execute("INSERT INTO sensor_data (time, machine_id) VALUES ($1, 'm1')", moment)
        for table in ("rollup_10s", "rollup_1min", "rollup_1h"):
            await connection.execute(
                f"INSERT INTO {table} SELECT (jsonb_populate_record(NULL::{table}, "
                "(SELECT jsonb_object_agg(attname, 0) FROM pg_attribute WHERE attrelid = $2::text::regclass "
                "AND attnotnull AND attnum > 2) || jsonb_build_object('time', $1::timestamptz, 'machine_id', 'm1'))).*",
                *(moment, table),
            )
        await connection.execute(
            "INSERT INTO state_intervals VALUES ('m1', $1, $2, 'idle')", moment, moment + timedelta(minutes=1)
        )
        await connection.execute("INSERT INTO events VALUES ($1, 'hall', 'e1', 'started', NULL, '{}')", moment)


async def count(connection: asyncpg.Connection, table: str) -> int:
    found: int = await connection.fetchval(f"SELECT count(*) FROM {table}")
    return found


@on_both_servers
async def test_retention_drops_whole_days_and_what_is_of_another_table_stays(
    postgres_dsn: str, database: asyncpg.Connection
) -> None:
    await add(database, DAY, 20 * DAY, 60 * DAY, 800 * DAY)
    settings = settings_for(
        postgres_dsn, retention_days=10, retention_10s_days=30, retention_1min_days=100, retention_events_days=10
    )
    await care(database, settings)
    found = {table: await count(database, table) for table in retention(settings)}
    assert found == {
        "sensor_data": 1,
        "rollup_10s": 2,
        "rollup_1min": 3,
        "rollup_1h": 4,
        "state_intervals": 4,
        "events": 1,
    }
    dropped_to = await database.fetchval("SELECT dropped_to FROM storage WHERE name = 'sensor_data'")
    assert NOW - 12 * DAY < dropped_to < NOW - 10 * DAY
    await care(database, settings_for(postgres_dsn, retention_days=10, retention_10s_days=30, retention_states_days=30))
    assert await count(database, "state_intervals") == 2


@on_both_servers
async def test_nothing_is_dropped_by_default_within_ten_years(postgres_dsn: str, database: asyncpg.Connection) -> None:
    await add(database, DAY, 3000 * DAY)
    await care(database, settings_for(postgres_dsn))
    assert await count(database, "sensor_data") == 2


@pytest.mark.parametrize(
    ("own", "kept"),
    [
        ((0, 10, 10, 10, 10), (0, 0, 0, 0, 0)),
        ((30, 10, 0, 10, 10), (30, 30, 0, 0, 30)),
        ((30, 60, 90, 80, 0), (30, 60, 90, 90, 0)),
    ],
)
def test_what_is_computed_is_kept_as_long_as_what_it_is_computed_from(
    own: tuple[int, ...], kept: tuple[int, ...]
) -> None:
    names = (
        "retention_days",
        "retention_10s_days",
        "retention_1min_days",
        "retention_1h_days",
        "retention_states_days",
    )
    found = retention(IngestSettings("x", **dict(zip(names, own, strict=True))))
    tables = ("sensor_data", "rollup_10s", "rollup_1min", "rollup_1h", "state_intervals")
    assert tuple(found[table] for table in tables) == kept


async def test_retention_waits_for_a_reader_and_keeps_nobody_waiting(
    postgres_dsn: str, database: asyncpg.Connection
) -> None:
    await add(database, 20 * DAY)
    reader = await asyncpg.connect(postgres_dsn)
    async with reader.transaction():
        await reader.fetch("SELECT FROM sensor_data")
        await database.execute("SET lock_timeout = '100ms'")
        await care(database, settings_for(postgres_dsn, retention_days=10))
        assert await count(reader, "sensor_data") == 1
    await care(database, settings_for(postgres_dsn, retention_days=10))
    assert await count(reader, "sensor_data") == 0
    await reader.close()


async def test_partitions_are_days_and_made_ahead(postgres_dsn: str, database: asyncpg.Connection) -> None:
    await care(database, settings_for(postgres_dsn))
    found = {row["name"]: row["bounds"] for row in await database.fetch(PARTITIONS)}
    await database.execute("SET timezone = 'UTC'")
    for number in range(maintenance.AHEAD_DAYS + 1):
        day = NOW + number * DAY
        assert f"sensor_data_p{day:%Y%m%d}" in found
    bounds = await database.fetchval(
        "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = $1", f"sensor_data_p{NOW:%Y%m%d}"
    )
    assert bounds == f"FOR VALUES FROM ('{NOW:%Y-%m-%d} 00:00:00+00') TO ('{NOW + DAY:%Y-%m-%d} 00:00:00+00')"


async def test_many_ask_for_the_same_partition_at_once(postgres_dsn: str, database: asyncpg.Connection) -> None:
    many = [await asyncpg.connect(postgres_dsn) for _ in range(8)]
    await asyncio.gather(*(one.execute("SELECT ensure_partition('sensor_data', $1)", NOW - 400 * DAY) for one in many))
    await database.execute("INSERT INTO sensor_data (time, machine_id) VALUES ($1, 'm1')", NOW - 400 * DAY)
    for one in many:
        await one.close()


async def test_a_partition_has_what_the_table_was_given_since(database: asyncpg.Connection) -> None:
    """What a plant adds of its own must not keep tomorrow's partition from being made."""
    await database.execute("ALTER TABLE sensor_data ADD COLUMN shift text, ADD CHECK (shift <> '')")
    await database.execute("CREATE INDEX ON sensor_data (program, time)")
    await database.execute("SELECT ensure_partition('sensor_data', $1)", NOW - 300 * DAY)
    await database.execute("INSERT INTO sensor_data (time, machine_id, shift) VALUES ($1, 'm', 'A')", NOW - 300 * DAY)


@contextlib.asynccontextmanager
async def maintaining(dsn: str) -> AsyncIterator[None]:
    task = asyncio.create_task(Maintainer(settings_for(dsn)).run())
    yield
    task.cancel()
    await asyncio.wait([task])


async def test_one_maintains_and_another_follows_at_once(postgres_dsn: str, database: asyncpg.Connection) -> None:
    async def holder() -> int | None:
        found: int | None = await database.fetchval(
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objid = $1 AND classid = $2",
            *(LOCK_KEY & 0xFFFFFFFF, LOCK_KEY >> 32),
        )
        return found

    async with maintaining(postgres_dsn), maintaining(postgres_dsn):
        await until(holder)
        first = await holder()
        await database.execute("SELECT pg_terminate_backend($1)", first)

        async def another() -> bool:
            return await holder() not in (None, first)

        await until(another)
        await database.execute(
            "INSERT INTO dirty_ranges (machine_ids, from_time, to_time) VALUES ('{m1}', $1, $2)",
            NOW,
            NOW + timedelta(seconds=10),
        )

        async def done() -> bool:
            return await count(database, "dirty_ranges") == 0

        await until(done)


@pytest.mark.needs("timescaledb")
async def test_compression_is_asked_for_in_words_that_timescaledb_knows(timescaledb_dsn: str) -> None:
    """The Apache edition refuses by its licence (0A000) what it has understood; a wrong word would be another error."""
    connection = await asyncpg.connect(timescaledb_dsn)
    for statement, arguments in ((compression.ENABLE, ()), (compression.ADD, (7,)), (compression.REMOVE, ())):
        with pytest.raises(asyncpg.FeatureNotSupportedError, match="license"):
            await connection.execute(statement, *arguments)
    assert await connection.fetchval(compression.CURRENT, 7) is None
    assert "licence 'apache'" in str(await compression.unavailable(connection))
    await compression.ensure(connection, 7)
    await connection.close()


async def test_plain_postgresql_says_that_it_has_no_compression(database: asyncpg.Connection) -> None:
    assert "TimescaleDB" in str(await compression.unavailable(database))
    await compression.ensure(database, 7)


async def test_what_a_worker_without_marks_stores_is_computed_once_it_is_gone(
    postgres_dsn: str, database: asyncpg.Connection
) -> None:
    await database.execute("INSERT INTO machines (machine_id, site, edge) VALUES ('m1', 'hall', 'e1')")
    old = await asyncpg.connect(postgres_dsn, server_settings={"application_name": "cncmon-ingest"})
    await maintenance.mark_for_others(database)
    rows = [(NOW - timedelta(minutes=40 - number), "m1", 1.0) for number in range(40)]
    await old.copy_records_to_table("sensor_data", records=rows, columns=["time", "machine_id", "temperature"])
    await maintenance.mark_for_others(database)
    assert await count(database, "dirty_ranges") == 0
    await old.close()

    async def marked() -> bool:
        await maintenance.mark_for_others(database)
        return await count(database, "dirty_ranges") > 0

    await until(marked)
    rollups = Rollups(timedelta(seconds=15))
    while (await rollups.catch_up(database)).left:
        pass
    assert await database.fetchval("SELECT sum(samples) FROM rollup_10s") == 40
    await maintenance.mark_for_others(database)
    assert await count(database, "dirty_ranges") == 0
