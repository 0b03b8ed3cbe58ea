"""The operator on a real API server and a real NATS: the final state is right whatever happens on the way to it."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from nats.aio.client import Client

from cluster.operators import FILES, Hall, Relay, hall_of
from cncmon_core import edge_config, names
from cncmon_core.machine import Machine
from cncmon_core.machine_files import load
from cncmon_simulator import Settings as SimulatorSettings
from cncmon_simulator import documents as simulated
from cncmon_simulator import running
from cncmon_standalone.configure import apply
from testkit import ingest
from testkit.agent import running_agent, settings_for
from testkit.kubernetes import Cluster, ControlPlane

pytestmark = pytest.mark.needs("kubernetes")

QUIET_S = 1.0
"""Long enough for whatever would still be written."""


def machine(name: str, edge: str = "e1", **spec: Any) -> dict[str, Any]:
    least: dict[str, Any] = {"site": "hall", "edge": edge, "connection": {"modbus": {"host": "127.0.0.1"}}}
    if "profileRef" not in spec:
        least["signals"] = [{"name": "temperature", "register": 1}]
    return _document("Machine", name, least | spec)


def profile(name: str, register: int = 1, **spec: Any) -> dict[str, Any]:
    return _document("MachineProfile", name, {"signals": [{"name": "temperature", "register": register}]} | spec)


def _document(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "cncmon.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


@pytest.fixture
async def hall(
    resources: Cluster, namespace: str, nats_client: Client, nats_url: str, postgres_dsn: str, tmp_path: Path
) -> AsyncIterator[Hall]:
    """A namespace, and a NATS with our buckets; no operator yet."""
    await ingest.prepare(nats_client, ingest.settings_for(postgres_dsn))
    async with hall_of(resources, namespace, nats_url, nats_client, tmp_path) as made:
        yield made


async def interval_of(hall: Hall, name: str, edge: str = "e1") -> int:
    config = await hall.config(edge)
    return config.by_name[name].spec.poll_interval_ms if config and name in config.by_name else 0


async def test_made_changed_and_deleted(hall: Hall) -> None:
    operator = hall.operator()
    hall.apply(machine("m1"), machine("m2", pollIntervalMs=500))
    await hall.until_machines(["m1", "m2"])
    assert await interval_of(hall, "m2") == 500
    assert (await hall.stored()).writer == f"operator/{hall.namespace}"

    hall.apply(machine("m2", pollIntervalMs=250))

    async def changed() -> bool:
        return await interval_of(hall, "m2") == 250

    await hall.until(changed, "the interval changed")
    hall.delete("mc", "m1")
    assert await hall.machines() == ["m2"], "it is gone from its edge before it is gone"
    hall.delete("mc", "m2")
    config = await hall.config()
    assert config is not None
    assert config.machines == []
    operator.stop()


async def test_status_tells_the_truth_from_apply_to_running(hall: Hall) -> None:
    hall.operator(stale_after_s=3)
    hall.apply(machine("m1"))
    await hall.until_condition("m1", "Configured", "True", "Written")
    assert hall.conditions("m1") == {
        "Accepted": ("True", "Valid"),
        "Configured": ("True", "Written"),
        "Applied": ("Unknown", "NeverHeard"),
        "Connected": ("Unknown", "NeverHeard"),
        "Ready": ("Unknown", "NeverHeard"),
    }
    assert hall.get("mc", "m1")["status"]["state"] == "offline"

    await hall.beat(config={"revision": None})
    await hall.until_condition("m1", "Applied", "False", "Pending")
    offline = [{"id": "m1", "state": "offline", "error": "no route to host 127.0.0.1:502"}]
    await hall.beat(machines=offline)
    await hall.until_condition("m1", "Connected", "False", "Offline")
    status = hall.get("mc", "m1")["status"]
    assert "no route to host" in next(one["message"] for one in status["conditions"] if one["type"] == "Connected")

    await hall.beat()
    await hall.until_condition("m1", "Ready", "True", "AllTrue")
    status = hall.get("mc", "m1")["status"]
    assert (status["state"], status["protocol"], status["appliedRevision"]) == ("running", "modbus", 1)
    assert status["observedGeneration"] == 1

    node = hall.get("edge", "hall-e1")
    assert node["metadata"]["labels"] == {"cncmon.dev/made-from": "heartbeat"}
    await hall.until_condition("hall-e1", "Ready", "True", "AllTrue", "edge")

    async def figures() -> bool:
        shown = hall.get("edge", "hall-e1")["status"]
        return [shown.get(name) for name in ("machines", "machinesConnected", "bufferHoursLeft")] == [1, 1, 12.5]

    await hall.until(figures, "the edge's figures")

    # Nobody says that nobody says anything: an edge that falls silent is found out.
    await hall.until_condition("m1", "Connected", "Unknown", "EdgeSilent")
    assert hall.get("mc", "m1")["status"]["state"] == "offline"
    found = hall.cluster.kubectl("get", "events", "-n", hall.namespace).stdout
    for reason in ("Pending", "Offline", "Ready", "EdgeSilent"):
        assert reason in found


async def test_what_the_edge_refuses_stands_at_its_machine(hall: Hall) -> None:
    hall.operator()
    hall.apply(machine("m1"), machine("m2"))
    await hall.until_machines(["m1", "m2"])
    error = {"machine": "m1", "path": "$.spec.connection", "problem": "this edge has no driver modbus"}
    await hall.beat(config={"revision": 1, "sha256": "other", "errors": [error], "refused_revision": 2})
    await hall.until_condition("m1", "Applied", "False", "Refused")
    told = hall.get("mc", "m1")["status"]["errors"]
    assert told == [{"path": "$.spec.connection", "problem": "this edge has no driver modbus"}]
    assert hall.conditions("m2")["Applied"] == ("False", "Pending")


async def test_a_bad_machine_blocks_no_other_and_keeps_its_last_good_form(hall: Hall) -> None:
    hall.operator()
    hall.apply(profile("mill"), machine("m1", profileRef={"name": "mill"}), machine("m2"))
    await hall.until_machines(["m1", "m2"])
    hall.delete("mcp", "mill")
    hall.apply(machine("m3"), machine("m4", profileRef={"name": "lathe"}))
    await hall.until_machines(["m1", "m2", "m3"])
    await hall.until_condition("m4", "Accepted", "False", "Invalid")
    await hall.until_condition("m1", "Configured", "False", "NotAccepted")
    message = hall.get("mc", "m4")["status"]["errors"][0]["problem"]
    assert message == "there is no MachineProfile 'lathe'"
    hall.apply(profile("lathe"))
    await hall.until_machines(["m1", "m2", "m3", "m4"])
    # With profile and own signals together there are too many registers of one name: only found here.
    many = [{"name": f"s{number}", "register": number} for number in range(1000)]
    hall.apply(machine("m5", profileRef={"name": "lathe"}, signals=many))
    await hall.until_condition("m5", "Accepted", "False", "Invalid")
    assert await hall.machines() == ["m1", "m2", "m3", "m4"]


async def test_a_profile_reaches_its_machines_on_every_edge(hall: Hall) -> None:
    hall.operator()
    hall.apply(profile("mill", register=1))
    hall.apply(*(machine(f"m{n}", edge=f"e{n}", profileRef={"name": "mill"}) for n in range(3)))
    for number in range(3):
        await hall.until_machines([f"m{number}"], f"e{number}")
    hall.apply(profile("mill", register=77))

    async def reached() -> bool:
        configs = [await hall.config(f"e{n}") for n in range(3)]
        return all(c is not None and c.machines[0].spec.signals[0].register == 77 for c in configs)

    await hall.until(reached, "the profile's change on all edges")

    async def counted() -> bool:
        status = hall.get("mcp", "mill").get("status", {})
        return bool(status.get("machines") == 3)

    await hall.until(counted, "three machines counted")
    assert hall.conditions("mill", "mcp") == {"Accepted": ("True", "Valid")}


async def test_a_machine_moves_and_is_never_on_two_edges(hall: Hall) -> None:
    hall.operator()
    hall.apply(machine("m1"), machine("m2"))
    await hall.until_machines(["m1", "m2"])
    both: list[tuple[list[str] | None, list[str] | None]] = []

    async def look() -> None:
        while True:
            there, here = await hall.machines("e2"), await hall.machines("e1")
            both.append((here, there))
            await asyncio.sleep(0.001)

    looking = asyncio.create_task(look())
    hall.apply(machine("m1", edge="e2"))
    await hall.until_machines(["m1"], "e2")
    looking.cancel()
    assert await hall.machines("e1") == ["m2"]
    assert [pair for pair in both if pair == (["m1", "m2"], ["m1"])] == []


async def test_fifty_changes_while_it_is_down_are_one_document(hall: Hall) -> None:
    operator = hall.operator()
    hall.apply(*(machine(f"m{n}") for n in range(10)))
    await hall.until_machines([f"m{n}" for n in range(10)])
    operator.kill()
    before = (await hall.stored()).revision
    for number in range(40):
        hall.apply(machine(f"m{number % 5}", pollIntervalMs=1000 + number))
    hall.apply(*(machine(f"n{number}") for number in range(5)))
    hall.delete("mc", *(f"m{number}" for number in range(5, 10)), wait=False)
    hall.operator()
    expected = [f"m{n}" for n in range(5)] + [f"n{n}" for n in range(5)]
    await hall.until_machines(expected)
    await asyncio.sleep(QUIET_S)
    after = await hall.stored()
    assert after.config is not None
    assert after.revision <= before + 2
    assert after.config.by_name["m4"].spec.poll_interval_ms == 1039
    left = {item["metadata"]["name"] for item in hall.get("mc")["items"]}
    assert left == set(expected), "what was deleted could go"


async def test_of_two_exactly_one_writes_and_the_other_takes_over(hall: Hall) -> None:
    first, second = hall.operator(), hall.operator()

    async def led() -> bool:
        try:
            return first.metric("cncmon_operator_leader") + second.metric("cncmon_operator_leader") == 1
        except OSError:  # not serving yet
            return False

    await hall.until(led, "one of two leads")
    hall.apply(*(machine(f"m{n}") for n in range(5)))
    await hall.until_machines([f"m{n}" for n in range(5)])
    wrote = [one.metric("cncmon_operator_documents_written_total") for one in (first, second)]
    assert min(wrote) == 0
    leader, standby = (first, second) if first.metric("cncmon_operator_leader") else (second, first)
    leader.kill()
    hall.apply(machine("m9"))
    await hall.until_machines([*(f"m{n}" for n in range(5)), "m9"])
    assert standby.metric("cncmon_operator_leader") == 1
    # One that was frozen, and wakes when another leads, must not go on as if nothing were.
    third = hall.operator()
    standby.pause(True)
    hall.apply(machine("m9", pollIntervalMs=123))

    async def taken_over() -> bool:
        return await interval_of(hall, "m9") == 123

    await hall.until(taken_over, "the third writes")
    standby.pause(False)
    hall.apply(machine("m9", pollIntervalMs=456))

    async def written() -> bool:
        return await interval_of(hall, "m9") == 456

    await hall.until(written, "the third goes on writing")
    assert third.metric("cncmon_operator_leader") == 1
    assert standby.metric("cncmon_operator_leader") == 0


async def test_its_own_statuses_are_no_news_to_it(hall: Hall) -> None:
    operator = hall.operator()
    hall.apply(*(machine(f"m{n}") for n in range(5)))
    await hall.until_machines([f"m{n}" for n in range(5)])
    await hall.until_condition("m4", "Configured", "True", "Written")
    await asyncio.sleep(QUIET_S)
    names_ = "cncmon_operator_statuses_written_total", "cncmon_operator_documents_written_total"
    before = [operator.metric(name) for name in names_]
    requests = operator.metric("cncmon_operator_api_requests_total")
    await asyncio.sleep(3)
    assert [operator.metric(name) for name in names_] == before
    # The lease is renewed twice a second here: read and written.
    assert operator.metric("cncmon_operator_api_requests_total") - requests <= 16


async def test_statuses_are_not_written_more_often_than_agreed(hall: Hall) -> None:
    operator = hall.operator(status_interval_s=2, value_interval_s=60)
    hall.apply(machine("m1"))
    await hall.until_machines(["m1"])
    started_s, before = time.monotonic(), operator.metric("cncmon_operator_statuses_written_total")
    for number in range(30):
        seen = {"id": "m1", "state": ("connected", "offline")[number % 2], "machine_state": "idle"}
        await hall.beat(machines=[seen])
        await asyncio.sleep(0.1)
    wrote = operator.metric("cncmon_operator_statuses_written_total") - before
    # Two resources: the machine, and the edge that was heard of.
    assert wrote <= 2 * (1 + (time.monotonic() - started_s) / 2)


async def test_a_bucket_that_was_deleted_is_filled_again(hall: Hall, postgres_dsn: str) -> None:
    hall.operator(resync_s=5)
    hall.apply(machine("m1"), machine("m2", edge="e2"))
    await hall.until_machines(["m1"])
    await hall.until_machines(["m2"], "e2")
    await hall.client.jetstream().delete_key_value(names.KV_CONFIG)
    await ingest.prepare(hall.client, ingest.settings_for(postgres_dsn))
    await hall.until_machines(["m1"])
    await hall.until_machines(["m2"], "e2")


async def test_an_api_server_that_dies_is_followed_when_it_is_back(
    own_control_plane: ControlPlane, nats_client: Client, nats_url: str, postgres_dsn: str, tmp_path: Path
) -> None:
    plane = own_control_plane
    await ingest.prepare(nats_client, ingest.settings_for(postgres_dsn))
    async with hall_of(plane, "default", nats_url, nats_client, tmp_path) as hall:
        operator = hall.operator(resync_s=5)

        async def waits() -> bool:
            return "apply their definitions" in operator.log.read_text()

        await hall.until(waits, "a word on the missing definitions")
        plane.kubectl("apply", "--server-side", "-f", str(FILES / "crds"))
        plane.wait_established("machines.cncmon.dev")
        hall.apply(machine("m1"))
        await hall.until_machines(["m1"])
        plane.api.kill()
        await asyncio.sleep(2)
        assert operator.running
        plane.restart_api()
        hall.apply(machine("m2"))
        await hall.until_machines(["m1", "m2"])
        hall.delete("mc", "m1")
        assert await hall.machines() == ["m2"]


async def test_a_watch_that_falls_silent_is_made_up_for(
    own_control_plane: ControlPlane, nats_client: Client, nats_url: str, postgres_dsn: str, tmp_path: Path
) -> None:
    """Connections that are open and dead, as a firewall leaves them: what no event tells, a list does."""
    plane, relay = own_control_plane, Relay(own_control_plane.port)
    plane.kubectl("apply", "--server-side", "-f", str(FILES / "crds"))
    await ingest.prepare(nats_client, ingest.settings_for(postgres_dsn))
    async with relay.running() as port, hall_of(plane, "default", nats_url, nats_client, tmp_path) as hall:
        kubeconfig = tmp_path / "relayed"
        kubeconfig.write_text(plane.kubeconfig.read_text().replace(f":{plane.port}", f":{port}"))
        hall.operator(Cluster(kubeconfig), resync_s=5)
        hall.apply(machine("m1"))
        await hall.until_machines(["m1"])
        relay.fall_silent()
        hall.apply(machine("m2"))
        hall.delete("mc", "m1", wait=False)
        await hall.until_machines(["m2"])


async def test_what_somebody_else_wrote_is_not_lost(hall: Hall, tmp_path: Path) -> None:
    """`cncmon apply` wrote an edge's document; then somebody applies one Machine of that edge to the cluster."""
    file = tmp_path / "machines.yaml"
    file.write_text(yaml.safe_dump_all([machine("m1"), machine("m2"), machine("far", edge="e9")]))
    theirs: dict[str, Machine] = load([file]).machines
    await apply.apply(hall.client, theirs)
    hall.operator()
    hall.apply(machine("m1", pollIntervalMs=50))
    await hall.until_condition("m1", "Configured", "False", "ForeignDocument")
    said = hall.get("mc", "m1")["status"]["conditions"]
    message = next(one["message"] for one in said if one["type"] == "Configured")
    assert "without a Machine resource: m2" in message
    assert await interval_of(hall, "m1") == 1000
    hall.apply(machine("m2"))

    async def ours() -> bool:
        return await interval_of(hall, "m1") == 50

    await hall.until(ours, "nothing would be lost any more, so it is written")
    assert await hall.machines() == ["m1", "m2"]
    assert await hall.machines("e9") == ["far"], "of an edge that no resource names nothing is touched"


