"""The statements that compute rollups, made from the list of numeric fields."""

from typing import Final

from cncmon_core.states import MEASURED_SQL

FLOATS: Final = (
    *("temperature", "spindle_speed", "x_pos_mm", "y_pos_mm", "z_pos_mm", "feed_rate_actual"),
    *("spindle_load_percent", "total_power_kw", "anomaly_score"),
)
INTS: Final = ("active_program_line", "part_count", "tool_number")
FIELDS: Final = (*FLOATS, *INTS)
"""The numeric fields of a sample."""
STATES: Final = ("running", "idle", "alarm", "hold", "offline", "no_data")

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

_TURNS: Final = "coalesce(spindle_speed <> 0, false) OR coalesce(feed_rate_actual <> 0, false)"
_ALARM: Final = "coalesce(extras ->> 'alarm_code', extras ->> 'alarm')"


def _uniform(name: str) -> str:
    return f"(count({name}) = 0 OR count({name}) = count(*) AND min({name}) = max({name}))"


RUNS: Final = f"""
WITH spans AS MATERIALIZED (
    SELECT w.number, w.machine_id, w.ends, span.*
    FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) WITH ORDINALITY AS w(machine_id, begins, ends, number)
    CROSS JOIN LATERAL (
        SELECT min(time) AS first, max(time) AS last,
            {_uniform("machine_state")} AND {_uniform("program")} AND {_uniform("alarm")}
                AND bool_and(turns) IS NOT DISTINCT FROM bool_or(turns)
                AND bool_and(measured) IS NOT DISTINCT FROM bool_or(measured) AS uniform,
            sample_state(
                min(machine_state), sample_alarm(jsonb_build_object('alarm', min(alarm))),
                CASE WHEN bool_or(turns) THEN 1 END, NULL, coalesce(bool_or(measured), false)
            ) AS state,
            min(program) AS program, sample_alarm(jsonb_build_object('alarm', min(alarm))) AS alarm
        FROM (
            SELECT time, machine_state COLLATE "C", program COLLATE "C", {_ALARM} COLLATE "C" AS alarm,
                   CASE WHEN machine_state IS NULL THEN {_TURNS} END AS turns,
                   CASE WHEN machine_state IS NULL THEN {MEASURED_SQL} END AS measured
            FROM sensor_data
            WHERE machine_id = w.machine_id AND time >= w.begins AND time < coalesce(w.ends, 'infinity') OFFSET 0
        ) AS samples
        GROUP BY date_bin($5, time, {ORIGIN})
    ) AS span
), pieces AS (
    SELECT number, machine_id, ends, first AS begins, last, state,
           CASE WHEN state <> 'offline' THEN program END AS program,
           CASE WHEN state <> 'offline' THEN alarm END AS alarm
    FROM spans WHERE uniform
    UNION ALL
    SELECT number, machine_id, ends, told.* FROM spans CROSS JOIN LATERAL (
        SELECT DISTINCT ON (time) time AS begins, time AS last, was, CASE WHEN was <> 'offline' THEN program END,
               CASE WHEN was <> 'offline' THEN told END
        FROM (
            SELECT *, sample_state(machine_state, told, spindle_speed, feed_rate_actual, {MEASURED_SQL}) AS was
            FROM (
                SELECT *, sample_alarm(extras) AS told FROM sensor_data
                WHERE machine_id = spans.machine_id AND time >= spans.first AND time <= spans.last OFFSET 0
            ) AS samples
        ) AS samples
        ORDER BY time, array_position(ARRAY['offline', 'alarm', 'hold', 'running', 'idle'], was),
                 program COLLATE "C", told COLLATE "C"
    ) AS told
    WHERE NOT uniform
)
SELECT number, min(begins) AS begins, max(until) AS ends, min(state) AS state, min(program) AS program,
       min(alarm) AS alarm
FROM (
    SELECT *, count(*) FILTER (WHERE changed) OVER (PARTITION BY number ORDER BY begins) AS run FROM (
        SELECT *, (state, program, alarm, begins) IS DISTINCT FROM
            (lag(state) OVER t, lag(program) OVER t, lag(alarm) OVER t, lag(until) OVER t) AS changed
        FROM (
            SELECT *, CASE WHEN following - last <= $4 THEN following ELSE least(following, last + greatest($4, 3 * (
                SELECT CASE WHEN cardinality(before) = 2 THEN least(last - before[1], before[1] - before[2]) END
                FROM (
                    SELECT ARRAY(
                        SELECT DISTINCT time FROM sensor_data
                        WHERE machine_id = placed.machine_id AND time < placed.last ORDER BY time DESC LIMIT 2
                    ) AS before
                ) AS two
            ))) END AS until
            FROM (
                SELECT *, coalesce(lead(begins) OVER (PARTITION BY number ORDER BY begins), ends) AS following
                FROM pieces
            ) AS placed
        ) AS standing
        WINDOW t AS (PARTITION BY number ORDER BY begins)
    ) AS compared
) AS numbered
GROUP BY number, run
ORDER BY number, begins
"""  # noqa: S608 names from constants only
"""Runs of samples of one state, program and alarm within windows; $4: `stale_after`; $5: a width of at most that.

Most spans of that width hold samples of one state, program and alarm only. What these stand for is told by the first
and the last of them; only where there are several each sample is looked at in its turn.
"""

KNOWN: Final = """
SELECT DISTINCT i.* FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) AS w(machine_id, begins, ends)
JOIN LATERAL (
    SELECT i.machine_id, i.from_time, i.to_time, i.state, i.program, i.alarm,
           i.undivided AND i.state = 'offline' AS undivided
    FROM state_intervals i
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
    "INSERT INTO state_intervals (machine_id, from_time, to_time, state, program, alarm, undivided) SELECT * FROM "
    "unnest($1::text[], $2::timestamptz[], $3::timestamptz[], $4::text[], $5::text[], $6::text[], $7::boolean[])"
)
