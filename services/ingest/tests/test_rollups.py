"""Rollups and state intervals: whatever order samples come in, they are what plain Python computes over all of them."""

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cncmon_core.frames import join
from cncmon_ingest import dirty, dlq, rollup_sql
from cncmon_ingest.connection import connect
from cncmon_ingest.decode import Incoming, Limits, decode
from cncmon_ingest.rollups import Rollups
from cncmon_ingest.settings import IngestSettings
from cncmon_ingest.store import Store
from testkit import recomputed
from testkit.fixtures import on_both_servers
from testkit.waiting import until

STALE = timedelta(seconds=15)
NOW = datetime(2026, 6, 2, 12, tzinfo=UTC)
"""When the messages below were stored in the stream."""
BEGAN = (NOW - timedelta(hours=30)).replace(minute=58, second=0, microsecond=0)
LIMITS = Limits.at(NOW, 300, 0)
_numbers = itertools.count(1)

numbers = st.one_of(
    st.none(),
    st.integers(-50, 50).map(lambda value: value / 4),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, 5e-324, -1.7976931348623157e308, 1.7976931348623157e308, 1e290, 1e-300]),
)
whole = st.one_of(st.none(), st.integers(-(1 << 63), (1 << 63) - 1), st.integers(0, 9))
extras = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {}, optional={"alarm_code": st.sampled_from([0, 2045, "", "E-7", False]), "alarm": st.sampled_from(["door", 0])}
    ),
)
offsets = st.one_of(
    st.integers(0, 400).map(lambda tenth: tenth * 100_000),
    st.integers(0, 3_600_000_000),
    st.integers(0, 100).map(lambda minute: minute * 60_000_000),
)
"""µs from BEGAN: dense, anywhere, and a minute apart."""

samples = st.fixed_dictionaries(
    {
        "offset_us": offsets,
        "temperature": numbers,
        "spindle_speed": numbers,
        "feed_rate_actual": st.one_of(st.none(), st.sampled_from([0.0, 100.0])),
        "machine_state": st.sampled_from([None, "running", "idle", "alarm", "hold", "offline"]),
        "program": st.sampled_from([None, "O1", "O2"]),
        "part_count": whole,
        "anomaly_score": numbers,
        "extras": extras,
    }
)


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await connect(dsn)
    try:
        yield connection
    finally:
        connection.terminate()


async def store(connection: asyncpg.Connection, machine_id: str, some: list[dict[str, Any]]) -> None:
    """Store samples as messages without identity, through the transaction that all messages go through."""
    parts = []
    for sample in some:
        values = {name: value for name, value in sample.items() if name != "offset_us"}
        moment = BEGAN + timedelta(microseconds=sample["offset_us"])
        parts.append(msgspec.json.encode({"machine_id": machine_id, "timestamp": moment} | values))
    message = Incoming("CNC_DATA.hall.e1", {}, join(parts), next(_numbers), NOW)
    decoded = decode(message, LIMITS)
    assert not decoded.dead
    assert len((await Store(connection, NOW).write([decoded])).new) == 1


async def all_done(connection: asyncpg.Connection) -> None:
    """Compute whatever is marked. Every round must leave less: else the next would do the same again, for ever."""
    rollups = Rollups(STALE)
    left = await outstanding(connection)
    while (await rollups.catch_up(connection)).marks:
        before, left = left, await outstanding(connection)
        assert left < before, f"a round left {left} of {before} marked: {await marks(connection)}"
    assert not left, f"no round does what is marked: {await marks(connection)}"


async def outstanding(connection: asyncpg.Connection) -> timedelta:
    """Return how much time is marked, of all machines together."""
    found: timedelta = await connection.fetchval(
        "SELECT coalesce(sum((to_time - from_time) * cardinality(machine_ids)), '0') FROM dirty_ranges "
        "WHERE failure IS NULL"
    )
    return found


async def marks(connection: asyncpg.Connection) -> list[tuple[Any, ...]]:
    rows = await connection.fetch("SELECT id, machine_ids, from_time, to_time, failure FROM dirty_ranges LIMIT 10")
    return [tuple(row) for row in rows]


