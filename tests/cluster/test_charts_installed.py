"""The Helm charts on a real API server: taken without a warning in a restricted namespace, installed, upgraded, rolled
back, removed.

A control plane of our own with the controllers that make pods and volume claims, whatever KUBECONFIG says: no node runs
the pods, so those of Jobs and tests are said to have succeeded by hand.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml

from cluster.releases import HELM_S_MAX, Helm, plane_that_makes_pods, until
from testkit.charts import COMBINATIONS, EDGE, EDGE_LEAST, MONITOR, manifests
from testkit.kubernetes import ControlPlane

pytestmark = pytest.mark.needs("kubernetes")

RESTRICTED = [f"pod-security.kubernetes.io/{mode}=restricted" for mode in ("enforce", "warn")]
MACHINE = """
apiVersion: cncmon.dev/v1alpha1
kind: Machine
metadata: {name: mill-01, finalizers: [cncmon.dev/edge-configuration]}
spec:
  site: halle-1
  edge: line-a
  connection: {modbus: {host: 192.0.2.1}}
  signals: [{name: temperature, register: 1}]
"""


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with plane_that_makes_pods(tmp_path_factory.mktemp("charts")) as running:
        yield running


@pytest.fixture
def namespace(plane: ControlPlane) -> Iterator[str]:
    with plane.namespace() as name:
        plane.kubectl("label", "namespace", name, *RESTRICTED)
        yield name


@pytest.fixture
def helm(plane: ControlPlane, namespace: str) -> Iterator[Helm]:
    with Helm(plane, namespace) as started:
        yield started


@pytest.fixture
def without_definitions(plane: ControlPlane) -> Iterator[None]:
    """Definitions stay when a release goes: remove them after the test."""
    yield
    for machine in plane.get("machines", "--all-namespaces")["items"]:
        place = (machine["metadata"]["name"], "-n", machine["metadata"]["namespace"])
        plane.kubectl("patch", "machine", *place, "--type=merge", "-p", '{"metadata": {"finalizers": []}}')
    kinds = "crd,validatingadmissionpolicy,validatingadmissionpolicybinding"
    plane.kubectl("delete", kinds, "-l", "app.kubernetes.io/part-of=cnc-monitor", "--timeout=30s")


@pytest.mark.parametrize(("chart", "values"), [pytest.param(*row, id=name) for name, row in COMBINATIONS.items()])
def test_api_server_takes_each_object_without_a_warning(
    plane: ControlPlane, namespace: str, chart: Path, values: dict[str, Any]
) -> None:
    for upgrade in (False, True):
        objects = manifests(chart, values, upgrade=upgrade)
        for one in objects:
            one["metadata"].pop("namespace", None)
            for subject in one.get("subjects", []):
                subject["namespace"] = namespace
        # A lone pod is refused where its account is not there yet.
        accounts = [one for one in objects if one["kind"] == "ServiceAccount"]
        plane.kubectl("apply", "--server-side", "-n", namespace, "-f", "-", stdin=yaml.safe_dump_all(accounts))
        done = plane.kubectl(
            "apply", "--server-side", "--dry-run=server", "--validate=strict", "-n", namespace, "-f", "-",
            stdin=yaml.safe_dump_all(objects), check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
        assert len(done.stdout.splitlines()) == len(objects)


@pytest.mark.usefixtures("without_definitions")
def test_the_whole_life_of_a_release(plane: ControlPlane, helm: Helm) -> None:
    name = "plant-cnc-monitor"
    helm.install(MONITOR, "plant", {})
    # Every pod is admitted in the restricted namespace: a refusal would be an event of its ReplicaSet.
    expected = {f"{name}-{part}" for part in ("ingest", "api", "operator", "migrate-1", "nats-0", "database-0")}
    until(lambda: all(any(pod.startswith(one) for pod in helm.names("pods")) for one in expected), "pods are missing")
    events = plane.get("events", "-n", helm.namespace)["items"]
    assert [event["message"] for event in events if event["reason"] == "FailedCreate"] == []
    until(lambda: any(pod.startswith(f"{name}-migrate-1") for pod in helm.run), "the migration did not run")
    until(lambda: plane.get("job", f"{name}-migrate-1", "-n", helm.namespace)["status"].get("succeeded") == 1, "Job")
    claims = {f"data-{name}-nats-0", f"data-{name}-database-0"}
    until(lambda: helm.names("pvc") == claims, "claims are missing")
    passwords = helm.secret(f"{name}-nats", "password"), helm.secret(f"{name}-database", "password")
    assert all(len(password) == 32 for password in passwords)

    helm.config.test("plant", timeout=HELM_S_MAX)
    assert f"{name}-test" in helm.run

    # An upgrade migrates before anything is changed, and keeps the passwords.
    helm.run.clear()
    helm.upgrade(MONITOR, "plant", {"ingest": {"replicas": 3}})
    assert [(pod.rpartition("-")[0], replicas) for pod, replicas in helm.run.items()] == [(f"{name}-migrate-2", 1)]
    assert not [job for job in helm.names("jobs") if "migrate" in job], "a hook's Job stays, or the install's"
    assert plane.get("deployment", f"{name}-ingest", "-n", helm.namespace)["spec"]["replicas"] == 3
    assert passwords == (helm.secret(f"{name}-nats", "password"), helm.secret(f"{name}-database", "password"))

    with pytest.raises(helm_python.HelmError, match=r"nats\.bundled\.replicas can't be changed from 1 to 3"):
        helm.upgrade(MONITOR, "plant", {"nats": {"bundled": {"replicas": 3}}})
    assert plane.get("deployment", f"{name}-ingest", "-n", helm.namespace)["spec"]["replicas"] == 3

    helm.config.rollback("plant", version=1, timeout=HELM_S_MAX)
    assert plane.get("deployment", f"{name}-ingest", "-n", helm.namespace)["spec"]["replicas"] == 1
    assert passwords == (helm.secret(f"{name}-nats", "password"), helm.secret(f"{name}-database", "password"))

    # What holds data stays, with what opens it; so do Machines and their definitions.
    plane.kubectl("apply", "-n", helm.namespace, "-f", "-", stdin=MACHINE)
    helm.run.clear()
    helm.config.uninstall("plant", timeout=HELM_S_MAX)
    assert [pod for pod in helm.run if "-release-" in pod], "nobody let go of the Machines"
    until(lambda: not helm.names("statefulsets,deployments,services,jobs,roles,networkpolicies"), "objects stay")
    assert helm.names("pvc") == claims
    assert {f"{name}-nats", f"{name}-database"} <= helm.names("secrets")
    assert helm.names("machines") == {"mill-01"}
    for crd in plane.get("crd", "-l", "app.kubernetes.io/part-of=cnc-monitor")["items"]:
        assert "deletionTimestamp" not in crd["metadata"], crd["metadata"]["name"]

    # Installed again under its name, the release takes them over.
    helm.install(MONITOR, "plant", {"operator": {"releaseOnUninstall": False}})
    assert passwords == (helm.secret(f"{name}-nats", "password"), helm.secret(f"{name}-database", "password"))
    helm.config.uninstall("plant", timeout=HELM_S_MAX)


@pytest.mark.usefixtures("without_definitions")
def test_an_upgrade_upgrades_the_definitions(plane: ControlPlane, helm: Helm, tmp_path: Path) -> None:
    older = tmp_path / "cnc-monitor"
    subprocess.run(["cp", "-r", MONITOR, older], check=True)
    file = older / "files/crds/edgenodes.yaml"
    document = yaml.safe_load(file.read_text())
    columns = document["spec"]["versions"][0]["additionalPrinterColumns"]
    file.write_text(yaml.safe_dump({**document, "spec": {**document["spec"], "versions": [
        {**document["spec"]["versions"][0], "additionalPrinterColumns": columns[:1]}]}}))  # fmt: skip

    def shown() -> int:
        found = plane.get("crd", "edgenodes.cncmon.dev")
        return len(found["spec"]["versions"][0]["additionalPrinterColumns"])

    values = {"operator": {"releaseOnUninstall": False}}
    helm.install(older, "plant", values)
    assert shown() == 1
    helm.upgrade(MONITOR, "plant", values)
    assert shown() == len(columns) > 1
    # A second release of a cluster leaves them alone.
    with plane.namespace() as other, Helm(plane, other) as second:
        with pytest.raises(helm_python.HelmError, match=r"cncmon\.dev.*cannot be imported"):
            second.install(MONITOR, "second", values)
        second.config.uninstall("second", timeout=HELM_S_MAX, ignore_not_found=True)
        second.install(MONITOR, "second", {"crds": {"install": False}, **values})
    helm.config.uninstall("plant", timeout=HELM_S_MAX)
    assert shown() == len(columns)


def test_volumes_go_with_the_release_where_that_is_asked_for(helm: Helm) -> None:
    delete = {"storage": {"onUninstall": "Delete"}}
    values = {
        "nats": {"bundled": delete}, "database": {"bundled": delete},
        "operator": {"enabled": False}, "crds": {"install": False},
    }  # fmt: skip
    helm.install(MONITOR, "plant", values)
    until(lambda: len(helm.names("pvc")) == 2, "claims are missing")
    # The controller makes the StatefulSet the claims' owner in a step of its own.
    until(
        lambda: all(
            "ownerReferences" in one["metadata"] for one in helm.plane.get("pvc", "-n", helm.namespace)["items"]
        ),
        "claims have no owner",
    )
    helm.config.uninstall("plant", timeout=HELM_S_MAX)
    until(lambda: not helm.names("pvc"), "claims stay")
    assert not [name for name in helm.names("secrets") if name.startswith("plant")]


def test_an_edge_keeps_its_volume(helm: Helm) -> None:
    name = "line-a-cnc-edge"
    helm.install(EDGE, "line-a", EDGE_LEAST)
    until(lambda: f"{name}-0" in helm.names("pods"), "no pod")
    until(lambda: helm.names("pvc") == {f"data-{name}-0"}, "no claim")
    helm.config.test("line-a", timeout=HELM_S_MAX)
    helm.upgrade(EDGE, "line-a", {**EDGE_LEAST, "settings": {"horizon_h": 48}})
    helm.config.rollback("line-a", timeout=HELM_S_MAX)
    uid = helm.plane.get("pvc", f"data-{name}-0", "-n", helm.namespace)["metadata"]["uid"]
    helm.config.uninstall("line-a", timeout=HELM_S_MAX)
    until(lambda: not helm.names("statefulsets,pods"), "objects stay")
    helm.install(EDGE, "line-a", EDGE_LEAST)
    until(lambda: f"{name}-0" in helm.names("pods"), "no pod")
    assert helm.plane.get("pvc", f"data-{name}-0", "-n", helm.namespace)["metadata"]["uid"] == uid


def test_the_hook_stops_the_operator_with_no_more_rights_than_it_needs(
    plane: ControlPlane, helm: Helm, tmp_path: Path
) -> None:
    """The script of the chart's pre-delete hook, with the rights that its Role gives."""
    name = "plant-cnc-monitor"
    helm.install(MONITOR, "plant", {"crds": {"install": False}})
    rights = [
        one
        for one in manifests(MONITOR, {})
        if one["metadata"]["name"] == f"{name}-release" and one["kind"] in ("ServiceAccount", "Role", "RoleBinding")
    ]
    for one in rights:
        for subject in one.get("subjects", []):
            subject["namespace"] = helm.namespace
    plane.kubectl("create", "-n", helm.namespace, "-f", "-", stdin=yaml.safe_dump_all(rights))
    token = plane.kubectl("create", "token", f"{name}-release", "-n", helm.namespace).stdout
    (tmp_path / "token").write_text(token)
    (tmp_path / "ca.crt").write_bytes((plane.kubeconfig.parent / "certificates/apiserver.crt").read_bytes())
    until(lambda: any(pod.startswith(f"{name}-operator") for pod in helm.names("pods")), "no operator")
    environ = {
        "ACCOUNT": str(tmp_path), "KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(plane.port),
        "NAMESPACE": helm.namespace, "DEPLOYMENT": f"{name}-operator",
        "SELECTOR": "app.kubernetes.io/instance=plant,app.kubernetes.io/component=operator",
    }  # fmt: skip
    script = (MONITOR / "files/stop.py").read_text()

    def run(**changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, **environ, **changes}, capture_output=True, text=True,
            timeout=90,
        )  # fmt: skip

    done = run()
    assert done.returncode == 0, done.stderr
    assert not [pod for pod in helm.names("pods") if pod.startswith(f"{name}-operator")]
    assert "403" in run(DEPLOYMENT=f"{name}-ingest").stderr
    helm.config.uninstall("plant", timeout=HELM_S_MAX)
