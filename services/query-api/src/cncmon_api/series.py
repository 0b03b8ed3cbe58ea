"""Series for charts: minimum, mean and maximum of each field in buckets of equal width, from samples or a rollup."""

from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Final, NamedTuple

from cncmon_api.database import Database
from cncmon_api.models import Band, Series
from cncmon_api.params import EPOCH
from cncmon_api.rows import NUMERIC, known_state
from cncmon_core.states import STATE_SQL

POINTS_MAX: Final = 2_000
POINTS_DEFAULT: Final = 300
FIELDS_DEFAULT: Final = "temperature,spindle_speed,spindle_load_percent,total_power_kw"
RAW_RANGE_MAX: Final = timedelta(hours=1)
"""Up to so long a range is read from samples: 36,000 at 10 Hz."""
ROWS_MAX: Final = 12_000
"""Rows of a rollup that are read for one series, as long as there is a coarser one."""

_MS: Final = timedelta(milliseconds=1)


class Source(NamedTuple):
    """Where a series comes from. width_ms: its own buckets, of which those of a series are made."""

    name: str
    table: str
    width_ms: int


SAMPLES: Final = Source("samples", "sensor_data", 1)
ROLLUPS: Final = (
    Source("10s", "rollup_10s", 10_000),
    Source("1min", "rollup_1min", 60_000),
    Source("1h", "rollup_1h", 3_600_000),
)

# date_bin with the range's own beginning as origin: bucket 0 begins there. It is in PostgreSQL since 14.
_SQL: Final = """
SELECT date_bin($4, time, $2) AS bucket, {aggregates}
FROM {table}
WHERE machine_id = $1 AND time >= $2 AND time < $3
GROUP BY bucket
"""
_OF_SAMPLES: Final = "min({name})::float8, avg({name})::float8, max({name})::float8"
_OF_ROLLUP: Final = (
    "min({name}_min)::float8, "
    "average(sum({name}_avg * {name}_count), sum({name}_count), min({name}_min), max({name}_max)), "
    "max({name}_max)::float8"
)

# One index look-up a bucket is cheaper than ordering all states of the range.
_STATES_SQL: Final = """
SELECT last.state
FROM unnest($2::timestamptz[], $3::timestamptz[]) WITH ORDINALITY AS bucket(begins, ends, number)
LEFT JOIN LATERAL ({state}) AS last ON true
ORDER BY bucket.number
"""
_OF_SAMPLE: Final = f"""
    SELECT {STATE_SQL} AS state FROM sensor_data
    WHERE machine_id = $1 AND time >= bucket.begins AND time < bucket.ends
    ORDER BY time DESC LIMIT 1
"""  # noqa: S608 only constants
_OF_INTERVAL: Final = """
    SELECT CASE WHEN to_time > bucket.begins THEN state END AS state FROM state_intervals
    WHERE machine_id = $1 AND from_time < bucket.ends AND state <> 'no_data'
    ORDER BY from_time DESC LIMIT 1
"""
_WAITING_SQL: Final = """
SELECT EXISTS (SELECT FROM dirty_ranges WHERE to_time > $2 AND from_time < $3 AND $1 = ANY(machine_ids)) AS waiting
"""


def source_of(span: timedelta, points: int) -> Source:
    """Return what a range is read from: what is not finer than its points, and not too many rows."""
    if span <= RAW_RANGE_MAX:
        return SAMPLES
    wanted_ms = span / points / _MS
    chosen = ROLLUPS[0]
    for rollup in ROLLUPS[1:]:
        if rollup.width_ms <= wanted_ms or span / _MS / chosen.width_ms > ROWS_MAX:
            chosen = rollup
    return chosen


async def read_series(
    database: Database, machine_id: str, begin: datetime, end: datetime, fields: list[str], points: int
) -> tuple[Series, bool]:
    """Return at most `points` buckets over [begin, end), and whether there was any sample.

    begin is rounded down and end up to whole buckets of what is read: ms of samples, 10 s, 1 min or 1 h of a rollup.
    So every peak within a range is in the series of it, however few its points.

    Raises:
        UnavailableError: the database can't answer.
    """
    source = source_of(end - begin, points)
    unit = source.width_ms
    begin_ms = (begin - EPOCH) // _MS // unit * unit
    end_ms = -((EPOCH - end) // _MS // unit) * unit
    width_ms = max(1, -(-(end_ms - begin_ms) // points // unit)) * unit
    begin, end = EPOCH + begin_ms * _MS, EPOCH + end_ms * _MS
    times = list(range(begin_ms, end_ms, width_ms))
    rows = await database.fetch(_sql(fields, source), machine_id, begin, end, width_ms * _MS)
    bands = {name: _empty(len(times)) for name in fields}
    filled = set()
    for row in rows:
        bucket = (row["bucket"] - begin) // (width_ms * _MS)
        filled.add(bucket)
        for position, name in enumerate(fields):
            band = bands[name]
            band.min[bucket], band.mean[bucket], band.max[bucket] = row[1 + 3 * position : 4 + 3 * position]
    states = await _states(database, machine_id, times, end_ms, source) if rows else [None] * len(times)
    states = [state if bucket in filled else None for bucket, state in enumerate(states)]
    complete = source is SAMPLES or not (await database.fetch(_WAITING_SQL, machine_id, begin, end))[0]["waiting"]
    return Series(begin, end, width_ms, source.name, complete, times, bands, states), bool(rows)


def _empty(count: int) -> Band:
    return Band([None] * count, [None] * count, [None] * count)


def _sql(fields: list[str], source: Source) -> str:
    unknown = set(fields) - NUMERIC
    if unknown:
        raise ValueError(f"no numeric columns: {unknown}")
    columns = _OF_SAMPLES if source is SAMPLES else _OF_ROLLUP
    return _SQL.format(table=source.table, aggregates=", ".join(columns.format(name=name) for name in fields))


async def _states(database: Database, machine_id: str, times: list[int], end_ms: int, source: Source) -> list[Any]:
    moments = [EPOCH + ms * _MS for ms in [*times, end_ms]]
    spans = list(pairwise(moments))
    sql = _STATES_SQL.format(state=_OF_SAMPLE if source is SAMPLES else _OF_INTERVAL)
    rows = await database.fetch(sql, machine_id, [b for b, _ in spans], [e for _, e in spans])
    return [known_state(row["state"]) for row in rows]