async def test_too_many_machines_for_one_document_are_told_and_not_tried_for_ever(hall: Hall) -> None:
    operator = hall.operator()
    signals = [{"name": f"signal_number_{n}", "register": n, "type": "int32", "scale": 0.001} for n in range(1000)]
    hall.apply(profile("large", signals=signals))
    hall.apply(*(machine(f"m{n:02}", profileRef={"name": "large"}) for n in range(20)))
    await hall.until_condition("m19", "Configured", "False", "Refused")
    message = str(hall.get("mc", "m19")["status"]["conditions"])
    assert f"at most {edge_config.DOCUMENT_BYTES_MAX}" in message
    errors = operator.metric("cncmon_operator_errors_total")
    await asyncio.sleep(QUIET_S)
    assert operator.metric("cncmon_operator_errors_total") == errors


async def test_released_machines_can_go_without_an_operator(hall: Hall, tmp_path: Path) -> None:
    operator = hall.operator()
    hall.apply(machine("m1"), machine("m2"))
    await hall.until_machines(["m1", "m2"])
    operator.stop()
    hall.delete("mc", "m1", wait=False)
    await asyncio.sleep(QUIET_S)
    assert len(hall.get("mc")["items"]) == 2, "it waits for an operator, lest its edge go on reading it"
    hall.release()
    hall.delete("mc", "m2")
    assert hall.get("mc")["items"] == []


