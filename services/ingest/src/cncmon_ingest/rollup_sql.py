"""The statements that compute rollups, made from the list of numeric fields."""

from typing import Final

FLOATS: Final = (
    *("temperature", "spindle_speed", "x_pos_mm", "y_pos_mm", "z_pos_mm", "feed_rate_actual"),
    *("spindle_load_percent", "total_power_kw", "anomaly_score"),
)
INTS: Final = ("active_program_line", "part_count", "tool_number")
FIELDS: Final = (*FLOATS, *INTS)
"""The numeric fields of a sample."""
STATES: Final = ("running", "idle", "alarm", "hold", "offline")

ORIGIN: Final = "TIMESTAMPTZ '2000-01-01 00:00:00+00'"
"""Where buckets are counted from; with it those of 10 s, 1 min and 1 h begin with the minute and the hour."""

_STATISTICS: Final = ("count", "min", "max", "avg", "last")
COLUMNS: Final = ", ".join(
    ("time", "machine_id", "samples", *(f"{state}_us" for state in STATES),
     *(f"{field}_{name}" for field in FIELDS for name in _STATISTICS))
)  # fmt: skip
_UPDATES: Final = ", ".join(f"{name} = excluded.{name}" for name in COLUMNS.split(", ")[2:])

# The interval that a bucket begins in, and those that begin in it: found by the key, however many there are.
_STATES: Final = """
CROSS JOIN LATERAL (
    SELECT {sums} FROM state_intervals i
    WHERE i.machine_id = r.machine_id AND i.from_time < bucket + INTERVAL '{width}' AND i.to_time > bucket
      AND i.from_time >= coalesce((
        SELECT b.from_time FROM state_intervals b
        WHERE b.machine_id = r.machine_id AND b.from_time <= bucket ORDER BY b.from_time DESC LIMIT 1
      ), bucket)
) AS states
"""
_SECONDS: Final = "extract(epoch FROM least(i.to_time, bucket + INTERVAL '{width}') - greatest(i.from_time, bucket))"

_INSERT: Final = """
INSERT INTO {target} ({columns})
SELECT bucket, r.machine_id, agg.samples, {states}, {values}
FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) AS r(machine_id, begins, ends)
CROSS JOIN LATERAL (
    SELECT date_bin('{width}', time, {origin}) AS bucket, {aggregates}
    FROM {source} WHERE machine_id = r.machine_id AND time >= r.begins AND time < r.ends GROUP BY 1
) AS agg
{joins}
ON CONFLICT (machine_id, time) DO UPDATE SET {updates}
"""

_LATEST: Final = """
CROSS JOIN LATERAL (
    SELECT {values} FROM sensor_data s WHERE s.machine_id = r.machine_id AND s.time = agg.last_time
) AS latest
"""

# Most often the last sample has the field.
_LAST: Final = """CASE WHEN latest.{field} IS NOT NULL OR agg.{field}_count = 0 THEN latest.{field} ELSE (
    SELECT s.{field} FROM sensor_data s
    WHERE s.machine_id = r.machine_id AND s.time >= bucket AND s.time < agg.last_time AND s.{field} IS NOT NULL
    ORDER BY s.time DESC, s.{field} DESC LIMIT 1
) END"""


def _of(template: str) -> str:
    return ", ".join(template.format(field=field) for field in FIELDS)


def _insert(target: str, source: str, width: str, aggregates: str, values: str, joins: str = "") -> str:
    seconds = _SECONDS.format(width=width)
    sums = ", ".join(
        f"coalesce(sum({seconds}) FILTER (WHERE i.state = '{state}') * 1000000, 0)::bigint AS {state}"
        for state in STATES
    )
    return _INSERT.format(
        target=target,
        source=source,
        width=width,
        origin=ORIGIN,
        columns=COLUMNS,
        updates=_UPDATES,
        states=", ".join(f"states.{state}" for state in STATES),
        aggregates=aggregates,
        values=values,
        joins=joins + _STATES.format(sums=sums, width=width),
    )


def _sum(field: str) -> str:
    # Whole numbers can't add up to what is out of range.
    return f"summand({field})" if field in FLOATS else f"{field}::float8"


_FROM_SAMPLES: Final = _insert(
    "rollup_10s",
    "sensor_data",
    "10 seconds",
    "count(*) AS samples, max(time) AS last_time, "
    + ", ".join(
        f"count({field}) AS {field}_count, min({field}) AS {field}_min, max({field}) AS {field}_max, "
        f"average(sum({_sum(field)}), count({field}), min({field}), max({field})) AS {field}_avg"
        for field in FIELDS
    ),
    ", ".join(f"{field}_count, {field}_min, {field}_max, {field}_avg, {_LAST.format(field=field)}" for field in FIELDS),
    _LATEST.format(values=_of("max({field}) AS {field}")),
)


def _from_finer(target: str, source: str, width: str) -> str:
    return _insert(
        target,
        source,
        width,
        "sum(samples) AS samples, "
        + _of(
            "sum({field}_count) AS {field}_count, min({field}_min) AS {field}_min, max({field}_max) AS {field}_max, "
            "average(sum({field}_avg * {field}_count), sum({field}_count), min({field}_min), max({field}_max)) "
            "AS {field}_avg, "
            "(array_agg({field}_last ORDER BY time DESC) FILTER (WHERE {field}_last IS NOT NULL))[1] AS {field}_last"
        ),
        _of("{field}_count, {field}_min, {field}_max, {field}_avg, {field}_last"),
    )


