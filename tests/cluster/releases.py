"""Releases of the charts on a control plane that makes pods, and has no node to run them."""

import base64
import contextlib
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import helm_python
import yaml

from cncmon_standalone.embedded.process import Command
from testkit.kubernetes import ROOT, ControlPlane, running_control_plane
from testkit.ports import free_port
from testkit.servers import Server
from testkit.waiting import WAIT_S_MAX, until_blocking

CONTROLLERS = (
    "deployment-controller,replicaset-controller,statefulset-controller,job-controller,"
    "persistentvolumeclaim-protection-controller"
)
OTHERS = {
    "clusters": ("postgresql.cnpg.io", "v1", "Cluster"),
    "scaledobjects": ("keda.sh", "v1alpha1", "ScaledObject"),
    "httproutes": ("gateway.networking.k8s.io", "v1", "HTTPRoute"),
    "podmonitors": ("monitoring.coreos.com", "v1", "PodMonitor"),
    "servicemonitors": ("monitoring.coreos.com", "v1", "ServiceMonitor"),
}


def definition(plural: str, group: str, version: str, kind: str) -> dict[str, Any]:
    """Return a definition by which the API server stores others' resources, unseen."""
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{group}",
            "annotations": {"api-approved.kubernetes.io": "unapproved, a stand-in"},
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"plural": plural, "kind": kind},
            "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
        },
    }


@contextlib.contextmanager
def plane_that_makes_pods(folder: Path) -> Iterator[ControlPlane]:
    """Yield a control plane with the controllers of workloads, which knows the kinds of others that the charts use."""
    with running_control_plane(folder) as running:
        made = subprocess.run([ROOT / "scripts/setup-cluster.sh"], check=True, stdout=subprocess.PIPE, text=True)
        port = free_port()
        command = Command(
            "controllers",
            [
                f"{made.stdout.strip()}/kube-controller-manager", "--bind-address=127.0.0.1", f"--secure-port={port}",
                f"--kubeconfig={running.kubeconfig}", "--leader-elect=false", f"--controllers={CONTROLLERS}",
            ],
            cwd=folder,
        )  # fmt: skip
        controllers = Server(command, port, folder / "controllers.log")
        controllers.start()
        try:
            others = [definition(plural, *rest) for plural, rest in OTHERS.items()]
            running.kubectl("create", "-f", "-", stdin=yaml.safe_dump_all(others))
            running.kubectl("create", "priorityclass", "high", "--value=1000")
            running.wait_established(*(one["metadata"]["name"] for one in others))
            yield running
        finally:
            controllers.stop()


def until(holds: Callable[[], bool], what: str) -> None:
    until_blocking(holds, what=what)


HELM_S_MAX = int(WAIT_S_MAX)
"""What Helm gives a release to get ready, in seconds."""


class Helm:
    """Helm in one namespace.

    run: names of pods that were said to have succeeded, in this order, each with the replicas of ingest at that time.
    """

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self.plane, self.namespace = plane, namespace
        self.config = helm_python.Config(kubeconfig_path=plane.kubeconfig, namespace=namespace)
        self.run: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._play_node, daemon=True)

    def __enter__(self) -> "Helm":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.config.close()

    def install(self, chart: Path, name: str, values: dict[str, Any], **options: Any) -> dict[str, Any]:
        return self.config.install(chart, name, values, namespace=self.namespace, timeout=HELM_S_MAX, **options)

    def upgrade(self, chart: Path, name: str, values: dict[str, Any], **options: Any) -> dict[str, Any]:
        return self.config.upgrade(chart, name, values, namespace=self.namespace, timeout=HELM_S_MAX, **options)

    def names(self, kind: str) -> set[str]:
        return {one["metadata"]["name"] for one in self.plane.get(kind, "-n", self.namespace)["items"]}

    def secret(self, name: str, key: str) -> str:
        data: str = self.plane.get("secret", name, "-n", self.namespace)["data"][key]
        return base64.b64decode(data).decode()

    def _play_node(self) -> None:
        while not self._stop.wait(0.3):
            found = self.plane.kubectl("get", "pods", "-n", self.namespace, "-o", "json", check=False)
            for pod in json.loads(found.stdout)["items"] if found.returncode == 0 else []:
                if pod["spec"].get("restartPolicy") == "Always" or pod["status"].get("phase") != "Pending":
                    continue
                found = self.plane.kubectl(
                    "get", "deployments", "-n", self.namespace, "-l", "app.kubernetes.io/component=ingest", "-o",
                    "jsonpath={.items[*].spec.replicas}",
                )  # fmt: skip
                self.run[pod["metadata"]["name"]] = int(found.stdout or 0)
                self.plane.kubectl(
                    "patch", "pod", pod["metadata"]["name"], "-n", self.namespace, "--subresource=status",
                    "--type=merge", "-p", '{"status": {"phase": "Succeeded"}}', check=False,
                )  # fmt: skip