async def test_a_real_edge_runs_what_was_applied_and_the_resource_tells_so(hall: Hall, tmp_path: Path) -> None:
    """The simulator's own documents, by kubectl; an agent that follows its key; the truth in `kubectl get mc`."""
    hall.operator()
    settings = SimulatorSettings(
        machines=2, port_base=0, control_port=-1, behaviour="shop", poll_interval_ms=100, site="hall", edge="e1"
    )
    file = tmp_path / "machines.yaml"
    async with running_agent(hall.nats_url, settings_for(tmp_path)):
        async with running(settings) as simulator:
            simulated.write(simulator.fleet, file)
            one, two = sorted(load([file]).machines)
            hall.cluster.kubectl("apply", "-n", hall.namespace, "-f", str(file))
            for name in (one, two):
                await hall.until_condition(name, "Ready", "True", "AllTrue")
            status = hall.get("mc", one)["status"]
            assert status["state"] in ("running", "idle", "alarm", "hold")
            assert status["lastValueTime"]

            patch = '{"spec": {"pollIntervalMs": 20}}'
            hall.cluster.kubectl("patch", "mc", one, "-n", hall.namespace, "--type=merge", "-p", patch)

            async def applied() -> bool:
                return bool(hall.get("mc", one)["status"]["appliedRevision"] > status["appliedRevision"])

            await hall.until(applied, "the new interval applied")
        # Its controllers are switched off.
        for name in (one, two):
            await hall.until_condition(name, "Connected", "False", "Offline")
        assert hall.get("mc", one)["status"]["state"] == "offline"
        found = hall.cluster.kubectl("get", "events", "-n", hall.namespace).stdout
        assert "Offline" in found


