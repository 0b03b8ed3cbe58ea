"""While samples flow: an upgrade from the version before, pods deleted, a node that dies, an API server that is away.

Nothing is lost or doubled in any of it. And the network's policies hold.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.node import previous
from cluster.node.flow import EDGE, Flow
from cluster.node.plant import Plant, until
from testkit.images import our_images
from testkit.kubernetes import ROOT
from testkit.node import Node

pytestmark = [pytest.mark.needs("node"), pytest.mark.in_order, pytest.mark.timeout(1800)]

CLOUD = {
    "ingest": "deployment/plant-cnc-monitor-ingest",
    "api": "deployment/plant-cnc-monitor-api",
    "operator": "deployment/plant-cnc-monitor-operator",
    "nats": "statefulset/plant-cnc-monitor-nats",
    "database": "statefulset/plant-cnc-monitor-database",
}
DENY_ALL = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
"""


@pytest.fixture(scope="module")
def flow(node: Node, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flow]:
    """The version before this one, installed, with samples that flow for the whole module."""
    folder = tmp_path_factory.mktemp("flow")
    old = previous.checkout(folder / "previous")
    node.load(images, our_images(folder / "previous.tar", old, tag="previous"))
    plant = Plant(node, "flow", folder)
    plant.make_namespace()
    flow = Flow(plant, folder)
    with flow.machines():
        plant.run(f"helm install plant {old}/charts/cnc-monitor --namespace flow --set image.tag=previous")
        plant.run(
            f"helm install {EDGE} {old}/charts/cnc-edge --namespace flow --set image.tag=previous -f {flow.values()}"
        )
        until(lambda: plant.node.kubectl("get", "crd", "machines.cncmon.dev", check=False).returncode == 0, "CRDs")
        plant.kubectl("apply", "-f", str(flow.documents))
        plant.node.wait_for_pods("flow")
        flow.wait_until_it_flows()
        yield flow
        plant.remove()


@pytest.fixture
def plant(flow: Flow) -> Plant:
    return flow.plant


def test_upgraded_and_rolled_back_with_samples_flowing(flow: Flow, plant: Plant, record_property: Any) -> None:
    flow.judge()
    newer = "--reset-then-reuse-values --set image.tag="
    for command in (
        f"helm upgrade plant charts/cnc-monitor --namespace flow {newer} --wait --timeout 5m",
        f"helm upgrade {EDGE} charts/cnc-edge --namespace flow -f {flow.values()} --wait --timeout 5m",
        "helm rollback plant 1 --namespace flow --wait --timeout 5m",
        f"helm rollback {EDGE} 1 --namespace flow --wait --timeout 5m",
        f"helm upgrade plant charts/cnc-monitor --namespace flow {newer} --wait --timeout 5m",
        f"helm upgrade {EDGE} charts/cnc-edge --namespace flow -f {flow.values()} --wait --timeout 5m",
    ):
        plant.run(command)
        flow.wait_until_it_flows()
    until(lambda: not _images(plant, ":previous"), "all run this version")
    served = plant.node.get("crd", "machines.cncmon.dev")["spec"]["versions"][0]
    ours = (ROOT / previous.DEFINITIONS / "machines.yaml").read_text()
    assert served["name"] in ours
    finding = flow.judge()
    record_property("upgrade_samples", finding.sent)


def _images(plant: Plant, end: str) -> list[str]:
    pods = [pod for component in (*CLOUD, "agent") for pod in plant.pods(component)]
    return [name for pod in pods if (name := pod["spec"]["containers"][0]["image"]).endswith(end)]


def test_each_pod_deleted(flow: Flow, plant: Plant, record_property: Any) -> None:
    for component in (*CLOUD, "agent"):
        before = plant.pods(component)
        for pod in before:
            plant.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false")
        until(lambda c=component, b=before: _are_others(plant.pods(c), b), f"other pods of {component}")  # type: ignore[misc]
        plant.node.wait_for_pods("flow")
        flow.wait_until_it_flows()
    record_property("deleted_samples", flow.judge().sent)


def _are_others(pods: list[dict[str, Any]], before: list[dict[str, Any]]) -> bool:
    uids = {pod["metadata"]["uid"] for pod in before}
    return len(pods) == len(before) and not uids & {pod["metadata"]["uid"] for pod in pods}


def test_each_process_killed(flow: Flow, plant: Plant, record_property: Any) -> None:
    """As the kernel kills what takes too much memory: no SIGTERM, no time."""
    for component in (*CLOUD, "agent"):
        if component == "agent":
            flow.note_kill()
        before = plant.pods(component)
        for pod in before:
            plant.node.kill_container(pod)
        started = _restarts(before) + len(before)
        until(lambda c=component, s=started: _restarts(plant.pods(c)) >= s, f"{component} runs again")  # type: ignore[misc]
        plant.node.wait_for_pods("flow")
        flow.wait_until_it_flows()
    record_property("killed_samples", flow.judge().sent)


def _restarts(pods: list[dict[str, Any]]) -> int:
    return sum(one["restartCount"] for pod in pods for one in pod["status"].get("containerStatuses", []))


