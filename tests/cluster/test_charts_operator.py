"""The operator with no more rights than the chart gives it: both replicas, and the hook before it is removed."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import helm_python
import nats
import pytest
import yaml

from cluster.operators import Operator
from cluster.releases import HELM_S_MAX
from cncmon_core import names
from cncmon_ingest import bootstrap
from cncmon_ingest.settings import IngestSettings
from cncmon_standalone.embedded.process import base_environ
from testkit.charts import MONITOR, find, manifests
from testkit.kubernetes import Cluster, ControlPlane, running_control_plane
from testkit.servers import Server, running_nats
from testkit.waiting import until_blocking

pytestmark = pytest.mark.needs("kubernetes")

SIGNALS = [{"name": "temperature", "register": 1}]
PROFILE = {
    "apiVersion": "cncmon.dev/v1alpha1",
    "kind": "MachineProfile",
    "metadata": {"name": "mill"},
    "spec": {"signals": SIGNALS},
}
MACHINES = [
    {
        "apiVersion": "cncmon.dev/v1alpha1",
        "kind": "Machine",
        "metadata": {"name": f"mill-{number}"},
        "spec": {
            "site": "hall",
            "edge": "line-a",
            "connection": {"modbus": {"host": f"192.0.2.{number}"}},
            "profileRef": {"name": "mill"},
        },
    }
    for number in (1, 2)
]


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    with running_control_plane(tmp_path) as running:
        yield running


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running_nats(tmp_path) as running:
        yield running


def as_account(plane: ControlPlane, namespace: str, account: str) -> Cluster:
    """Return the cluster as a service account sees it."""
    config = json.loads(plane.kubeconfig.read_text())
    token = plane.kubectl("create", "token", account, "-n", namespace).stdout.strip()
    config["users"] = [{"name": "admin", "user": {"token": token}}]
    file = plane.kubeconfig.parent / f"kubeconfig-{account}"
    file.write_text(json.dumps(config))
    return Cluster(file)


def until(holds: Callable[[], bool], what: Callable[[], str]) -> None:
    until_blocking(holds, what=what)


async def buckets(url: str) -> None:
    client = await nats.connect(url)
    await bootstrap.ensure(client, IngestSettings(database_dsn="none"))
    await client.close()


async def edge_document(url: str) -> dict[str, Any]:
    client = await nats.connect(url)
    try:
        bucket = await client.jetstream().key_value(names.KV_CONFIG)
        entry = await bucket.get("hall.line-a")
        return json.loads(entry.value or b"{}")  # type: ignore[no-any-return]
    except nats.js.errors.KeyNotFoundError:
        return {}
    finally:
        await client.close()


def test_the_roles_of_the_chart_are_enough_and_the_hook_lets_go(
    plane: ControlPlane, server: Server, tmp_path: Path
) -> None:
    url = f"nats://127.0.0.1:{server.port}"
    asyncio.run(buckets(url))
    plane.kubectl("create", "namespace", "cnc")
    config = helm_python.Config(kubeconfig_path=plane.kubeconfig, namespace="cnc")
    config.install(MONITOR, "plant", {}, namespace="cnc", timeout=HELM_S_MAX)
    plane.wait_established("machines.cncmon.dev")
    operators = [
        Operator(
            as_account(plane, "cnc", "plant-cnc-monitor-operator"), "cnc", url, tmp_path / f"operator-{number}.log"
        )
        for number in range(2)
    ]

    def logs() -> str:
        return "\n".join(operator.log.read_text()[-4000:] for operator in operators)

    def finalizers() -> list[list[str]]:
        machines = plane.get("machines", "-n", "cnc")["items"]
        return [one["metadata"].get("finalizers", []) for one in machines]

    try:
        for operator in operators:
            operator.start()
        plane.kubectl("apply", "-n", "cnc", "-f", "-", stdin=yaml.safe_dump_all([PROFILE, *MACHINES]))
        until(lambda: finalizers() == [["cncmon.dev/edge-configuration"]] * 2, logs)
        until(lambda: "mill-2" in json.dumps(asyncio.run(edge_document(url))), logs)
        # A deleted one goes from its edge first, then altogether.
        plane.kubectl("delete", "machine", "mill-2", "-n", "cnc", "--timeout=30s")
        assert "mill-2" not in json.dumps(asyncio.run(edge_document(url)))

        def accepted() -> bool:
            status = plane.get("machine", "mill-1", "-n", "cnc").get("status", {})
            return any(one["type"] == "Accepted" and one["status"] == "True" for one in status.get("conditions", []))

        until(accepted, logs)
        until(lambda: bool(plane.get("controllerrevisions", "-n", "cnc")["items"]), logs)
        assert plane.get("leases", "-n", "cnc")["items"]
        assert "orbidden" not in logs()
    finally:
        for operator in operators:
            if operator.running:
                operator.stop()

    # The hook: its rights, then its second container.
    rights = [one for one in manifests(MONITOR, {}) if one["metadata"]["name"] == "plant-cnc-monitor-release"]
    rights = [one for one in rights if one["kind"] in ("ServiceAccount", "Role", "RoleBinding")]
    plane.kubectl("create", "-n", "cnc", "-f", "-", stdin=yaml.safe_dump_all(rights))
    hook = find(manifests(MONITOR, {}), "Job", "-release")["spec"]["template"]["spec"]["containers"][0]
    account = as_account(plane, "cnc", "plant-cnc-monitor-release")
    environ = {"KUBECONFIG": str(account.kubeconfig), "CNCMON_OPERATOR_NAMESPACE": "cnc"}
    program = Path(sys.executable).parent / hook["command"][0]
    done = subprocess.run(
        [program, *hook["args"]], env=base_environ() | environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert finalizers() == [[]]
    plane.kubectl("delete", "machine", "mill-1", "-n", "cnc", "--timeout=10s")
    config.close()
