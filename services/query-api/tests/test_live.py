"""GET /api/v1/live: what comes, in which order, and who is cut off."""

import asyncio
import socket
from datetime import UTC, datetime, timedelta

import pytest

from testkit.waiting import WAIT_S_MAX, until


def row(machine: str, age_s: float = 0, state: str = "running", **values) -> dict:
    time = datetime.now(UTC) - timedelta(seconds=age_s)
    return {"machine_id": machine, "time": time, "machine_state": state, **values}


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def api_knows(api, machines: int) -> None:
    """Wait until the API has seen a sample of so many machines: what it has seen is not new to a live stream."""
    seen = 0
    while seen < machines:
        listed = (await api.get("/api/v1/machines")).json()["machines"]
        seen = sum(machine["last_sample"] is not None for machine in listed)


async def test_machines_first_then_the_newest_samples_then_news(api, store):
    await store.machines("m1", "m2")
    await store.samples(row("m1", 3, temperature=1.0), row("m1", 2, temperature=2.0))
    await api_knows(api, 1)
    async with api.live() as stream:
        edges = await stream.event()
        assert (edges.name, edges.data["edges"]) == ("edges", [])
        first = await stream.event()
        assert first.name == "machines"
        assert [machine["id"] for machine in first.data["machines"]] == ["m1", "m2"]
        assert set(first.data["machines"][0]) == {"id", "site", "edge", "state", "state_since", "stale"}
        second = await stream.event()
        assert (second.name, [s["temperature"] for s in second.data["samples"]]) == ("samples", [2.0])
        await store.samples(row("m1", 1, temperature=3.0), row("m1", 0.5, temperature=4.0))
        assert [s["temperature"] for s in (await stream.event("samples")).data["samples"]] == [4.0]
    assert stream.comments[0] == "retry: 2000"


async def test_every_all_gives_each_new_sample_in_order_of_the_named_machines_only(api, store):
    await store.machines("m1", "m2", "m3")
    await store.samples(row("m1", 100), row("m2", 100), row("m3", 100))
    await api_knows(api, 3)
    async with api.live(machines="m1,m2", every="all") as stream:
        await machines_until(stream, lambda machines: [machine["id"] for machine in machines] == ["m1", "m2"])
        await store.samples(*(row(m, 90 - n / 10, temperature=n) for n in range(200) for m in ("m1", "m2", "m3")))
        got: dict[str, list[float]] = {"m1": [], "m2": []}
        while sum(map(len, got.values())) < 400:
            for sample in (await stream.event("samples")).data["samples"]:
                got[sample["machine_id"]].append(sample["temperature"])
        assert got == {"m1": list(range(200)), "m2": list(range(200))}


async def test_late_rows_do_not_go_to_live(api, store):
    await store.machines("m1")
    await store.samples(row("m1", 5, temperature=1.0))
    await api_knows(api, 1)
    async with api.live(machines="m1", every="all") as stream:
        await machines_until(stream, lambda machines: [machine["id"] for machine in machines] == ["m1"])
        await store.samples(row("m1", 3600, temperature=-1.0))
        await asyncio.sleep(0.2)
        await store.samples(row("m1", 1, temperature=2.0))
        assert [s["temperature"] for s in (await stream.event("samples")).data["samples"]] == [2.0]


async def test_clocks_that_are_wrong_do_not_stop_live(api, store):
    await store.machines("behind", "ahead")
    await store.samples(row("behind", 7200, temperature=1.0), row("ahead", -7200, temperature=1.0))
    async with api.live() as stream:
        await stream.event("samples")
        await store.samples(row("behind", 7199, temperature=2.0), row("ahead", -7201, temperature=2.0))
        got = (await stream.event("samples")).data["samples"]
        assert {sample["machine_id"]: sample["temperature"] for sample in got} == {"behind": 2.0, "ahead": 2.0}


async def machines_until(stream, holds):
    """Return the first list of machines for which a condition holds: lists of earlier ticks may come before it."""
    while True:
        machines = (await stream.event("machines")).data["machines"]
        if holds(machines):
            return machines


async def test_a_change_of_state_set_or_staleness_sends_the_machines(start_api, store):
    api = await start_api(stale_after_ms=3000)
    await store.machines("m1")
    await store.samples(row("m1"))
    async with api.live() as stream:
        await machines_until(stream, lambda machines: [m["state"] for m in machines] == ["running"])
        await store.samples(row("m1", state="alarm"))
        await machines_until(stream, lambda machines: machines[0]["state"] == "alarm")
        await store.machines("m2")
        await machines_until(stream, lambda machines: [m["id"] for m in machines] == ["m1", "m2"])
        await machines_until(stream, lambda machines: (machines[0]["state"], machines[0]["stale"]) == ("no_data", True))


async def test_nothing_new_sends_nothing(api, store):
    await store.machines("m1")
    await store.samples(row("m1", 60))
    async with api.live() as stream:
        await stream.event("samples")

        async def quiet() -> bool:
            try:
                await stream.event(timeout=0.5)  # ten ticks
            except TimeoutError:
                return True
            return False

        # What was under way may still come; what is sent with every tick would come for ever.
        await until(quiet, 30)


