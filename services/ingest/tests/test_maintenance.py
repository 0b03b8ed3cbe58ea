"""Partitions made ahead, compression, and who maintains."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from cncmon_ingest import compression, maintenance, rows
from cncmon_ingest.maintenance import LOCK_KEY, Maintainer, make_partitions_ahead
from cncmon_ingest.partitions import Partitions
from cncmon_ingest.rollups import Rollups
from cncmon_ingest.settings import IngestSettings
from testkit.waiting import until

DAY = timedelta(days=1)

PARTITIONS = """
SELECT inhrelid::regclass::text AS name, pg_get_expr(relpartbound, c.oid) AS bounds
FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = 'sensor_data'::regclass ORDER BY 1
"""


def settings_for(dsn: str, **changes: int) -> IngestSettings:
    return IngestSettings(dsn, rollup_interval_ms=100, **changes)


async def count(connection: asyncpg.Connection, table: str) -> int:
    found: int = await connection.fetchval(f"SELECT count(*) FROM {table}")
    return found


async def test_partitions_are_days_and_made_ahead(database: asyncpg.Connection) -> None:
    async with database.transaction():
        now: datetime = await database.fetchval("SELECT now()")
        await make_partitions_ahead(database)
    found = {row["name"]: row["bounds"] for row in await database.fetch(PARTITIONS)}
    await database.execute("SET timezone = 'UTC'")
    for number in range(maintenance.AHEAD_DAYS + 1):
        day = now + number * DAY
        assert f"sensor_data_p{day:%Y%m%d}" in found
    bounds = await database.fetchval(
        "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = $1", f"sensor_data_p{now:%Y%m%d}"
    )
    assert bounds == f"FOR VALUES FROM ('{now:%Y-%m-%d} 00:00:00+00') TO ('{now + DAY:%Y-%m-%d} 00:00:00+00')"


async def test_many_ask_for_the_same_partition_at_once(postgres_dsn: str, database: asyncpg.Connection) -> None:
    many = [await asyncpg.connect(postgres_dsn) for _ in range(8)]
    moment = datetime.now(UTC) - 400 * DAY
    await asyncio.gather(*(one.execute("SELECT ensure_partition('sensor_data', $1)", moment) for one in many))
    await database.execute("INSERT INTO sensor_data (time, machine_id) VALUES ($1, 'm1')", moment)
    for one in many:
        await one.close()


async def test_delivery_b6_of_many_partitions_each_is_made_for_itself(database: asyncpg.Connection) -> None:
    """In one transaction two hundred can take longer than that may, and every try would begin at the first again."""
    first = datetime(2011, 3, 1, tzinfo=UTC)
    days = [(first - rows.EPOCH).days + number for number in range(5)]
    in_the_way = "CREATE TABLE in_the_way PARTITION OF sensor_data FOR VALUES FROM ('2011-03-04') TO ('2011-03-05')"
    await database.execute(in_the_way)
    with pytest.raises(asyncpg.PostgresError, match="overlap"):
        await Partitions().ensure(database, days)
    names = {row["name"] for row in await database.fetch(PARTITIONS)}
    assert names >= {f"sensor_data_p2011030{number}" for number in (1, 2, 3)}, "what was made stays made"
    await database.execute("DROP TABLE in_the_way")
    await Partitions().ensure(database, days)
    names = {row["name"] for row in await database.fetch(PARTITIONS)}
    assert names >= {f"sensor_data_p2011030{number}" for number in range(1, 6)}


async def test_a_partition_has_what_the_table_was_given_since(database: asyncpg.Connection) -> None:
    """What a plant adds of its own must not keep tomorrow's partition from being made."""
    await database.execute("ALTER TABLE sensor_data ADD COLUMN shift text, ADD CHECK (shift <> '')")
    await database.execute("CREATE INDEX ON sensor_data (program, time)")
    moment = datetime.now(UTC) - 300 * DAY
    await database.execute("SELECT ensure_partition('sensor_data', $1)", moment)
    await database.execute("INSERT INTO sensor_data (time, machine_id, shift) VALUES ($1, 'm', 'A')", moment)


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
        now = datetime.now(UTC)
        await database.execute(
            "INSERT INTO dirty_ranges (machine_ids, from_time, to_time) VALUES ('{m1}', $1, $2)",
            now,
            now + timedelta(seconds=10),
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
    now = datetime.now(UTC)
    rows = [(now - timedelta(minutes=40 - number), "m1", 1.0) for number in range(40)]
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