def test_ingest_scaled_up_and_down(flow: Flow, plant: Plant, record_property: Any) -> None:
    for replicas in (4, 2):
        plant.kubectl("scale", CLOUD["ingest"], f"--replicas={replicas}")
        until(lambda wanted=replicas: len(plant.pods("ingest")) == wanted, f"{replicas} workers")  # type: ignore[misc]
        plant.node.wait_for_pods("flow")
        until(lambda: sum(count > 0 for count in _messages(plant)) >= 2, "two workers take messages")
        flow.wait_until_it_flows()
    plant.kubectl("scale", CLOUD["ingest"], "--replicas=1")
    record_property("scaled_samples", flow.judge().sent)


def test_a_node_that_dies_goes_on_with_what_it_had(flow: Flow, plant: Plant, record_property: Any) -> None:
    flow.note_kill()
    plant.node.kill()
    began_s = time.monotonic()
    plant.node.up()
    plant.node.wait_for_pods("flow")
    flow.wait_until_it_flows()
    record_property("node_back_s", round(time.monotonic() - began_s, 1))
    record_property("node_samples", flow.judge().sent)


def test_without_its_api_server_the_edge_runs_on(flow: Flow, plant: Plant) -> None:
    (pod,) = plant.pods("agent")
    # What was looked up once is known: nobody can be asked now.
    assert plant.machines()
    with plant.node.without("kube-apiserver"):
        time.sleep(20)
        flow.wait_until_it_flows()
    until(lambda: plant.node.kubectl("get", "--raw", "/readyz", check=False).returncode == 0, "the API server")
    (after,) = plant.pods("agent")
    assert after["metadata"]["uid"] == pod["metadata"]["uid"]
    assert after["status"]["containerStatuses"][0]["restartCount"] == 0
    flow.judge()


def test_policies_let_through_what_is_needed_and_nothing_else(flow: Flow, plant: Plant) -> None:
    """From pods in another namespace, in the same, and one that looks like an edge; then with everything denied."""
    addresses = {one: plant.pods(one)[0]["status"]["podIP"] for one in (*CLOUD, "agent")}
    targets = {
        "api": (addresses["api"], 8080),
        "ingest metrics": (addresses["ingest"], 9090),
        "agent metrics": (addresses["agent"], 9090),
        "database": (addresses["database"], 5432),
        "nats": (addresses["nats"], 4222),
        "nats cluster": (addresses["nats"], 6222),
    }
    everybody = {"api", "ingest metrics", "agent metrics"}
    plant.node.kubectl("create", "namespace", "outside")
    try:
        assert _reached(plant, "outside", targets, {}) == everybody
        assert _reached(plant, "flow", targets, {}) == everybody
        assert _reached(plant, "flow", targets, {"app.kubernetes.io/name": "cnc-edge"}) == everybody | {"nats"}
        plant.kubectl("apply", "-f", "-", stdin=DENY_ALL)
        assert _reached(plant, "flow", targets, {}) == set(), "the namespace denies what no policy allows"
        assert _reached(plant, "outside", targets, {}) == everybody
        # Ours need nothing but what the charts' own policies allow.
        for component in ("agent", "ingest", "operator"):
            plant.kubectl("delete", "pod", "-l", f"app.kubernetes.io/component={component}", "--wait=true")
        plant.node.wait_for_pods("flow")
        flow.wait_until_it_flows()
        assert "Succeeded" in plant.run("helm test plant --namespace flow").stdout
    finally:
        plant.kubectl("delete", "networkpolicy", "deny-all", "--ignore-not-found")
        plant.node.kubectl("delete", "namespace", "outside", "--wait=false")


def _reached(plant: Plant, namespace: str, targets: dict[str, tuple[str, int]], labels: dict[str, str]) -> set[str]:
    """Return what a pod with these labels can open a connection to."""
    script = (
        "import concurrent.futures, json, socket, sys, time\n"
        "time.sleep(4)  # policies know the pod by then\n"
        "def reached(place):\n"
        "    try: socket.create_connection(tuple(place), 2).close()\n"
        "    except OSError: return False\n"
        "    return True\n"
        "places = json.loads(sys.argv[1])\n"
        "with concurrent.futures.ThreadPoolExecutor(len(places)) as all_at_once:\n"
        "    found = zip(places, all_at_once.map(reached, places.values()))\n"
        "    print(json.dumps([name for name, there in found if there]))\n"
    )
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "probe", "labels": labels},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "probe", "image": "docker.io/library/python:3.13-slim-trixie",
                    "command": ["python3", "-c", script, json.dumps(targets)], "securityContext": security,
                }
            ],
        },
    }  # fmt: skip
    plant.node.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(pod))
    try:
        done = ("pod/probe", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=50s")
        plant.node.kubectl("wait", "-n", namespace, *done)
        return set(json.loads(plant.node.kubectl("logs", "-n", namespace, "probe").stdout))
    finally:
        plant.node.kubectl("delete", "pod", "probe", "-n", namespace, "--grace-period=0", "--force")


def _messages(plant: Plant) -> list[int]:
    """Return how many messages each worker has taken."""
    script = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9090/metrics').read().decode())"
    taken = []
    for pod in plant.pods("ingest"):
        text = plant.kubectl("exec", pod["metadata"]["name"], "--", "python3", "-c", script, check=False).stdout
        lines = [line for line in text.splitlines() if line.startswith("cncmon_ingest_messages_total")]
        taken.append(sum(int(float(line.rpartition(" ")[2])) for line in lines))
    return taken
