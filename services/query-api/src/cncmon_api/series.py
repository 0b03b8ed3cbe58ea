"""Series for charts: minimum, mean and maximum of each field in buckets of equal width."""

from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Final

from cncmon_api.database import Database
from cncmon_api.models import Band, Series
from cncmon_api.params import EPOCH
from cncmon_api.rows import NUMERIC, known_state

POINTS_MAX: Final = 2_000
POINTS_DEFAULT: Final = 300
FIELDS_DEFAULT: Final = "temperature,spindle_speed,spindle_load_percent,total_power_kw"
_MS: Final = timedelta(milliseconds=1)

# date_bin with the range's own beginning as origin: bucket 0 begins there. It is in PostgreSQL since 14.
_SQL: Final = """
SELECT date_bin($4, time, $2) AS bucket, {aggregates}
FROM sensor_data
WHERE machine_id = $1 AND time >= $2 AND time < $3
GROUP BY bucket
"""

# One index look-up a bucket is cheaper than ordering all states of the range.
_STATES_SQL: Final = """
SELECT last.machine_state
FROM unnest($2::timestamptz[], $3::timestamptz[]) WITH ORDINALITY AS bucket(begins, ends, number)
LEFT JOIN LATERAL (
    SELECT machine_state
    FROM sensor_data
    WHERE machine_id = $1 AND time >= bucket.begins AND time < bucket.ends
    ORDER BY time DESC
    LIMIT 1
) AS last ON true
ORDER BY bucket.number
"""


async def read_series(
    database: Database, machine_id: str, begin: datetime, end: datetime, fields: list[str], points: int
) -> tuple[Series, bool]:
    """Return at most `points` buckets over [begin, end), and whether there was any sample.

    begin is rounded down and end up to whole ms.

    Raises:
        UnavailableError: the database can't answer.
    """
    begin_ms, end_ms = (begin - EPOCH) // _MS, -((EPOCH - end) // _MS)
    width_ms = max(1, -((begin_ms - end_ms) // points))
    begin, end = EPOCH + begin_ms * _MS, EPOCH + end_ms * _MS
    times = list(range(begin_ms, end_ms, width_ms))
    rows = await database.fetch(_sql(fields), machine_id, begin, end, width_ms * _MS)
    bands = {name: _empty(len(times)) for name in fields}
    for row in rows:
        bucket = (row["bucket"] - begin) // (width_ms * _MS)
        for position, name in enumerate(fields):
            band = bands[name]
            band.min[bucket], band.mean[bucket], band.max[bucket] = row[1 + 3 * position : 4 + 3 * position]
    states = await _states(database, machine_id, times, end_ms) if rows else [None] * len(times)
    return Series(begin, end, width_ms, times, bands, states), bool(rows)


def _empty(count: int) -> Band:
    return Band([None] * count, [None] * count, [None] * count)


def _sql(fields: list[str]) -> str:
    unknown = set(fields) - NUMERIC
    if unknown:
        raise ValueError(f"no numeric columns: {unknown}")
    columns = ", ".join(
        f"min({name})::float8 AS {name}_min, avg({name})::float8 AS {name}_mean, max({name})::float8 AS {name}_max"
        for name in fields
    )
    return _SQL.format(aggregates=columns)


async def _states(database: Database, machine_id: str, times: list[int], end_ms: int) -> list[Any]:
    moments = [EPOCH + ms * _MS for ms in [*times, end_ms]]
    spans = list(pairwise(moments))
    rows = await database.fetch(_STATES_SQL, machine_id, [b for b, _ in spans], [e for _, e in spans])
    return [known_state(row["machine_state"]) for row in rows]
