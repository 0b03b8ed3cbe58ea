"""One rule for a state: wall, live, samples, series, intervals and rollups tell the same word of the same sample."""

from datetime import UTC, datetime, timedelta

from cncmon_ingest.rollup_sql import STATES
from testkit.ingest import compute_rollups

SAMPLES = {
    "running": ({"machine_state": "running", "spindle_speed": 0.0}, "running"),
    "running-alarm-code": (
        {"machine_state": "running", "temperature": 20.0, "extras": '{"alarm_code": 1001}'},
        "alarm",
    ),
    "running-alarm-0": ({"machine_state": "running", "temperature": 20.0, "extras": '{"alarm_code": 0}'}, "running"),
    "running-nothing-else": ({"machine_state": "running"}, "running"),
    "hold-alarm-text": ({"machine_state": "hold", "extras": '{"alarm": "E5"}'}, "alarm"),
    "hold": ({"machine_state": "hold", "temperature": 20.0}, "hold"),
    "alarm-without-a-code": ({"machine_state": "alarm", "temperature": 20.0}, "alarm"),
    "offline-alarm-code": ({"machine_state": "offline", "extras": '{"alarm_code": 7}'}, "offline"),
    "no-state-spindle": ({"spindle_speed": 900.0}, "running"),
    "no-state-feed": ({"feed_rate_actual": -1.5}, "running"),
    "no-state-still": ({"temperature": 20.0, "spindle_speed": 0.0}, "idle"),
    "no-state-alarm-code": ({"spindle_speed": 900.0, "extras": '{"alarm_code": "A1"}'}, "alarm"),
    "no-state-nothing-measured": ({"anomaly_score": 0.5, "part_count": 3}, "offline"),
}


async def test_a_sample_is_the_same_state_everywhere(api, store):
    now = datetime.now(UTC)
    wanted = {machine: state for machine, (_, state) in SAMPLES.items()}
    await store.machines(*SAMPLES)
    await store.samples(
        *(
            {"machine_id": machine, "time": now - timedelta(seconds=seconds)} | values
            for machine, (values, _) in SAMPLES.items()
            for seconds in (3, 2)
        )
    )
    await compute_rollups(store.connection, now - timedelta(hours=1), now + timedelta(hours=1))

    wall = {one["id"]: one for one in await api.machines()}
    assert {machine: one["state"] for machine, one in wall.items()} == wanted
    assert {machine: one["last_sample"]["state"] for machine, one in wall.items()} == wanted
    for machine, (values, _) in SAMPLES.items():
        assert wall[machine]["last_sample"]["machine_state"] == values.get("machine_state"), "the controller's own word"
        assert datetime.fromisoformat(wall[machine]["state_since"]) == now - timedelta(seconds=3)

    async with api.live() as stream:
        told = (await stream.event("machines")).data["machines"]
        assert {one["id"]: one["state"] for one in told} == wanted
        newest = (await stream.event("samples")).data["samples"]
        assert {one["machine_id"]: one["state"] for one in newest} == wanted

    for machine, state in wanted.items():
        path = f"/api/v1/machines/{machine}"
        samples = (await api.json(f"{path}/samples"))["samples"]
        assert [sample["state"] for sample in samples] == [state, state]
        assert {*(await api.json(f"{path}/series"))["states"]} == {None, state}
        intervals = (await api.json(f"{path}/states"))["intervals"]
        assert [one["state"] for one in intervals if one["to"] > one["from"]][-1] == state, machine

    columns = ", ".join(f"sum({state}_us)::bigint AS {state}" for state in STATES)
    rows = await store.connection.fetch(f"SELECT machine_id, {columns} FROM rollup_10s GROUP BY 1")
    assert {row["machine_id"]: max(STATES, key=lambda state: row[state]) for row in rows} == wanted
