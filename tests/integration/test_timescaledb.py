"""A server with TimescaleDB: samples in chunks of a day, and everything else as on plain PostgreSQL."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from nats.aio.client import Client

from cncmon_api import samples
from cncmon_api.database import Database
from cncmon_api.live import Hub
from cncmon_api.poller import Poller
from cncmon_api.series import read_series
from cncmon_api.settings import ApiSettings
from cncmon_core.frames import join
from cncmon_ingest import migrate
from cncmon_ingest.decode import DAYS_MAX
from testkit.ingest import (
    compute_rollups,
    drained,
    frame,
    prepare,
    publish_batch,
    publish_plain,
    running_ingest,
    settings_for,
    until,
)
from testkit.parts import timescaledb_programs
from testkit.servers import Postgres, running_postgres

pytestmark = pytest.mark.needs("timescaledb")

DAY = timedelta(days=1)
MIDNIGHT = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - 20 * DAY


@pytest.fixture
async def hyper(timescaledb_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the database on the server with TimescaleDB."""
    connection = await asyncpg.connect(timescaledb_dsn)
    yield connection
    await connection.close()


@pytest.fixture
def not_preloaded() -> Iterator[Postgres]:
    """A server that has TimescaleDB's files and does not load them."""
    with running_postgres({"fsync": "off"}, timescaledb_programs()) as server:
        yield server


async def chunks(hyper: asyncpg.Connection) -> list[tuple[datetime, datetime]]:
    """Return the ranges of the chunks of sensor_data, ascending."""
    rows = await hyper.fetch(
        "SELECT range_start, range_end FROM timescaledb_information.chunks "
        "WHERE hypertable_name = 'sensor_data' ORDER BY range_start"
    )
    return [(row["range_start"], row["range_end"]) for row in rows]


def days(*numbers: int) -> list[tuple[datetime, datetime]]:
    """Return the ranges of the UTC days with these numbers, counted from MIDNIGHT."""
    return [(MIDNIGHT + number * DAY, MIDNIGHT + (number + 1) * DAY) for number in numbers]