LEVELS: Final = (
    ("rollup_10s", 10, _FROM_SAMPLES),
    ("rollup_1min", 60, _from_finer("rollup_1min", "rollup_10s", "1 minute")),
    ("rollup_1h", 3600, _from_finer("rollup_1h", "rollup_1min", "1 hour")),
)
"""Table, width of its buckets in seconds, and the statement that computes them from the level before, for
machines, begins and ends of ranges in whole buckets.
"""

NEIGHBOURS: Final = """
SELECT r.number, (
    SELECT time FROM sensor_data WHERE machine_id = r.machine_id AND time < r.begins ORDER BY time DESC LIMIT 1
) AS before, ARRAY(
    SELECT DISTINCT time FROM sensor_data WHERE machine_id = r.machine_id AND time >= r.ends ORDER BY time LIMIT 3
) AS behind
FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) WITH ORDINALITY AS r(machine_id, begins, ends, number)
"""
"""The last sample before each range, and the three next behind it: as far as a change of the range can be felt."""

_MEASURED: Final = ", ".join(FLOATS[:-1])

RUNS: Final = f"""
SELECT w.number, runs.begins, runs.ends, runs.state, runs.program, runs.alarm
FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) WITH ORDINALITY AS w(machine_id, begins, ends, number)
CROSS JOIN LATERAL (
    SELECT min(time) AS begins, max(until) AS ends, min(state) AS state, min(program) AS program, min(alarm) AS alarm
    FROM (
        SELECT *, count(*) FILTER (WHERE changed) OVER (ORDER BY time) AS run FROM (
            SELECT *, (state, program, alarm, time) IS DISTINCT FROM
                (lag(state) OVER t, lag(program) OVER t, lag(alarm) OVER t, lag(until) OVER t) AS changed
            FROM (
                SELECT *, least(following, time + greatest($4::interval, 3 * least(
                    CASE WHEN two_before IS NOT NULL THEN time - one_before END, one_before - two_before))) AS until
                FROM (
                    SELECT *, lead(time) OVER t AS following, lag(time) OVER t AS one_before,
                           lag(time, 2) OVER t AS two_before
                    FROM (
                        SELECT DISTINCT ON (time) time, state, CASE WHEN state <> 'offline' THEN program END AS program,
                               CASE WHEN state <> 'offline' THEN alarm END AS alarm
                        FROM (
                            SELECT time, program, alarm, sample_state(machine_state, alarm, spindle_speed,
                                feed_rate_actual, num_nonnulls({_MEASURED}) > 0) AS state
                            FROM (
                                SELECT *, sample_alarm(extras) AS alarm FROM sensor_data s
                                WHERE s.machine_id = w.machine_id AND s.time <= coalesce(w.ends, 'infinity')
                                  AND s.time >= coalesce((
                                    SELECT min(time) FROM (
                                        SELECT DISTINCT time FROM sensor_data
                                        WHERE machine_id = w.machine_id AND time < w.begins ORDER BY time DESC LIMIT 2
                                    ) AS two), w.begins)
                            ) AS samples
                        ) AS told
                        ORDER BY time, array_position(ARRAY['offline', 'alarm', 'hold', 'running', 'idle'], state),
                                 program COLLATE "C", alarm COLLATE "C"
                    ) AS of_each_moment WINDOW t AS (ORDER BY time)
                ) AS placed
            ) AS standing
            WHERE time >= w.begins AND (w.ends IS NULL OR time < w.ends)
            WINDOW t AS (ORDER BY time)
        ) AS compared
    ) AS numbered
    GROUP BY run
) AS runs
ORDER BY w.number, runs.begins
"""  # noqa: S608 names from constants only
"""Runs of samples of one state, program and alarm within windows; $4: `stale_after`."""

KNOWN: Final = """
SELECT DISTINCT i.* FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) AS w(machine_id, begins, ends)
JOIN LATERAL (
    SELECT i.machine_id, i.from_time, i.to_time, i.state, i.program, i.alarm FROM state_intervals i
    WHERE i.machine_id = w.machine_id AND i.from_time <= coalesce(w.ends, 'infinity') AND i.to_time >= w.begins
      AND i.from_time >= coalesce((
        SELECT b.from_time FROM state_intervals b
        WHERE b.machine_id = w.machine_id AND b.from_time < w.begins ORDER BY b.from_time DESC LIMIT 1
      ), w.begins)
) AS i ON true
"""
"""The state intervals that lie in windows or meet them."""

DELETE_STATES: Final = (
    "DELETE FROM state_intervals USING unnest($1::text[], $2::timestamptz[]) AS k(machine_id, from_time) "
    "WHERE (state_intervals.machine_id, state_intervals.from_time) = (k.machine_id, k.from_time)"
)
INSERT_STATES: Final = (
    "INSERT INTO state_intervals (machine_id, from_time, to_time, state, program, alarm) "
    "SELECT * FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[], $4::text[], $5::text[], $6::text[])"
)
