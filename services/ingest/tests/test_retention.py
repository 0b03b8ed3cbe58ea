"""Retention: what goes at each table's edges, and how over a thousand partitions go where locks are few."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from cncmon_ingest import retention
from cncmon_ingest.maintenance import Maintainer
from cncmon_ingest.migrate import migrate
from cncmon_ingest.settings import IngestSettings
from cncmon_ingest.steps import MORE
from testkit.fixtures import on_both_servers
from testkit.servers import Postgres, running_postgres
from testkit.waiting import until

DAY = timedelta(days=1)
WIDTHS = {"sensor_data": 1, "rollup_10s": 7, "rollup_1min": 30, "rollup_1h": 365}
"""Days in a chunk or partition of each table."""
MANY = 1_040
"""Partitions of samples: dropped in one transaction they take more locks than the server below has."""
LONG_AGO = datetime(2010, 6, 15, 12, tzinfo=UTC)
"""Where no other test has anything."""

PARTS = """
SELECT c.relname AS name,
       substring(pg_get_expr(c.relpartbound, c.oid) FROM 'FROM \\(''(.+)''\\) TO')::timestamptz AS begins,
       substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \\(''(.+)''\\)')::timestamptz AS ends
FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = $1::text::regclass ORDER BY ends
"""
CHUNKS = """
SELECT chunk_name AS name, range_start AS begins, range_end AS ends
FROM timescaledb_information.chunks WHERE hypertable_name = $1 ORDER BY ends
"""


async def insert(connection: asyncpg.Connection, table: str, moment: datetime) -> None:
    """Insert a row of a moment into samples or rollups, with zeros in what must not be NULL."""
    await connection.execute("SELECT ensure_partition($1, $2)", table, moment)
    await connection.execute(
        f"INSERT INTO {table} SELECT (jsonb_populate_record(NULL::{table}, "
        "(SELECT coalesce(jsonb_object_agg(attname, 0), '{}') FROM pg_attribute WHERE attrelid = $2::text::regclass "
        "AND attnotnull AND attnum > 2) || jsonb_build_object('time', $1::timestamptz, 'machine_id', 'm1'))).*",
        *(moment, table),
    )


async def add(connection: asyncpg.Connection, *ages: timedelta) -> None:
    """Store a sample of each age, with a rollup of each width and an interval of that time."""
    for age in ages:
        moment = datetime.now(UTC) - age
        for table in WIDTHS:
            await insert(connection, table, moment)
        await connection.execute(
            "INSERT INTO state_intervals VALUES ('m1', $1, $2, 'idle')", moment, moment + timedelta(minutes=1)
        )
        await connection.execute(
            "INSERT INTO edge_silences VALUES ('hall', 'e1', $1, $2)", moment, moment + timedelta(minutes=1)
        )
        await connection.execute("INSERT INTO events VALUES ($1, 'hall', 'e1', 'started', NULL, '{}')", moment)


async def count(connection: asyncpg.Connection, table: str) -> int:
    found: int = await connection.fetchval(f"SELECT count(*) FROM {table}")
    return found


async def parts_of(connection: asyncpg.Connection, table: str) -> list[asyncpg.Record]:
    hyper = await connection.fetchval("SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')")
    return await connection.fetch(CHUNKS if hyper else PARTS, table)


async def oldest(connection: asyncpg.Connection, table: str, moment: datetime) -> list[str]:
    found = await connection.fetch("SELECT oldest_parts($1, $2, 10)", table, moment)
    return [name.rpartition(".")[2] for (name,) in found]


async def drop(connection: asyncpg.Connection, table: str, part: asyncpg.Record, moment: datetime) -> int:
    schema = "public." if part["name"].startswith(table) else "_timescaledb_internal."
    dropped: int = await connection.fetchval("SELECT drop_part($1, $2, $3)", table, schema + part["name"], moment)
    return dropped


async def keep(connection: asyncpg.Connection, settings: IngestSettings) -> None:
    """Do all that retention has to do now."""
    for step in retention.steps(settings):
        while await step.work(connection) == MORE:
            pass


@on_both_servers
@pytest.mark.parametrize("table", WIDTHS)
async def test_a_partition_goes_when_its_end_is_old_enough_and_not_before(
    database: asyncpg.Connection, table: str
) -> None:
    """Its beginning says nothing: rows of up to the width after it are in it."""
    width = WIDTHS[table] * DAY
    for number in (0, 2, 1):
        await insert(database, table, LONG_AGO + number * width)
    parts = (await parts_of(database, table))[:3]
    assert [part["ends"] - part["begins"] for part in parts] == [width] * 3
    assert parts[2]["begins"] < LONG_AGO + 3 * width, "no other test's"
    last = parts[-1]["ends"]
    for number, part in enumerate(parts):
        for moment in (part["begins"], part["ends"] - DAY, part["ends"] - timedelta(microseconds=1)):
            assert await oldest(database, table, moment) == [], moment
            assert await drop(database, table, part, moment) == 0, moment
        assert await oldest(database, table, part["ends"]) == [part["name"]]
        assert await oldest(database, table, last) == [one["name"] for one in parts[number:]], "the oldest first"
        assert await count(database, table) == 3 - number
        assert await drop(database, table, part, part["ends"]) == 1
        assert await count(database, table) == 2 - number
    assert await oldest(database, table, last) == []
    assert await drop(database, table, parts[-1], last) == 0, "it is gone"
    assert await database.fetchval("SELECT dropped_to FROM storage WHERE name = $1", table) == last
    storage = await database.fetchval("SELECT drop_part($1, 'storage', $2)", table, datetime.now(UTC))
    assert storage == 0, "no part of it"


@on_both_servers
async def test_a_day_goes_one_day_later_than_its_samples_are_refused(database: asyncpg.Connection) -> None:
    days = 10
    # Within one transaction the server's `now()` stands still.
    async with database.transaction():
        now: datetime = await database.fetchval("SELECT now()")
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        gone, kept = midnight - (days + retention.GRACE_DAYS + 1) * DAY, midnight - (days + retention.GRACE_DAYS) * DAY
        for moment in (gone, kept):
            await insert(database, "sensor_data", moment)
        await keep(database, IngestSettings("-", retention_days=days))
        begins = {part["begins"] for part in await parts_of(database, "sensor_data")}
        assert begins & {gone, kept} == {kept}


@on_both_servers
async def test_retention_drops_whole_days_and_what_is_of_another_table_stays(
    postgres_dsn: str, database: asyncpg.Connection
) -> None:
    await add(database, DAY, 20 * DAY, 60 * DAY, 800 * DAY)
    settings = IngestSettings(
        postgres_dsn, retention_days=10, retention_10s_days=30, retention_1min_days=100, retention_events_days=10
    )
    await keep(database, settings)
    found = {table: await count(database, table) for table in retention.retention(settings)}
    assert found == {
        "sensor_data": 1,
        "rollup_10s": 2,
        "rollup_1min": 3,
        "rollup_1h": 4,
        "state_intervals": 4,
        "edge_silences": 4,
        "events": 1,
    }
    now = datetime.now(UTC)
    dropped_to = await database.fetchval("SELECT dropped_to FROM storage WHERE name = 'sensor_data'")
    # A day of grace later than what is refused as too old.
    assert now - 12 * DAY < dropped_to < now - 11 * DAY
    await keep(
        database, IngestSettings(postgres_dsn, retention_days=10, retention_10s_days=30, retention_states_days=30)
    )
    assert await count(database, "state_intervals") == await count(database, "edge_silences") == 2


@on_both_servers
async def test_nothing_is_dropped_by_default_within_ten_years(postgres_dsn: str, database: asyncpg.Connection) -> None:
    await add(database, DAY, 3000 * DAY)
    await keep(database, IngestSettings(postgres_dsn))
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
    found = retention.retention(IngestSettings("x", **dict(zip(names, own, strict=True))))
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
        await keep(database, IngestSettings(postgres_dsn, retention_days=10))
        assert await count(reader, "sensor_data") == 1
    await keep(database, IngestSettings(postgres_dsn, retention_days=10))
    assert await count(reader, "sensor_data") == 0
    await reader.close()


@contextlib.asynccontextmanager
async def maintaining(settings: IngestSettings) -> AsyncIterator[None]:
    task = asyncio.create_task(Maintainer(settings).run())
    yield
    task.cancel()
    await asyncio.wait([task])


@pytest.fixture(scope="module")
def few_locks() -> Iterator[Postgres]:
    """A server with locks enough for statements over MANY partitions, and not for dropping them in one transaction."""
    with running_postgres({"fsync": "off", "max_connections": "20", "max_locks_per_transaction": "40"}) as server:
        yield server


@pytest.mark.timeout(300)
async def test_over_a_thousand_partitions_go_where_locks_are_few_and_rollups_go_on(few_locks: Postgres) -> None:
    database = await asyncpg.connect(few_locks.dsn)
    await migrate(database)
    now = datetime.now(UTC)
    for age in range(20, 20 + MANY):
        await database.execute("SELECT ensure_partition('sensor_data', $1)", now - age * DAY)
    with pytest.raises(asyncpg.OutOfMemoryError, match="max_locks_per_transaction"):
        await database.fetchval("SELECT drop_older('sensor_data', $1)", now - 12 * DAY)
    await insert(database, "sensor_data", now - DAY)
    await database.execute(
        "INSERT INTO dirty_ranges (machine_ids, from_time, to_time) VALUES ('{m1}', $1, $2)", now - 2 * DAY, now
    )
    parts_when_computed = 0

    async def computed() -> bool:
        nonlocal parts_when_computed
        parts_when_computed = len(await parts_of(database, "sensor_data"))
        return await count(database, "rollup_1h") == 1

    async def dropped() -> bool:
        return len(await parts_of(database, "sensor_data")) < 20

    async with maintaining(IngestSettings(few_locks.dsn, rollup_interval_ms=100, retention_days=11)):
        await until(computed)
        assert parts_when_computed > MANY / 2, "rollups waited for retention"
        await until(dropped)
    assert await count(database, "sensor_data") == 1
    await database.close()