async def fill(*connections: asyncpg.Connection) -> None:
    """Store one sample each 10 min of four days, from 5 min past midnight, and three machines."""
    states = ["running", "idle", "alarm", None]
    rows = [
        (MIDNIGHT + timedelta(minutes=5 + 10 * n), f"cnc-{n % 3}", n / 8, n % 500, states[n // 50 % 4], '{"n": 1}')
        for n in range(4 * 144)
    ]
    for connection in connections:
        await connection.execute(
            "SELECT ensure_partition('sensor_data', day) FROM unnest($1::timestamptz[]) AS day",
            [MIDNIGHT + number * DAY for number in range(4)],
        )
        columns = ["time", "machine_id", "temperature", "part_count", "machine_state", "extras"]
        await connection.copy_records_to_table("sensor_data", records=rows, columns=columns)
        await connection.execute(
            "INSERT INTO machines (machine_id, site, edge) SELECT DISTINCT machine_id, 'hall', 'e1' FROM sensor_data"
        )


# --- The schema --------------------------------------------------------------------------------------------------


async def test_samples_lie_in_chunks_of_a_day_with_one_index_each(hyper: asyncpg.Connection) -> None:
    dimensions = await hyper.fetch(
        "SELECT hypertable_name, column_name, time_interval FROM timescaledb_information.dimensions"
    )
    assert {tuple(row) for row in dimensions} == {
        ("sensor_data", "time", DAY),
        ("rollup_10s", "time", 7 * DAY),
        ("rollup_1min", "time", 30 * DAY),
        ("rollup_1h", "time", 365 * DAY),
    }
    await fill(hyper)
    assert await chunks(hyper) == days(0, 1, 2, 3)
    indexes = await hyper.fetch(
        "SELECT tablename, substring(indexdef from 'USING .*') AS definition FROM pg_indexes "
        "WHERE tablename = 'sensor_data' OR tablename LIKE '\\_hyper\\_%' ORDER BY tablename"
    )
    assert [row["definition"] for row in indexes] == ['USING btree (machine_id, "time" DESC)'] * 5
    assert len({row["tablename"] for row in indexes}) == 5


async def test_migrating_twice_does_nothing(hyper: asyncpg.Connection) -> None:
    await fill(hyper)
    before = await hyper.fetch("SELECT * FROM timescaledb_information.hypertables")
    assert await migrate.migrate(hyper) == 0
    assert await migrate.version(hyper) == migrate.LATEST
    assert await hyper.fetch("SELECT * FROM timescaledb_information.hypertables") == before
    assert len(before) == 4
    assert await hyper.fetchval("SELECT count(*) FROM sensor_data") == 576


async def test_installed_and_not_preloaded_is_plain_postgresql(not_preloaded: Postgres) -> None:
    """As right after installing the package: creating the extension then would end the session."""
    connection = await asyncpg.connect(not_preloaded.dsn)
    assert await connection.fetchval("SELECT count(*) FROM pg_available_extensions WHERE name = 'timescaledb'")
    assert await migrate.migrate(connection) == migrate.LATEST
    assert not await connection.fetchval("SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'")
    assert await connection.fetchval("SELECT time_bucket('1 h', now()) <= now()")
    await connection.close()


async def test_a_message_over_thousands_of_days_stops_nobody(
    nats_client: Client, nats_url: str, timescaledb_dsn: str, hyper: asyncpg.Connection
) -> None:
    """A chunk a day: more than a server has locks for. What is over the bound is dead, and can be replayed."""
    settings = settings_for(timescaledb_dsn)
    await prepare(nats_client, settings)
    now = datetime.now(UTC)
    parts = [frame(n, timestamp=(now - n * DAY).isoformat()) for n in range(3500)]
    await publish_batch(nats_client, 1, parts)
    await publish_plain(nats_client, join([frame(1, machine_id="after")]))
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
    assert await hyper.fetchval("SELECT count(*) FROM sensor_data WHERE machine_id = 'cnc-001'") == DAYS_MAX
    assert await hyper.fetchval("SELECT frames FROM dead_letters WHERE reason = 'too_many_days'") == 3500 - DAYS_MAX
    assert await hyper.fetchval("SELECT count(*) FROM sensor_data WHERE machine_id = 'after'") == 1


SCHEMA = {
    "columns": """
        SELECT table_name, column_name, ordinal_position, data_type, is_nullable, column_default, is_identity
        FROM information_schema.columns WHERE table_schema = 'public'
          AND NOT (SELECT relispartition FROM pg_class WHERE oid = table_name::regclass)
        ORDER BY table_name, ordinal_position
    """,
    "constraints": """
        SELECT conrelid::regclass::text AS table_name, contype::text, pg_get_constraintdef(oid) AS definition
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n' AND conparentid = 0
        ORDER BY 1, 2, 3
    """,  # 'n': since PostgreSQL 18 NOT NULL is listed there too; is_nullable says it for every version
    "indexes": "SELECT tablename, indexname, replace(indexdef, ' ON ONLY ', ' ON ') FROM pg_indexes "
    "WHERE schemaname = 'public' AND NOT (SELECT relispartition FROM pg_class "
    "WHERE oid = format('%I.%I', schemaname, tablename)::regclass) "
    "ORDER BY 1, 2",
    "comments": "SELECT objoid::regclass::text, objsubid, description FROM pg_description d JOIN pg_class c "
    "ON c.oid = objoid WHERE c.relnamespace = 'public'::regnamespace AND NOT c.relispartition ORDER BY 1, 2",
}


@pytest.mark.parametrize("what", SCHEMA)
async def test_the_schema_is_that_of_plain_postgresql(
    hyper: asyncpg.Connection, database: asyncpg.Connection, what: str
) -> None:
    assert await database.fetchval("SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'") == 0
    found = [tuple(row) for row in await hyper.fetch(SCHEMA[what])]
    assert found == [tuple(row) for row in await database.fetch(SCHEMA[what])]
    assert found


@pytest.mark.parametrize("zone", ["UTC", "America/St_Johns"], ids=["utc", "newfoundland"])
async def test_time_bucket_gives_the_same_on_both(
    hyper: asyncpg.Connection, database: asyncpg.Connection, zone: str
) -> None:
    widths = ["1 ms", "7 s", "10 s", "1 min", "15 min", "1 h", "5 h", "1 day", "7 days", "1 day 1 h"]
    moments = [
        datetime(1999, 12, 31, 23, 59, 59, 999_999, UTC),
        datetime(2000, 1, 3, tzinfo=UTC),
        datetime(2026, 3, 8, 9, 30, 0, 1, UTC),
        datetime(2026, 10, 25, 0, 59, 59, 500_000, UTC),
        datetime(2031, 2, 28, 12, tzinfo=UTC),
    ]
    buckets = []
    for connection in (hyper, database):
        await connection.execute(f"SET TimeZone = '{zone}'")
        rows = await connection.fetch(
            "SELECT w, m, time_bucket(w::interval, m) AS bucket FROM unnest($1::text[]) w, unnest($2::timestamptz[]) m",
            *(widths, moments),
        )
        buckets.append({(row["w"], row["m"]): row["bucket"] for row in rows})
    assert buckets[0] == buckets[1]
    assert len(buckets[0]) == len(widths) * len(moments)


async def test_time_bucket_groups_samples_the_same_on_both(
    hyper: asyncpg.Connection, database: asyncpg.Connection
) -> None:
    await fill(hyper, database)
    query = (
        "SELECT time_bucket('6 h', time) AS bucket, machine_id, count(*), min(temperature), max(temperature) "
        "FROM sensor_data GROUP BY 1, 2 ORDER BY 1, 2"
    )
    found = await hyper.fetch(query)
    assert found == await database.fetch(query)
    assert len(found) == 16 * 3


async def test_drop_chunks_takes_whole_days_and_nothing_else(hyper: asyncpg.Connection) -> None:
    await fill(hyper)
    dropped = await hyper.fetch(
        "SELECT drop_chunks('sensor_data', older_than => $1::timestamptz)", MIDNIGHT + 2.5 * DAY
    )
    assert len(dropped) == 2
    assert await chunks(hyper) == days(2, 3)
    assert await hyper.fetchval("SELECT min(time) FROM sensor_data") == MIDNIGHT + 2 * DAY + timedelta(minutes=5)
    assert await hyper.fetchval("SELECT count(*) FROM sensor_data") == 288
    assert await hyper.fetchval("SELECT count(*) FROM machines") == 3


# --- Delivery ----------------------------------------------------------------------------------------------------


def frames_of(day: int, count: int, **changes: Any) -> list[bytes]:
    """Return frames whose times are that day's, the first at its first µs and the last near its end."""
    begin = MIDNIGHT + day * DAY
    step = (DAY - timedelta(seconds=1)) / count
    return [frame(day * 1000 + n, timestamp=(begin + n * step).isoformat(), **changes) for n in range(count)]


async def test_batches_over_days_redelivered_are_stored_once(
    nats_client: Client, nats_url: str, timescaledb_dsn: str, hyper: asyncpg.Connection
) -> None:
    """Three workers with small transactions, so that they make chunks side by side; every batch three times."""
    settings = settings_for(timescaledb_dsn, fetch_messages=2)
    await prepare(nats_client, settings)
    bad = b'{"machine_id": "CNC-MALFORMED", "temperature": "not-a-float"}'
    batches = {seq: frames_of(seq // 3, 40) + frames_of(seq // 3 + 1, 10) for seq in range(1, 16)}
    batches[8].insert(25, bad)
    for attempt in range(3):
        for seq, parts in batches.items():
            await publish_batch(nats_client, seq, parts, message_id=f"{attempt}-{seq}")
    await publish_plain(nats_client, join(frames_of(9, 1)))
    async with running_ingest(nats_url, settings, workers=3):
        await until(lambda: drained(nats_client))
        await until(lambda: _watermark_is(hyper, 15))

    stored = await hyper.fetch("SELECT time, temperature FROM sensor_data ORDER BY time, temperature")
    expected = [
        (MIDNIGHT + day * DAY + n * (DAY - timedelta(seconds=1)) / count, 25.5 + day * 1000 + n)
        for day, count in [
            *((seq // 3, 40) for seq in batches),
            *((seq // 3 + 1, 10) for seq in batches),
            (9, 1),
        ]
        for n in range(count)
    ]
    assert len(expected) == 15 * 50 + 1
    assert [tuple(row) for row in stored] == sorted(expected)
    assert await chunks(hyper) == days(0, 1, 2, 3, 4, 5, 6, 9)
    letters = await hyper.fetch("SELECT frame, reason, payload FROM dead_letters")
    assert [tuple(row) for row in letters] == [(25, "invalid_field", bad)]
    totals = await hyper.fetchrow("SELECT batches_stored, samples_stored, samples_dead FROM watermarks")
    assert totals is not None
    assert tuple(totals) == (15, 750, 1)


async def _watermark_is(hyper: asyncpg.Connection, seq: int) -> bool:
    return bool(await hyper.fetchval("SELECT seq FROM watermarks") == seq)


async def test_what_a_chunk_refuses_is_found_and_buried(
    nats_client: Client, nats_url: str, timescaledb_dsn: str, hyper: asyncpg.Connection
) -> None:
    """The constraint is broken in chunks, old and new; only the frames that break it are dead."""
    settings = settings_for(timescaledb_dsn)
    await prepare(nats_client, settings)
    await fill(hyper)
    await hyper.execute("ALTER TABLE sensor_data ADD CHECK (part_count < 1000)")
    bad = [frames_of(day, 1, part_count=5000)[0] for day in (2, 7)]
    await publish_batch(nats_client, 1, [*frames_of(1, 30), *frames_of(2, 30), bad[0], *frames_of(7, 30), bad[1]])
    await publish_batch(nats_client, 2, frames_of(8, 30))
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
        await until(lambda: _watermark_is(hyper, 2))
    assert await hyper.fetchval("SELECT count(*) FROM sensor_data") == 576 + 120
    assert await chunks(hyper) == days(0, 1, 2, 3, 7, 8)
    letters = await hyper.fetch("SELECT frame, reason, detail, payload FROM dead_letters ORDER BY frame")
    assert [(row["frame"], row["reason"], row["payload"]) for row in letters] == [
        (60, "refused_by_database", bad[0]),
        (91, "refused_by_database", bad[1]),
    ]
    assert all("23514" in row["detail"] for row in letters)


# --- The query API's SQL -----------------------------------------------------------------------------------------


async def _answers(dsn: str) -> dict[str, Any]:
    """Return what the query API reads: pages over all days, series over all days, and the list of machines."""
    settings = ApiSettings(database_dsn=dsn)
    database = Database(settings, 2)
    await database.open()
    try:
        walked, cursor, pages = [], None, 0
        while cursor is not None or not pages:
            page = await samples.read_page(database, "cnc-1", MIDNIGHT, MIDNIGHT + 4 * DAY, 50, cursor)
            walked += page.samples
            cursor = samples.decode_cursor(page.next_cursor) if page.next_cursor else None
            pages += 1
            assert pages < 10, "a walk that does not end"
        fields = ["temperature", "part_count"]
        series = await read_series(database, "cnc-2", MIDNIGHT, MIDNIGHT + 5 * DAY, fields, 37)
        fleet = await Poller(settings, database, Hub(8, 8)).refresh()
        return {"samples": walked, "pages": pages, "series": series, "machines": fleet.machines(MIDNIGHT + 4 * DAY)}
    finally:
        await database.close()


async def test_the_query_api_reads_the_same_on_both(
    postgres_dsn: str, database: asyncpg.Connection, timescaledb_dsn: str, hyper: asyncpg.Connection
) -> None:
    await fill(hyper, database)
    for connection in (hyper, database):
        await compute_rollups(connection, MIDNIGHT, MIDNIGHT + 4 * DAY)
    found = await _answers(timescaledb_dsn)
    assert found == await _answers(postgres_dsn)
    assert [sample.temperature for sample in found["samples"]] == [n / 8 for n in range(1, 576, 3)]
    assert found["pages"] == 4
    series, any_rows = found["series"]
    assert any_rows
    assert (len(series.times), series.states[-1]) == (30, None)
    assert [machine.last_sample.temperature for machine in found["machines"]] == [573 / 8, 574 / 8, 575 / 8]
