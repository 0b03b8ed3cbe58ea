"""Series from rollups, and state intervals."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cncmon_api import series
from testkit.ingest import compute_rollups

NOW = datetime.now(UTC).replace(microsecond=0)
T0 = NOW.replace(hour=0, minute=0, second=0) - timedelta(days=40)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
STATES = ("running", "idle", "alarm", "hold")


def at(minute: int) -> float:
    """Return the temperature of a minute: a wave, and here and there a peak that lasts for one sample."""
    return 500.0 + minute if minute % 997 == 0 else minute % 60 / 4


async def fill(store: Any, days: int = 40) -> None:
    await store.machines("m1")
    minutes = days * 24 * 60
    await store.samples(
        *(
            {
                "machine_id": "m1",
                "time": T0 + timedelta(minutes=minute, seconds=20),
                "temperature": at(minute),
                "machine_state": STATES[minute // 500 % 4],
            }
            for minute in range(minutes)
        )
    )
    await compute(store)


async def compute(store: Any) -> None:
    await compute_rollups(store.connection, T0 - DAY, NOW + DAY)


def rfc3339(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


async def get(api: Any, begin: datetime, end: datetime, **query: Any) -> Any:
    return await api.json(
        "/api/v1/machines/m1/series", **{"from": rfc3339(begin), "to": rfc3339(end)}, fields="temperature", **query
    )


async def test_no_peak_is_lost_at_any_width(api, store):
    await fill(store)
    ranges = [(HOUR, 700), (2 * HOUR, 300), (DAY, 100), (DAY, 2000), (7 * DAY, 300), (30 * DAY, 2000), (40 * DAY, 3)]
    seen = set()
    for (span, points), first in itertools.product(ranges, (timedelta(0), timedelta(minutes=17, seconds=3))):
        answer = await get(api, T0 + first, min(T0 + first + span, T0 + 40 * DAY), points=points)
        seen.add(answer["source"])
        assert len(answer["times"]) <= points
        assert answer["complete"]
        begins = [datetime.fromtimestamp(ms / 1000, UTC) for ms in answer["times"]]
        band = answer["fields"]["temperature"]
        for bucket, begin in enumerate(begins):
            end = min(begin + timedelta(milliseconds=answer["bucket_ms"]), datetime.fromisoformat(answer["to"]))
            # Samples lie 20 s behind each full minute.
            low, high = (-(-(moment - T0 - timedelta(seconds=20)) // timedelta(minutes=1)) for moment in (begin, end))
            values = [at(minute) for minute in range(low, min(high, 40 * 1440))]
            assert band["min"][bucket] == min(values, default=None)
            assert band["max"][bucket] == max(values, default=None)
            if values:
                assert band["mean"][bucket] == pytest.approx(sum(values) / len(values))
    assert seen == {"samples", "10s", "1min", "1h"}


async def test_the_last_state_of_each_bucket_is_that_of_the_samples(api, store):
    await fill(store, days=3)
    answer = await get(api, T0, T0 + DAY, points=144)
    assert answer["source"] == "1min"
    # The state of a minute's sample lasts into the next minute.
    wanted = [STATES[(10 * bucket + 9) // 500 % 4] for bucket in range(144)]
    assert answer["states"] == wanted


async def test_what_waits_to_be_computed_is_told(api, store):
    await fill(store, days=3)
    assert (await get(api, T0, T0 + DAY))["complete"]
    await store.connection.execute(
        "INSERT INTO dirty_ranges (machine_ids, from_time, to_time) VALUES ('{m1}', $1, $2)", T0, T0 + HOUR
    )
    assert not (await get(api, T0, T0 + DAY))["complete"]
    assert (await get(api, T0 + DAY, T0 + 2 * DAY))["complete"]
    assert (await get(api, T0, T0 + HOUR))["complete"], "samples are all there is to know"


@pytest.mark.parametrize(
    ("span", "points", "source"),
    [
        (HOUR, 300, "samples"),
        (HOUR + timedelta(milliseconds=1), 2000, "10s"),
        (DAY, 2000, "10s"),
        (DAY, 300, "1min"),
        (7 * DAY, 2000, "1min"),
        (30 * DAY, 2000, "1h"),
        (366 * DAY, 2000, "1h"),
    ],
)
def test_source_is_as_fine_as_the_points_and_as_small_as_can_be(span, points, source):
    assert series.source_of(span, points).name == source


async def states(api: Any, begin: datetime, end: datetime, **query: Any) -> Any:
    return await api.json("/api/v1/machines/m1/states", **{"from": rfc3339(begin), "to": rfc3339(end)}, **query)


async def test_states_have_no_holes_and_end_with_no_data(api, store):
    await fill(store, days=3)
    answer = await states(api, T0 + HOUR, NOW + DAY)
    found = answer["intervals"]
    assert found[0]["from"] == rfc3339(T0 + HOUR)
    for before, after in itertools.pairwise(found):
        assert before["to"] == after["from"]
        assert before["state"] != after["state"]
    assert found[-1]["state"] == "no_data"
    last = T0 + timedelta(minutes=3 * 1440 - 1, seconds=20)
    # Minutes apart: a sample stands for three of its distances.
    assert datetime.fromisoformat(found[-1]["from"]) == last + timedelta(minutes=3)
    assert datetime.fromisoformat(found[-1]["to"]) >= NOW
    assert answer["to"] == found[-1]["to"]


async def test_states_come_in_parts(api, store):
    await fill(store, days=3)
    whole = (await states(api, T0, T0 + 3 * DAY))["intervals"]
    parts, begin = [], rfc3339(T0)
    while begin:
        answer = await api.json("/api/v1/machines/m1/states", **{"from": begin, "to": rfc3339(T0 + 3 * DAY)}, limit=2)
        assert len(answer["intervals"]) <= 3
        parts += answer["intervals"]
        begin = answer["next_from"]
    assert parts == whole


async def test_states_of_nobody_are_404_and_of_a_silent_time_none(api, store):
    answer = await api.get("/api/v1/machines/nobody/states")
    assert answer.status_code == 404
    await fill(store, days=3)
    assert (await states(api, T0 - 2 * DAY, T0 - DAY))["intervals"] == []
    [only] = (await states(api, T0 + 5 * DAY, T0 + 6 * DAY))["intervals"]
    assert (only["state"], only["cause"]) == ("no_data", "unknown")
