"""GET /api/v1/machines/{id}/series: buckets, holes, bounds."""

from datetime import UTC, datetime, timedelta

import pytest

T0 = datetime(2026, 11, 24, 10, tzinfo=UTC)
RANGE = {"from": "2026-11-24T10:00:00Z", "to": "2026-11-24T10:00:10Z"}
PATH = "/api/v1/machines/m1/series"


async def fill(store) -> None:
    await store.machines("m1")
    await store.samples(
        *(
            {
                "machine_id": "m1",
                "time": T0 + timedelta(seconds=s),
                "temperature": t,
                "part_count": 4,
                "machine_state": state,
            }
            for s, t, state in [
                (0, 1.0, "idle"),
                (1.5, 3.0, "running"),
                (1.9, 8.0, "alarm"),
                (8, None, "hold"),
                (10, 99.0, "idle"),
            ]
        )
    )


async def test_min_mean_max_and_last_state_with_holes_as_nulls(api, store):
    await fill(store)
    answer = await api.json(PATH, **RANGE, fields="temperature,part_count", points=5)
    ms = int(T0.timestamp() * 1000)
    hole = [None] * 3
    assert answer == {
        "from": "2026-11-24T10:00:00Z",
        "to": "2026-11-24T10:00:10Z",
        "bucket_ms": 2000,
        "source": "samples",
        "complete": True,
        "times": [ms, ms + 2000, ms + 4000, ms + 6000, ms + 8000],
        "fields": {
            "temperature": {"min": [1, *hole, None], "mean": [4, *hole, None], "max": [8, *hole, None]},
            "part_count": {name: [4, *hole, 4] for name in ("min", "mean", "max")},
        },
        "states": ["alarm", *hole, "hold"],
    }


@pytest.mark.parametrize(
    ("points", "buckets", "width_ms"), [(1, 1, 10_000), (3, 3, 3334), (2000, 2000, 5), (7, 7, 1429)]
)
async def test_never_more_buckets_than_points(api, store, points, buckets, width_ms):
    await fill(store)
    answer = await api.json(PATH, **RANGE, fields="temperature", points=points)
    assert (len(answer["times"]), answer["bucket_ms"]) == (buckets, width_ms)
    band = answer["fields"]["temperature"]
    assert {len(band["min"]), len(band["mean"]), len(band["max"]), len(answer["states"])} == {buckets}
    assert min(value for value in band["min"] if value is not None) == 1
    assert max(value for value in band["max"] if value is not None) == 8


async def test_a_range_without_samples_is_all_holes(api, store):
    await fill(store)
    answer = await api.json(PATH, **{"from": "2025-01-01T00:00:00Z", "to": "2025-01-02T00:00:00Z"}, points=4)
    assert answer["states"] == [None] * 4
    assert answer["fields"]["temperature"]["mean"] == [None] * 4


async def test_sub_millisecond_ranges_are_widened_to_whole_ms(api, store):
    await fill(store)
    query = {"from": "2026-11-24T10:00:00.0000004Z", "to": "2026-11-24T10:00:00.000100Z"}
    answer = await api.json(PATH, **query, fields="temperature")
    assert (answer["bucket_ms"], len(answer["times"]), answer["fields"]["temperature"]["mean"]) == (1, 1, [1])


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"fields": "machine_state"}, "allowed are"),
        ({"fields": "temperature,time"}, "allowed are"),
        ({"fields": "temperature;drop"}, "allowed are"),
        ({"fields": ","}, "allowed are"),
        ({"points": 0}, "points"),
        ({"points": 2001}, "points"),
        ({"from": "2016-01-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"}, "366 days"),
        ({"from": "2026-01-01T00:00:00Z", "to": "2026-01-01T00:00:00Z"}, "empty"),
    ],
    ids=str,
)
async def test_what_cannot_be_used_is_refused_with_what_can(api, store, query, said):
    await fill(store)
    answer = await api.get(PATH, **query)
    assert answer.status_code == 400
    assert said in answer.json()["detail"]


async def test_an_unknown_machine_is_not_found(api):
    answer = await api.get("/api/v1/machines/nobody/series")
    assert answer.status_code == 404
    assert "'nobody'" in answer.json()["detail"]
