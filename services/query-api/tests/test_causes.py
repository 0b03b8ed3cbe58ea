"""Why there is no data: what the heartbeats of the machine's edge tell of that time."""

import json
from datetime import UTC, datetime, timedelta

import pytest

NOW = datetime.now(UTC).replace(microsecond=0)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


async def interval(store, begin_s: float, end_s: float, state: str, *, undivided: bool = False) -> None:
    await store.connection.execute(
        "INSERT INTO state_intervals (machine_id, from_time, to_time, state, undivided) VALUES ('m1', $1, $2, $3, $4)",
        *(ago(begin_s), ago(end_s), state, undivided),
    )


async def edge(store, name: str, age_s: float, oldest_age_s: object = 0.4) -> None:
    document = {"buffer": {"batches": 5, "oldest_age_s": oldest_age_s}}
    await store.connection.execute(
        "INSERT INTO edges (site, edge, boot_id, time, received, document) VALUES ('plant-a', $1, 'b', $2, $2, $3)",
        *(name, datetime.now(UTC) - timedelta(seconds=age_s), json.dumps(document)),
    )


async def silence(store, name: str, begin_s: float, end_s: float) -> None:
    await store.connection.execute(
        "INSERT INTO edge_silences VALUES ('plant-a', $1, $2, $3)", name, ago(begin_s), ago(end_s)
    )


async def causes(api) -> list[tuple[str, str | None]]:
    answer = await api.json("/api/v1/machines/m1/states", **{"from": ago(3600).isoformat()})
    return [(one["state"], one["cause"]) for one in answer["intervals"]]


@pytest.mark.parametrize(
    ("age_s", "oldest_age_s", "silent", "within", "since"),
    [
        pytest.param(1, 0.4, None, "unknown", "unknown", id="the edge is well, and does not read it"),
        pytest.param(100, 0.4, None, "unknown", "edge_silent", id="the edge is silent now"),
        pytest.param(1, 0.4, (2000, 1700), "edge_silent", "unknown", id="it was silent then"),
        pytest.param(1, 0.4, (5000, 4000), "unknown", "unknown", id="it was silent before"),
        pytest.param(1, 3000, None, "late", "late", id="it has samples of then"),
        pytest.param(1, 600, None, "unknown", "late", id="it has samples of after that alone"),
        pytest.param(100, 3000, None, "late", "edge_silent", id="it is silent, with what it told of last"),
        pytest.param(1, "soon", None, "unknown", "unknown", id="no number"),
    ],
)
async def test_the_cause_of_no_data(api, store, age_s, oldest_age_s, silent, within, since):
    """Within a history, from 2,000 s to 1,500 s ago, and since its end 200 s ago."""
    await store.machines("m1")
    await edge(store, "edge-1", age_s, oldest_age_s)
    if silent:
        await silence(store, "edge-1", *silent)
        await silence(store, "another", 3000, 0)
    for begin_s, end_s, state in ((2500, 2000, "running"), (2000, 1500, "no_data"), (1500, 200, "idle")):
        await interval(store, begin_s, end_s, state)
    assert await causes(api) == [("running", None), ("no_data", within), ("idle", None), ("no_data", since)]


async def test_the_owner_of_then_counts(api, store):
    await store.machines("m1")
    for name, begin in (("before", "-infinity"), ("edge-1", ago(1000).isoformat())):
        await store.connection.execute(
            "INSERT INTO machine_owners VALUES ('m1', 'plant-a', $1, $2::text::timestamptz)", name, begin
        )
        await edge(store, name, 1)
    await silence(store, "before", 2000, 1900)
    await silence(store, "edge-1", 300, 200)
    for begin_s, end_s, state in ((2500, 2000, "no_data"), (2000, 1500, "idle"), (1500, 300, "no_data")):
        await interval(store, begin_s, end_s, state)
    await interval(store, 300, -1000, "running")
    await silence(store, "before", 1400, 1300)
    assert await causes(api) == [("no_data", "unknown"), ("idle", None), ("no_data", "edge_silent"), ("running", None)]


async def test_an_offline_of_before_says_that_it_may_be_either(api, store):
    await store.machines("m1")
    await interval(store, 900, 600, "offline", undivided=True)
    await interval(store, 600, 300, "running", undivided=True)
    await interval(store, 300, -1000, "offline")
    assert await causes(api) == [("offline", "undivided"), ("running", None), ("offline", None)]


async def test_who_may_not_see_edges_is_told_no_cause(api, store):
    await store.machines("m1")
    await edge(store, "edge-1", 100)
    await interval(store, 900, 600, "running")
    await store.connection.execute("DROP TABLE edge_silences")
    assert await causes(api) == [("running", None), ("no_data", "unknown")]
