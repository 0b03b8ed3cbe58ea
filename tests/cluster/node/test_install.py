"""A new user's way, on a real node: the README's commands, the first rows, and what `kubectl` says of it all."""

import json
import time
import urllib.parse
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from cluster.node.plant import Plant, documents, readme_commands, until
from testkit.kubernetes import ROOT
from testkit.node import Node

pytestmark = [pytest.mark.needs("node"), pytest.mark.in_order, pytest.mark.timeout(1800)]

MACHINES = {f"cnc-00{number}" for number in range(1, 6)}


@pytest.fixture(scope="module")
def installed(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Plant, float]]:
    """The README's five commands, and how long it took from the end of the last one until rows of all machines came."""
    plant = Plant(node, "cnc", tmp_path_factory.mktemp("install"))
    plant.make_namespace()
    commands = readme_commands("On Kubernetes")
    assert len(commands) == 5
    for command in commands[:-1]:
        plant.run(command)
    node.wait_for_pods("cnc")
    plant.run(commands[-1])
    first_rows_s = until(lambda: read(plant) == MACHINES, "rows of all machines")
    yield plant, first_rows_s
    plant.remove()


@pytest.fixture
def plant(installed: tuple[Plant, float]) -> Plant:
    return installed[0]


def read(plant: Plant) -> set[str]:
    """Return the machines with a sample that is no sign of absence."""
    return {name for name, one in plant.machines().items() if one["last_sample"] and one["state"] != "offline"}


def test_the_readmes_commands_bring_rows(installed: tuple[Plant, float], record_property: Any) -> None:
    plant, first_rows_s = installed
    record_property("first_rows_s", round(first_rows_s, 1))
    table = plant.kubectl("get", "mc").stdout.splitlines()
    assert table[0].split() == ["NAME", "STATE", "EDGE", "PROTOCOL", "READY", "LAST-SEEN", "AGE"]
    until(lambda: all(plant.conditions(name).get("Ready", {}).get("status") == "True" for name in MACHINES), "Ready")
    edge = plant.get("edgenodes")["items"]
    assert len(edge) == 1


def test_helm_test_passes(plant: Plant) -> None:
    for release in ("plant", "hall"):
        assert "Phase:          Succeeded" in plant.run(f"helm test {release} --namespace cnc").stdout


def test_another_poll_interval_counts_within_seconds_and_restarts_nothing(plant: Plant, record_property: Any) -> None:
    (pod,) = plant.pods("agent")
    started = _start_of_the_process(plant)
    plant.kubectl("patch", "machine", "cnc-001", "--type=merge", "-p", '{"spec": {"pollIntervalMs": 100}}')
    took_s = until(lambda: _samples_of_the_last_second(plant) >= 8, "ten samples a second")
    record_property("change_s", round(took_s, 1))
    (after,) = plant.pods("agent")
    assert after["metadata"]["uid"] == pod["metadata"]["uid"]
    assert after["status"]["containerStatuses"][0]["restartCount"] == 0
    assert _start_of_the_process(plant) == started
    plant.kubectl("patch", "machine", "cnc-001", "--type=merge", "-p", '{"spec": {"pollIntervalMs": 1000}}')


def _samples_of_the_last_second(plant: Plant) -> int:
    newest = datetime.fromisoformat(plant.machines()["cnc-001"]["last_sample"]["timestamp"])
    begin = urllib.parse.quote((newest - timedelta(seconds=1)).isoformat())
    return len(plant.api(f"machines/cnc-001/samples?from={begin}&limit=1000")["samples"])


def _start_of_the_process(plant: Plant) -> str:
    script = "print(open('/proc/1/stat').read().rpartition(')')[2].split()[19])"
    return plant.kubectl("exec", "hall-cnc-edge-0", "--", "python3", "-c", script).stdout.strip()


def test_what_only_the_edge_can_know_is_told(plant: Plant, record_property: Any) -> None:
    """An address where nobody listens, and a register that does not exist: in conditions and events."""
    good = next(one for one in documents(ROOT / "docs/examples/simulated/machines.yaml"))
    away = json.loads(json.dumps(good))
    away["metadata"]["name"] = "nobody-there"
    away["spec"]["connection"]["modbus"] = {"host": "192.0.2.1", "port": 502}
    wrong = json.loads(json.dumps(good))
    wrong["metadata"]["name"] = "no-such-register"
    del wrong["spec"]["profileRef"]
    wrong["spec"]["signals"] = [{"name": "temperature", "register": 9999}]
    for one in (away, wrong):
        plant.kubectl("apply", "-f", "-", stdin=json.dumps(one))
    took_s = until(lambda: not _untold(plant, {"nobody-there", "no-such-register"}), "conditions and events")
    record_property("told_s", round(took_s, 1))
    assert plant.conditions("nobody-there")["Applied"]["status"] == "True"
    assert "9999" in json.dumps(plant.conditions("no-such-register"))
    plant.kubectl("delete", "machine", "nobody-there", "no-such-register", "--timeout=30s")