async def raw_rows(connection: asyncpg.Connection, machine_id: str) -> list[dict[str, Any]]:
    rows = await connection.fetch("SELECT * FROM sensor_data WHERE machine_id = $1", machine_id)
    return [dict(row) | {"extras": msgspec.json.decode(row["extras"] or "null")} for row in rows]


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return column → (found, wanted) where a bucket is not what it should be."""
    return {
        name: (found[name], value)
        for name, value in wanted.items()
        if not (_is_close(name, found, value) if name.endswith("_avg") else found[name] == value)
    }


def _is_close(name: str, found: dict[str, Any], value: Any) -> bool:
    if value is None or found[name] is None:
        return found[name] is value
    # The order of a sum is the server's own.
    scale = max(abs(found[name.replace("_avg", "_min")]), abs(found[name.replace("_avg", "_max")]))
    return math.isclose(found[name], value, rel_tol=1e-9, abs_tol=max(1e-289, 1e-12 * scale))


async def check(connection: asyncpg.Connection, machine_id: str) -> None:
    """Compare all that was computed of a machine with what Python makes of its rows, and name what is different."""
    rows = await raw_rows(connection, machine_id)
    spans = recomputed.spans(rows, STALE)
    found = await connection.fetch("SELECT * FROM state_intervals WHERE machine_id = $1 ORDER BY from_time", machine_id)
    assert [
        recomputed.Span(row["from_time"], row["to_time"], (row["state"], row["program"], row["alarm"])) for row in found
    ] == spans
    for table, width_s, _ in rollup_sql.LEVELS:
        wanted = recomputed.rollups(rows, spans, timedelta(seconds=width_s))
        kept = {
            row["time"]: dict(row)
            for row in await connection.fetch(f"SELECT * FROM {table} WHERE machine_id = $1", machine_id)
        }
        missing, more = sorted(wanted.keys() - kept.keys()), sorted(kept.keys() - wanted.keys())
        assert (missing, more) == ([], []), f"{table} lacks the buckets {missing} and has {more} without samples"
        wrong = {time: different for time in kept if (different := differences(kept[time], wanted[time]))}
        assert not wrong, f"{table}: buckets whose columns are not as wanted (found, wanted): {wrong}"
    assert await marks(connection) == [], "nothing is marked any more"


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@on_both_servers
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.lists(samples, min_size=1, max_size=12), st.booleans()), min_size=1, max_size=6))
def test_late_and_out_of_order_data_give_what_all_of_them_give(
    postgres_dsn: str, runner: asyncio.Runner, messages: list[tuple[list[dict[str, Any]], bool]]
) -> None:
    machine_id = f"machine-{next(_numbers)}"

    async def run() -> None:
        async with opened(postgres_dsn) as connection:
            for some, computed_then in messages:
                await store(connection, machine_id, some)
                if computed_then:
                    await all_done(connection)
            await all_done(connection)
            await check(connection, machine_id)

    runner.run(run())


def steady(first_s: float, count: int, every_s: float = 0.5, **values: Any) -> list[dict[str, Any]]:
    base = {"temperature": 20.0, "spindle_speed": 100.0, "machine_state": "running"}
    return [
        base | {"offset_us": int((first_s + number * every_s) * 1e6), "temperature": float(number)} | values
        for number in range(count)
    ]


@on_both_servers
async def test_what_an_outage_held_back_gives_the_numbers_of_live_data(database: asyncpg.Connection) -> None:
    before, during, after = steady(0, 200), steady(100, 2000, machine_state="idle"), steady(1100, 200)
    await store(database, "cnc-late", before)
    await all_done(database)
    await store(database, "cnc-late", after)
    await all_done(database)
    states = await database.fetch("SELECT state FROM state_intervals ORDER BY from_time")
    assert [row["state"] for row in states] == ["running", "no_data", "running"], "silence is neither"
    for start in range(0, 2000, 300):
        await store(database, "cnc-late", during[start : start + 300])
        await all_done(database)
    await check(database, "cnc-late")
    for some in (before, during, after):
        await store(database, "cnc-live", some)
    await all_done(database)
    await check(database, "cnc-live")
    for table in ("rollup_10s", "rollup_1min", "rollup_1h", "state_intervals"):
        query = f"SELECT * FROM {table} WHERE machine_id = $1 ORDER BY 1, 2"
        late, live = [
            [dict(row) | {"machine_id": ""} for row in await database.fetch(query, machine_id)]
            for machine_id in ("cnc-late", "cnc-live")
        ]
        assert late == live


async def test_a_sample_on_the_edge_of_a_bucket_belongs_to_the_next_alone(database: asyncpg.Connection) -> None:
    """What is computed anew up to an edge takes nothing along that lies on it."""
    await store(database, "cnc-001", steady(0, 600))
    await all_done(database)
    await store(database, "cnc-001", steady(5.25, 1))
    await all_done(database)
    await check(database, "cnc-001")


async def test_a_hole_up_to_the_last_sample_that_is_looked_at_stays(database: asyncpg.Connection) -> None:
    """Three samples behind a change are looked at again: between the last two of them there is nothing."""
    await store(database, "cnc-001", [*steady(0, 20), *steady(100, 2), *steady(300, 1)])
    await all_done(database)
    await store(database, "cnc-001", steady(5.25, 1))
    await all_done(database)
    await check(database, "cnc-001")


async def test_marks_that_come_during_a_round_outlive_it(postgres_dsn: str, database: asyncpg.Connection) -> None:
    """A worker commits after the round has read the marks and the samples, and before it deletes marks: rule D7."""
    await store(database, "cnc-001", steady(0, 50))
    await all_done(database)
    await store(database, "cnc-001", steady(0, 50))
    async with opened(postgres_dsn) as holder, opened(postgres_dsn) as worker:
        pid = database.get_server_pid()
        # The last table that a round writes: who holds it has the round stop there, before its end.
        async with holder.transaction():
            await holder.execute("LOCK TABLE rollup_1h IN ACCESS EXCLUSIVE MODE")
            round_ = asyncio.create_task(Rollups(STALE).catch_up(database))
            await until(
                lambda: worker.fetchval("SELECT count(*) > 0 FROM pg_locks WHERE pid = $1 AND NOT granted", pid),
                what="the round reaches the last of its tables",
            )
            assert not round_.done()
            await store(worker, "cnc-001", steady(0, 50))
        assert (await round_).marks == 1, "of those that it had read"
    assert await database.fetchval("SELECT samples FROM rollup_1h") == 100, "the round had read its samples before"
    assert [mark[1] for mark in await marks(database)] == [["cnc-001"]], "the later mark is still there"
    await all_done(database)
    await check(database, "cnc-001")
    assert await database.fetchval("SELECT samples FROM rollup_1h") == 150


async def test_a_machine_that_reports_rarely_has_data_between_its_samples(database: asyncpg.Connection) -> None:
    """A sample stands for three times the smaller of the two distances before it, where that is over `stale_after`."""
    await store(database, "cnc-slow", steady(0, 10, every_s=60))
    await all_done(database)
    states = await database.fetch("SELECT state, to_time - from_time AS span FROM state_intervals ORDER BY from_time")
    # Of the first two nothing tells how rarely it reports.
    short, gap, span = STALE, timedelta(seconds=60) - STALE, timedelta(seconds=60)
    assert [tuple(row) for row in states] == [
        ("running", short),
        ("no_data", gap),
        ("running", short),
        ("no_data", gap),
        ("running", 7 * span + 3 * span),
    ]
    await check(database, "cnc-slow")


async def test_delivery_c2_what_a_replay_of_dead_frames_stores_is_computed(
    postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """The letter's good neighbours are computed long before."""
    parts = [
        msgspec.json.encode({"machine_id": "cnc-001", "timestamp": moment, "temperature": 20.0, "spindle_speed": 1.0})
        for moment in (BEGAN, BEGAN + timedelta(minutes=10))
    ]
    # By a clock that was behind, the second lies in the future.
    limits = Limits.at(BEGAN, 300, 0)
    decoded = decode(Incoming("CNC_DATA.hall.e1", {}, join(parts), next(_numbers), NOW), limits)
    await Store(database, NOW).write([decoded])
    await all_done(database)
    [letter] = await database.fetch("SELECT id, frame FROM dead_letters")
    assert letter["frame"] == 1
    done = [one async for one in dlq.replay(database, [letter["id"]], IngestSettings(postgres_dsn, retention_days=0))]
    assert [(one.samples, one.error) for one in done] == [(1, None)]
    await all_done(database)
    await check(database, "cnc-001")
    assert await database.fetchval("SELECT sum(samples) FROM rollup_1h") == 2


