"""GET /api/v1/machines: state, since when, stale."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from cncmon_api import poller
from cncmon_api.params import MACHINES_MAX


def row(machine: str, age_s: float, state: str | None) -> dict:
    return {"machine_id": machine, "time": datetime.now(UTC) - timedelta(seconds=age_s), "machine_state": state}


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def test_machines_are_sorted_and_a_machine_without_samples_is_there(api, store):
    await store.machines("b", "a", "A")
    await api.machines()
    answer = await api.json("/api/v1/machines")
    assert [machine["id"] for machine in answer["machines"]] == ["A", "a", "b"]
    assert answer["machines"][1] == {
        "id": "a", "site": "plant-a", "edge": "edge-1", "state": "no_data", "state_since": None, "stale": True,
        "last_sample": None,
    }  # fmt: skip
    assert abs(at(answer["now"]) - datetime.now(UTC)) < timedelta(seconds=5)


async def test_a_known_state_since_its_first_sample(start_api, store):
    rows = [
        row("m1", age, state)
        for age, state in [(9, "idle"), (8, "running"), (7, "alarm"), (6, "running"), (5, "running"), (1, "running")]
    ]
    await store.machines("m1")
    await store.samples(*rows)
    (machine,) = await (await start_api()).machines()
    assert (machine["state"], machine["stale"]) == ("running", False)
    assert at(machine["state_since"]) == rows[3]["time"]
    assert at(machine["last_sample"]["timestamp"]) == rows[-1]["time"]


@pytest.mark.parametrize(
    ("ages_s", "expected"),
    [
        pytest.param([3000, 1], 0, id="the first sample there is, within the look-back"),
        pytest.param([4000, 3000, 1], None, id="longer ago than the look-back"),
    ],
)
async def test_a_state_without_a_change(start_api, store, ages_s, expected):
    rows = [row("m1", age, "running") for age in ages_s]
    await store.machines("m1")
    await store.samples(*rows)
    (machine,) = await (await start_api()).machines()
    since = machine["state_since"]
    assert since is None if expected is None else at(since) == rows[expected]["time"]


async def test_the_state_is_followed_from_then_on(api, store):
    await store.machines("m1")
    first = row("m1", 5, "running")
    await store.samples(first)
    (machine,) = await api.machines()
    assert at(machine["state_since"]) == first["time"]
    alarm = row("m1", 3, "alarm")
    await store.samples(row("m1", 4, "running"), alarm, row("m1", 2, "alarm"))
    (machine,) = await api.machines()
    assert (machine["state"], at(machine["state_since"])) == ("alarm", alarm["time"])


async def test_a_change_among_more_rows_than_one_tick_reads_is_found(start_api, store):
    api = await start_api(tick_ms=1000, idle_tick_ms=60_000)
    await store.machines("m1")
    await store.samples(row("m1", 30, "running"))
    await api.json("/api/v1/machines")
    begin = row("m1", 20, "idle")
    await store.samples(begin, *(row("m1", 19 - n / 10, "idle") for n in range(150)))
    await asyncio.sleep(1.1)
    (machine,) = await api.machines()
    assert (machine["state"], at(machine["state_since"])) == ("idle", begin["time"])


async def test_silence_is_no_data_since_the_last_sample(start_api, store):
    api = await start_api(stale_after_ms=1000)
    last = row("m1", 0.2, "running")
    await store.machines("m1")
    await store.samples(last)
    (machine,) = await api.machines()
    assert (machine["state"], machine["stale"]) == ("running", False)
    await asyncio.sleep(1)
    (machine,) = await api.machines()
    assert (machine["state"], machine["stale"], at(machine["state_since"])) == ("no_data", True, last["time"])
    assert machine["last_sample"]["machine_state"] == "running"


async def test_an_offline_that_is_not_reported_any_more_is_no_data(start_api, store):
    """Whoever reported it is silent itself."""
    api = await start_api(stale_after_ms=1000)
    rows = [row("m1", 3, "offline"), row("m1", 2, "offline")]
    await store.machines("m1")
    await store.samples(*rows)
    (machine,) = await api.machines()
    assert (machine["state"], machine["stale"], at(machine["state_since"])) == ("no_data", True, rows[1]["time"])


async def test_a_reported_offline_is_not_stale_while_reports_come(api, store):
    rows = [row("m1", 4, "running"), row("m1", 3, "offline"), row("m1", 1, "offline")]
    await store.machines("m1")
    await store.samples(*rows)
    (machine,) = await api.machines()
    assert (machine["state"], machine["stale"], at(machine["state_since"])) == ("offline", False, rows[1]["time"])


async def test_an_unknown_word_is_null(api, store):
    await store.machines("m1")
    await store.samples(row("m1", 1, "dancing"))
    (machine,) = await api.machines()
    assert machine["state"] is None


async def test_a_machine_that_moves_is_at_its_new_edge(api, store):
    await store.machines("m1")
    await api.json("/api/v1/machines")
    await store.connection.execute("UPDATE machines SET edge = 'edge-2'")
    assert (await api.machines())[0]["edge"] == "edge-2"


async def test_the_list_comes_in_pages(api, store):
    """Each machine once, in order; and no answer is larger than a page, whatever is asked for."""
    ids = sorted(f"m{number:04}" for number in range(MACHINES_MAX + 5))
    await store.machines(*ids)
    await api.machines()
    first = await api.json("/api/v1/machines")
    assert [machine["id"] for machine in first["machines"]] == ids[:MACHINES_MAX]
    rest = await api.json("/api/v1/machines", after=first["next_after"])
    assert ([machine["id"] for machine in rest["machines"]], rest["next_after"]) == (ids[MACHINES_MAX:], None)
    seen, after = [], ""
    while after is not None:
        page = await api.json("/api/v1/machines", after=after, limit=400)
        seen += [machine["id"] for machine in page["machines"]]
        after = page["next_after"]
    assert seen == ids
    assert (await api.json("/api/v1/machines", after="zzz")) | {"now": ""} == {
        "now": "",
        "machines": [],
        "next_after": None,
    }
    for limit in (0, MACHINES_MAX + 1, "x"):
        assert (await api.get("/api/v1/machines", limit=limit)).status_code == 400


async def test_the_fleet_that_is_followed_is_bounded(api, store, monkeypatch):
    monkeypatch.setattr(poller, "FLEET_MAX", 3)
    await store.machines("a", "b", "c", "d", "e")
    assert [machine["id"] for machine in await api.machines()] == ["a", "b", "c"]
    assert await api.metric("cncmon_api_machines_left_out") == 2
