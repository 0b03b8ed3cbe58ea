"""Packed rows against PostgreSQL's own reading of them."""

import math
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import asyncpg
import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cncmon_core.sample import FIELDS, INT64_MAX, STATES, Sample
from cncmon_ingest import rows

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=40)
floats = st.none() | st.floats(allow_nan=False, allow_infinity=False)
whole = st.none() | st.integers(-INT64_MAX - 1, INT64_MAX)
json_values = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)

samples = st.builds(
    Sample,
    machine_id=texts.filter(lambda text: 0 < len(text.encode()) <= 128),
    timestamp=st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    machine_state=st.sampled_from([None, *sorted(STATES)]),
    extras=st.none() | st.dictionaries(texts, json_values, min_size=1, max_size=4),
    **{name: texts | st.none() for name in ("mode", "program")},
    **dict.fromkeys(("active_program_line", "part_count", "tool_number"), whole),
    **{
        name: floats
        for name in FIELDS
        if name not in ("machine_id", "timestamp", "machine_state", "extras", "mode", "program")
        and name not in ("active_program_line", "part_count", "tool_number")
    },
)


async def copy(connection: asyncpg.Connection, packed: list[bytes]) -> None:
    source = BytesIO(b"".join((rows.HEADER, *packed, rows.TRAILER)))
    await connection.copy_to_table(rows.TABLE, source=source, columns=rows.COLUMNS, format="binary")


def same(found: Any, value: Any) -> bool:
    if isinstance(value, float):
        return bool(found == value and math.copysign(1, found) == math.copysign(1, value))
    return bool(found == value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(samples, min_size=1, max_size=20))
async def test_postgresql_reads_what_was_packed(database: asyncpg.Connection, given_samples: list[Sample]) -> None:
    # One of our own in its place: for any time at all, without partitions.
    await database.execute("DROP TABLE IF EXISTS pg_temp.sensor_data")
    await database.execute("CREATE TEMP TABLE sensor_data (LIKE public.sensor_data)")
    await copy(database, [rows.pack(sample, rows.microseconds(sample.timestamp)) for sample in given_samples])
    found = await database.fetch("SELECT * FROM sensor_data ORDER BY ctid")
    for row, sample in zip(found, given_samples, strict=True):
        assert row["time"] == sample.timestamp
        for name in FIELDS:
            if name not in ("timestamp", "extras"):
                assert same(row[name], getattr(sample, name)), name
        if sample.extras is None:
            assert row["extras"] is None
        else:
            extras = msgspec.json.decode(row["extras"])
            assert extras.keys() == sample.extras.keys()
            for name, value in sample.extras.items():
                assert extras[name] == value or math.isclose(extras[name], value, rel_tol=1e-12), name


def test_columns_are_the_samples_fields() -> None:
    assert set(rows.COLUMNS) == (set(FIELDS) - {"timestamp"}) | {"time"}
    assert len(rows.COLUMNS) == len(FIELDS)


@given(st.lists(samples, max_size=30))
def test_rows_of_a_machine_lie_together_in_the_order_in_which_they_came(some: list[Sample]) -> None:
    packed = [rows.pack(sample, rows.microseconds(sample.timestamp)) for sample in some]
    of = dict(zip(packed, (sample.machine_id for sample in some), strict=True))
    sorted_rows = rows.by_machine(packed)
    machines = [of[row] for row in sorted_rows]
    assert len([name for at, name in enumerate(machines) if not at or machines[at - 1] != name]) == len(set(machines))
    for name in set(machines):
        assert [row for row in sorted_rows if of[row] == name] == [row for row in packed if of[row] == name]
