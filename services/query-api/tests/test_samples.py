"""GET /api/v1/machines/{id}/samples: walks that neither skip nor repeat, ranges, tags, and input that can't be used."""

import itertools
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st

from cncmon_api import samples
from cncmon_api.database import Database
from cncmon_api.models import encode
from cncmon_api.settings import ApiSettings

T0 = datetime(2026, 11, 24, 10, tzinfo=UTC)
_names = (f"walk-{number}" for number in itertools.count())

# Few times and few values, so that equal times and wholly equal rows are common.
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "time": st.integers(0, 6).map(lambda n: T0 + timedelta(microseconds=n)),
            "temperature": st.sampled_from([None, 1.5, -2.0]),
            "machine_state": st.sampled_from([None, "running", "alarm"]),
            "program": st.sampled_from([None, "O1", "ö"]),
            "part_count": st.sampled_from([None, 7]),
            "extras": st.sampled_from([None, '{"a": 1}', '{"a": 2}']),
        }
    ),
    max_size=40,
)


@pytest.fixture
async def database(database_dsn: str):
    database = Database(ApiSettings(database_dsn=database_dsn), 2)
    await database.open()
    yield database
    await database.close()


@hypothesis.settings(
    max_examples=120, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(rows=ROWS, limits=st.lists(st.integers(1, 9), min_size=1, max_size=4))
async def test_pages_joined_are_all_rows_in_order(rows, limits, database, store):
    machine = next(_names)
    await store.samples(*({"machine_id": machine} | row for row in rows))
    walked, cursor = [], None
    for limit in itertools.cycle(limits):
        place = samples.decode_cursor(cursor) if cursor else None
        page = await samples.read_page(database, machine, T0, T0 + timedelta(seconds=1), limit, place)
        assert len(page.samples) == limit or page.next_cursor is None
        walked += page.samples
        cursor = page.next_cursor
        if cursor is None:
            break
        assert len(walked) < len(rows)
    times = [sample.timestamp for sample in walked]
    assert times == sorted(row["time"] for row in rows)
    expected = await database.fetch(
        "SELECT count(*) AS n, to_jsonb(s) AS row FROM sensor_data s WHERE machine_id = $1 GROUP BY 2", machine
    )
    assert sorted(Counter(encode(sample) for sample in walked).values()) == sorted(row["n"] for row in expected)


async def test_rows_of_one_time_keep_their_order_when_they_move_in_the_table(database, store):
    await store.samples(*({"machine_id": "m1", "time": T0, "temperature": float(n)} for n in range(4)))
    first = await samples.read_page(database, "m1", T0, T0 + timedelta(seconds=1), 2, None)
    await store.connection.execute("UPDATE sensor_data SET mode = mode WHERE temperature = 0")
    place = samples.decode_cursor(first.next_cursor)
    second = await samples.read_page(database, "m1", T0, T0 + timedelta(seconds=1), 2, place)
    assert [sample.temperature for sample in first.samples + second.samples] == [0, 1, 2, 3]


async def fill(store, count: int = 10, machine: str = "m1") -> list[datetime]:
    times = [T0 + timedelta(seconds=n) for n in range(count)]
    await store.machines(machine)
    await store.samples(
        *({"machine_id": machine, "time": time, "temperature": float(n)} for n, time in enumerate(times))
    )
    return times


async def test_from_is_inclusive_and_to_exclusive(api, store):
    await fill(store)
    answer = await api.json(
        "/api/v1/machines/m1/samples", **{"from": "2026-11-24T10:00:02Z", "to": "2026-11-24T10:00:05Z"}
    )
    assert [sample["temperature"] for sample in answer["samples"]] == [2, 3, 4]
    assert answer["next_cursor"] is None


async def test_the_range_defaults_to_the_last_ten_minutes(api, store):
    now = datetime.now(UTC)
    await store.machines("m1")
    await store.samples(
        *({"machine_id": "m1", "time": now - timedelta(minutes=m), "temperature": m} for m in (1, 9, 11))
    )
    answer = await api.json("/api/v1/machines/m1/samples")
    assert [sample["temperature"] for sample in answer["samples"]] == [9, 1]


async def test_twelve_fields_always_and_the_optional_ones_when_not_null(api, store):
    await store.machines("m1")
    full = {
        "temperature": 21.5, "spindle_speed": 2500.0, "x_pos_mm": 1.0, "y_pos_mm": 2.0, "z_pos_mm": 3.0,
        "feed_rate_actual": 500.0, "spindle_load_percent": 40.0, "machine_state": "running", "active_program_line": 12,
        "total_power_kw": 3.5, "mode": "AUTOMATIC", "program": "O1001", "part_count": 2**53 + 1, "tool_number": 3,
        "anomaly_score": 0.25,
    }  # fmt: skip
    await store.samples(
        {"machine_id": "m1", "time": T0},
        {"machine_id": "m1", "time": T0 + timedelta(microseconds=123456), "extras": '{"door_open": true}', **full},
    )
    answer = await api.get("/api/v1/machines/m1/samples", **{"from": T0.isoformat()})
    empty, whole = msgspec.json.decode(answer.content)["samples"]
    assert empty == {"machine_id": "m1", "timestamp": "2026-11-24T10:00:00Z", "state": "offline"} | dict.fromkeys(
        list(full)[:10]
    )
    assert whole == {
        "machine_id": "m1", "timestamp": "2026-11-24T10:00:00.123456Z", **full, "state": "running",
        "extras": {"door_open": True},
    }  # fmt: skip


async def test_a_state_outside_the_data_model_is_null(api, store):
    await store.machines("m1")
    await store.samples({"machine_id": "m1", "time": T0, "machine_state": "dancing"})
    answer = await api.json("/api/v1/machines/m1/samples", **{"from": T0.isoformat()})
    assert answer["samples"][0]["machine_state"] is None


async def test_a_walk_keeps_its_end_though_to_was_left_out(api, store):
    await fill(store)
    first = await api.json("/api/v1/machines/m1/samples", **{"from": T0.isoformat(), "limit": 6})
    await store.samples({"machine_id": "m1", "time": datetime.now(UTC), "temperature": 99.0})
    second = await api.json("/api/v1/machines/m1/samples", limit=6, cursor=first["next_cursor"])
    assert [sample["temperature"] for sample in second["samples"]] == [6, 7, 8, 9]
    assert second["next_cursor"] is None


async def test_ten_years_are_paged(api, store):
    await fill(store, 25)
    cursor: dict[str, Any] = {}
    walked = []
    while True:
        answer = await api.json(
            "/api/v1/machines/m1/samples",
            **{"from": "2020-01-01T00:00:00Z", "to": "2030-01-01T00:00:00Z", "limit": 10},
            **cursor,
        )
        walked += answer["samples"]
        if answer["next_cursor"] is None:
            break
        cursor = {"cursor": answer["next_cursor"]}
    assert [sample["temperature"] for sample in walked] == list(range(25))


async def test_a_closed_range_has_a_tag_that_changes_with_late_rows(api, store):
    await fill(store)
    path, query = "/api/v1/machines/m1/samples", {"from": T0.isoformat(), "to": (T0 + timedelta(hours=1)).isoformat()}
    if T0 + timedelta(hours=1, minutes=2) > datetime.now(UTC):
        query["to"] = (datetime.now(UTC) - timedelta(minutes=2)).isoformat()
    first = await api.get(path, **query)
    tag = first.headers["etag"]
    again = await api.http.get(path, params=query, headers={"If-None-Match": f'"other", W/{tag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    await store.samples({"machine_id": "m1", "time": T0 + timedelta(milliseconds=1)})
    changed = await api.http.get(path, params=query, headers={"If-None-Match": tag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != tag


async def test_an_open_range_has_no_tag(api, store):
    await fill(store)
    assert "etag" not in (await api.get("/api/v1/machines/m1/samples")).headers


@pytest.mark.parametrize(
    "query",
    [
        {"from": "yesterday"},
        {"from": "2026-11-24T10:00:00"},
        {"from": "0001-01-01T00:00:00+14:00"},
        {"from": "9999-12-31T23:59:59-14:00"},
        {"from": "1970-01-01T00:00:00+01:00"},
        {"to": "2026-11-24T10:00:00 02:00"},
        {"to": "\0"},
        {"from": "2026-11-24T11:00:00Z", "to": "2026-11-24T10:00:00Z"},
        {"limit": 0},
        {"limit": 10_001},
        {"limit": "many"},
        {"limit": "9" * 400},
        {"cursor": "nonsense"},
        {"cursor": "é"},
        {"cursor": "A" * 4000},
        {"cursor": "WzEsMiwzLDRd"},
        {"cursor": "Wy0xLDAsMV0"},
        {"cursor": "WzEsMCw5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTld"},
    ],
    ids=str,
)
async def test_what_cannot_be_used_is_refused_with_what_can(api, store, query):
    await fill(store)
    answer = await api.get("/api/v1/machines/m1/samples", **query)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert set(problem) == {"type", "title", "status", "detail", "instance"}
    assert problem["status"] == 400
    assert problem["instance"] == "/api/v1/machines/m1/samples"
    assert any(name in problem["detail"] for name in query)


INJECTIONS = [
    "m1' OR '1'='1",
    "m1'; DROP TABLE sensor_data; --",
    'm1" UNION SELECT * FROM dead_letters --',
    "m1\\'; SELECT pg_sleep(5) --",
    "$1",
    "%' OR 1=1 --",
    "m1\u2019 OR 1=1",
    "../../etc/passwd",
    "m1\0",
    "\ud7ff",
    "x" * 129,
    "x" * 5000,
]


@pytest.mark.parametrize("text", INJECTIONS, ids=repr)
async def test_injection_strings_find_nothing_and_harm_nothing(api, store, text):
    await fill(store)
    quoted = text.encode("utf-8", "surrogatepass").hex()
    path = "".join(f"%{quoted[i : i + 2]}" for i in range(0, len(quoted), 2))
    for route in ("samples", "series"):
        assert (await api.http.get(f"/api/v1/machines/{path}/{route}")).status_code == 404
    for name in ("from", "to", "limit", "cursor"):
        assert (await api.get("/api/v1/machines/m1/samples", **{name: text})).status_code == 400
    for name in ("fields", "points"):
        assert (await api.get("/api/v1/machines/m1/series", **{name: text})).status_code == 400
    assert await store.connection.fetchval("SELECT count(*) FROM sensor_data") == 10


async def test_the_session_can_only_read(database):
    with pytest.raises(Exception, match="read-only"):
        await database.fetch("DELETE FROM sensor_data")