async def test_a_round_that_fails_leaves_its_marks(database: asyncpg.Connection) -> None:
    await store(database, "cnc-001", steady(0, 50))
    await database.execute("ALTER TABLE rollup_1h RENAME TO hidden")
    with pytest.raises(asyncpg.UndefinedTableError):
        await Rollups(STALE).catch_up(database)
    await database.execute("ALTER TABLE hidden RENAME TO rollup_1h")
    assert await database.fetchval("SELECT count(*) FROM rollup_10s") == 0
    await all_done(database)
    await check(database, "cnc-001")


async def test_partitions_of_rollups_are_made_before_the_round(database: asyncpg.Connection) -> None:
    """Late data of many days need many: made within the round, they would go with each round that fails."""
    weeks = range(400, 404)
    for week in weeks:
        await store(database, "cnc-001", steady(-week * 7 * 86_400, 1))
    await database.execute("ALTER TABLE rollup_1h RENAME TO hidden")
    made = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'rollup_10s'::regclass"
    before = await database.fetchval(made)
    with pytest.raises(asyncpg.UndefinedTableError):
        await Rollups(STALE).catch_up(database)
    assert await database.fetchval(made) - before == len(weeks)
    await database.execute("ALTER TABLE hidden RENAME TO rollup_1h")
    await all_done(database)
    await check(database, "cnc-001")