async def test_an_idle_stream_is_told_that_there_is_nothing_to_tell(api, store, monkeypatch):
    monkeypatch.setattr("cncmon_api.sse.ALIVE_S", 0.1)
    async with api.live() as stream:
        moments = [at((await stream.event("alive")).data["now"]) for _ in range(3)]
        assert moments == sorted(moments)


async def heartbeat(store, edge: str, age_s: float) -> datetime:
    moment = datetime.now(UTC) - timedelta(seconds=age_s)
    await store.connection.execute(
        "INSERT INTO edges VALUES ('plant-a', $1, 'b', $2, $2, '{}') "
        "ON CONFLICT (site, edge) DO UPDATE SET received = excluded.received",
        *(edge, moment),
    )
    return moment


async def test_edges_that_fall_silent_and_are_heard_of_again_are_told_with_their_machines(start_api, store):
    api = await start_api(edge_stale_after_ms=3_600_000)
    await store.machines("m1", "m2")
    await heartbeat(store, "edge-1", 0)
    silent = await heartbeat(store, "edge-0", 7200)

    async def edges(stream) -> list[tuple[object, ...]]:
        told = (await stream.event("edges")).data["edges"]
        return [(one["edge"], one["silent_since"] and at(one["silent_since"]), one["machines"]) for one in told]

    async with api.live() as stream:
        while await edges(stream) != [("edge-0", silent, 0), ("edge-1", None, 2)]:
            pass
        silent_now = await heartbeat(store, "edge-1", 7200)
        await heartbeat(store, "edge-0", 0)
        while await edges(stream) != [("edge-0", None, 0), ("edge-1", silent_now, 2)]:
            pass


class AnHourLater(datetime):
    """A clock by which every sample is stale."""

    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) + timedelta(hours=1)


async def test_while_the_database_hangs_that_is_told_and_nothing_is_said_of_the_machines(start_api, store, monkeypatch):
    """Neither to streams that are open nor to new ones; whoever asks gets an answer at once."""
    api = await start_api(stale_after_ms=600_000)
    await store.machines("m1")
    await store.samples(row("m1", 0))
    async with api.live() as stream:
        await machines_until(stream, lambda machines: [m["state"] for m in machines] == ["running"])
        async with store.connection.transaction():
            await store.connection.execute("LOCK TABLE machines IN ACCESS EXCLUSIVE MODE")
            told = (await stream.event("status")).data
            assert told == {"database": "unavailable", "message": told["message"]}
            assert "does not answer" in told["message"]
            assert (await api.get("/api/v1/machines")).status_code == 503
            monkeypatch.setattr("cncmon_api.live.datetime", AnHourLater)
            async with api.live() as other:
                assert (await other.event()).data == told
                assert (await other.event()).name == "edges"
                (machine,) = (await other.event("machines")).data["machines"]
                assert machine["state"] == "running", "as it was when the database last answered"
        await stream.database_ok()


async def test_streams_beyond_the_limit_are_refused_and_a_place_becomes_free(start_api):
    api = await start_api(live_clients_max=2)
    async with api.live() as one, api.live():
        refused = await api.get("/api/v1/live")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["detail"].startswith("There are 2 live streams")
        await one.event("machines")
    await asyncio.sleep(0.2)
    async with api.live() as stream:
        await stream.event("machines")
    await asyncio.sleep(0.2)
    assert (await api.json("/api/v1/status"))["live_clients"] == 0


async def test_a_client_that_does_not_read_is_dropped_and_others_are_not(start_api, store):
    api = await start_api(live_queue_max=5, tick_ms=50)
    await store.machines("m1")
    before = await api.metric("cncmon_api_live_clients_dropped_total")
    with socket.create_connection(("127.0.0.1", api.port)) as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.sendall(b"GET /api/v1/live?machines=m1&every=all HTTP/1.1\r\nHost: x\r\n\r\n")
        async with api.live(machines="m1", every="all") as reader, asyncio.timeout(WAIT_S_MAX):
            await machines_until(reader, lambda machines: [m["id"] for m in machines] == ["m1"])
            seen = sent = 0
            while await api.metric("cncmon_api_live_clients_dropped_total") == before:
                await store.samples(*(row("m1", program="x" * 1000) for _ in range(300)))
                sent += 1
                while seen < sent:
                    await reader.event("samples")
                    seen += 1
    assert (await api.json("/api/v1/status"))["live_clients"] <= 1


@pytest.mark.parametrize(
    "query",
    [{"every": "all"}, {"every": "some"}, {"every": "all", "machines": ",".join(map(str, range(21)))},
     {"machines": ",".join(map(str, range(501)))}],
    ids=["all without machines", "unknown", "all of 21", "501"],
)  # fmt: skip
async def test_what_cannot_be_used_is_refused(api, query):
    answer = await api.get("/api/v1/live", **query)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"


async def test_open_streams_end_at_once_when_the_service_stops(start_api, monkeypatch):
    monkeypatch.setattr("cncmon_api.main.SHUTDOWN_S", 3600)
    api = await start_api()
    async with api.live() as one, api.live(machines="m1", every="all") as two:
        await one.event("machines")
        await two.event("machines")
        # Nobody here closes them: who waits for that waits for ever.
        stopping = asyncio.create_task(api.stop())
        await one.ended()
        await two.ended()
        await stopping