def _untold(plant: Plant, names: set[str]) -> set[str]:
    told = {
        one["involvedObject"]["name"]
        for one in plant.get("events", "--field-selector=type=Warning")["items"]
        if one["involvedObject"]["kind"] == "Machine"
    }
    not_ready = {name for name in names if plant.conditions(name).get("Ready", {}).get("status") == "False"}
    return names - (told & not_ready)


def test_the_strictest_pod_security_is_enforced(plant: Plant) -> None:
    """The namespace takes no privileged pod, so that ours run in it says something."""
    pod = {"spec": {"containers": [{"name": "a", "image": "a", "securityContext": {"privileged": True}}]}}
    text = json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "privileged"}, **pod})
    refused = plant.kubectl("apply", "-f", "-", stdin=text, check=False)
    assert 'violates PodSecurity "restricted:latest"' in refused.stderr


def test_a_missing_secret_is_waited_for(node: Node, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Pods say what is missing, don't crash, and run as soon as it is there: with a database that is not."""
    plant = Plant(node, "missing", tmp_path_factory.mktemp("missing"))
    plant.make_namespace()
    options = "--set crds.install=false,database.mode=external,database.external.existingSecret=later"
    plant.run(f"helm install plant charts/cnc-monitor --namespace missing {options}")
    try:
        until(lambda: _reasons(plant, "ingest") == {"CreateContainerConfigError"}, "a reason")
        (pod,) = plant.pods("ingest")
        waiting = pod["status"]["containerStatuses"][0]["state"]["waiting"]
        assert 'secret "later" not found' in waiting["message"]
        dsn = "postgresql://a:b@192.0.2.1:5432/c"
        plant.kubectl("create", "secret", "generic", "later", f"--from-literal=dsn={dsn}")
        until(lambda: all(_runs(one) for one in (*plant.pods("ingest"), *plant.pods("api"))), "they run")
        time.sleep(15)
        for one in (*plant.pods("ingest"), *plant.pods("api")):
            status = one["status"]["containerStatuses"][0]
            assert (status["ready"], status["restartCount"]) == (False, 0)
        (pod,) = plant.pods("ingest")
        assert "192.0.2.1" in plant.kubectl("logs", pod["metadata"]["name"]).stdout
    finally:
        plant.run("helm uninstall plant --namespace missing --wait")
        plant.node.kubectl("delete", "namespace", "missing", "--wait=false")


def _reasons(plant: Plant, component: str) -> set[str]:
    states = [one["state"] for pod in plant.pods(component) for one in pod["status"].get("containerStatuses", [])]
    return {state["waiting"]["reason"] for state in states if "waiting" in state}


def _runs(pod: dict[str, Any]) -> bool:
    return any("running" in one["state"] for one in pod["status"].get("containerStatuses", []))


def test_uninstalled_it_leaves_what_must_be_kept(plant: Plant) -> None:
    claims = {one["metadata"]["name"] for one in plant.get("pvc")["items"]}
    assert claims == {"data-plant-cnc-monitor-nats-0", "data-plant-cnc-monitor-database-0", "data-hall-cnc-edge-0"}
    plant.run("helm uninstall hall --namespace cnc --wait && helm uninstall plant --namespace cnc --wait")
    assert {one["metadata"]["name"] for one in plant.get("pvc")["items"]} == claims
    assert len(plant.get("machines")["items"]) == len(MACHINES)
    # Nothing holds the Machines back when their owner removes them.
    plant.kubectl("delete", "-f", str(ROOT / "docs/examples/simulated"), "--timeout=60s")
    plant.run("helm install plant charts/cnc-monitor --namespace cnc")
    plant.node.wait_for_pods("cnc")
    until(lambda: set(plant.machines()) >= MACHINES, "the data, back with the volume")
    plant.run("helm uninstall plant --namespace cnc --wait")


def test_wrong_values_are_named(plant: Plant) -> None:
    refused = plant.run("helm install wrong charts/cnc-monitor -n cnc --set ingest.replicas=-1", check=False)
    assert refused.returncode
    assert "ingest" in refused.stderr
    assert "replicas" in refused.stderr