async def test_what_cannot_be_computed_is_put_aside_and_told(database: asyncpg.Connection) -> None:
    await database.execute("ALTER TABLE rollup_10s ADD CONSTRAINT no_cold CHECK (machine_id <> 'cold')")
    for machine_id in ("cold", "warm", "hot"):
        await store(database, machine_id, steady(0, 5))
    await all_done(database)
    assert {row["machine_id"] for row in await database.fetch("SELECT machine_id FROM rollup_1h")} == {"warm", "hot"}
    aside = await database.fetch("SELECT machine_ids, failure FROM dirty_ranges")
    assert [row["machine_ids"] for row in aside] == [["cold"]]
    assert "no_cold" in aside[0]["failure"]


async def test_a_mark_too_large_for_one_round_is_done_in_parts(database: asyncpg.Connection) -> None:
    await store(database, "cnc-001", steady(0, 3000, every_s=10))
    await database.execute(
        "UPDATE dirty_ranges SET from_time = (SELECT min(from_time) FROM dirty_ranges), "
        "to_time = (SELECT max(to_time) FROM dirty_ranges)"
    )
    rollups, rounds = Rollups(STALE), 0
    while (await rollups.catch_up(database)).marks:
        rounds += 1
    assert rounds > 1
    await check(database, "cnc-001")


async def test_live_samples_of_many_machines_make_one_mark(database: asyncpg.Connection) -> None:
    written = Store(database, NOW)
    messages = []
    for number in range(20):
        parts = [
            msgspec.json.encode(
                {"machine_id": f"m{number}", "timestamp": BEGAN, "temperature": 1.0, "spindle_speed": 0.0}
            )
        ]
        messages.append(decode(Incoming("CNC_DATA.hall.e1", {}, join(parts), next(_numbers), NOW), LIMITS))
    await written.write(messages)
    [mark] = await database.fetch("SELECT * FROM dirty_ranges")
    assert mark["machine_ids"] == sorted(f"m{number}" for number in range(20))
    assert (mark["from_time"], mark["to_time"]) == (BEGAN, BEGAN + timedelta(seconds=10))


@pytest.mark.parametrize(
    ("ticks", "wanted"),
    [([], []), ([5], [(5, 6)]), ([3, 1, 2], [(1, 4)]), ([-1, 0, 7, 9, 8, 11], [(-1, 1), (7, 10), (11, 12)])],
)
def test_runs(ticks: list[int], wanted: list[tuple[int, int]]) -> None:
    assert list(dirty.runs(set(ticks))) == wanted


async def test_the_columns_are_the_numeric_fields(database: asyncpg.Connection) -> None:
    rows = await database.fetch(
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'sensor_data' "
        "AND data_type IN ('double precision', 'bigint')"
    )
    assert {row["column_name"] for row in rows} == set(rollup_sql.FIELDS)