async def test_a_start_writes_nothing_where_all_is_as_it_was(hall: Hall) -> None:
    operator = hall.operator()
    hall.apply(profile("mill"), machine("m1", profileRef={"name": "mill"}), machine("m2"))
    hall.apply(machine("silent", edge="e2"))
    await hall.until_machines(["m1", "m2"])
    await hall.beat()
    for name in ("m1", "m2"):
        await hall.until_condition(name, "Ready", "True", "AllTrue")
    await hall.until_condition("silent", "Ready", "Unknown", "NeverHeard")
    await asyncio.sleep(QUIET_S)
    operator.stop()
    before = (await hall.stored()).seq
    operator.start()

    async def looked() -> bool:
        try:
            return operator.metric("cncmon_operator_reconcile_seconds_count") > 1
        except OSError:  # not serving yet
            return False

    await hall.until(looked, "a look at the edge")
    await asyncio.sleep(QUIET_S)
    assert operator.metric("cncmon_operator_statuses_written_total") == 0, hall.get("mc", "m1")["status"]
    assert (await hall.stored()).seq == before


async def test_a_profile_is_rolled_out_edge_by_edge_and_back_when_signals_are_lost(hall: Hall) -> None:
    operator = hall.operator()
    rollout = {"edgesAtOnce": 1, "soakSeconds": 1, "timeoutSeconds": 5}
    edges = [f"e{number}" for number in range(3)]
    hall.apply(profile("mill", register=1, rollout=rollout))
    hall.apply(*(machine(f"m-{edge}", edge=edge, profileRef={"name": "mill"}) for edge in edges))
    for edge in edges:
        await hall.until_machines([f"m-{edge}"], edge)

    async def registers() -> list[int]:
        configs = [await hall.config(edge) for edge in edges]
        return [config.machines[0].spec.signals[0].register for config in configs if config is not None]

    ill: set[str] = set()

    async def beat_for_ever() -> None:
        while True:
            for edge in edges:
                signals = {"temperature": "illegal address"} if edge in ill else {}
                read = [{"id": f"m-{edge}", "state": "connected", "machine_state": "running", "signals": signals}]
                await hall.beat(edge, machines=read)
            await asyncio.sleep(0.1)

    beating = asyncio.create_task(beat_for_ever())
    for edge in edges:
        await hall.until_condition(f"m-{edge}", "Ready", "True", "AllTrue")
    seen: list[list[int]] = []

    def phase() -> str:
        return str(hall.get("mcp", "mill")["status"].get("rollout", {}).get("phase"))

    async def is_in(wanted: str) -> bool:
        if (now := await registers()) not in seen:
            seen.append(now)
        return phase() == wanted

    hall.apply(profile("mill", register=2, rollout=rollout))
    await hall.until(lambda: is_in("Complete"), "rolled out")
    assert seen in ([[2, 1, 1], [2, 2, 1], [2, 2, 2]], [[1, 1, 1], [2, 1, 1], [2, 2, 1], [2, 2, 2]])
    assert hall.conditions("mill", "mcp")["RolledOut"] == ("True", "Complete")

    hall.apply(profile("mill", register=3, rollout=rollout))

    async def both() -> bool:
        return await registers() == [3, 3, 2]

    await hall.until(both, "two edges with the change")
    ill.add("e1")
    await hall.until(lambda: is_in("RolledBack"), "rolled back")

    async def back() -> bool:
        return await registers() == [2, 2, 2]

    await hall.until(back, "the last good state on all edges")
    message = hall.get("mcp", "mill")["status"]["rollout"]["message"]
    # At once where the edge was seen to be well with it before, else after the time that it is given.
    assert message.startswith(("hall/e1: lost signals", "hall/e1: not well after 5 s"))
    assert message.endswith("m-e1: temperature: illegal address")
    # The next leader knows, and does not try again.
    operator.stop()
    operator.start()
    ill.clear()
    await asyncio.sleep(4)
    assert (await registers(), phase()) == ([2, 2, 2], "RolledBack")
    revisions = hall.get("controllerrevisions")["items"]
    assert sorted(one["revision"] for one in revisions) == [1, 2]
    hall.apply(profile("mill", register=4, rollout=rollout))
    await hall.until(lambda: is_in("Complete"), "another change rolled out")
    assert await registers() == [4, 4, 4]
    beating.cancel()
    found = hall.cluster.kubectl("get", "events", "-n", hall.namespace).stdout
    assert "RolledBack" in found
