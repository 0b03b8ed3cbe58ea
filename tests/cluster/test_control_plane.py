"""The control plane that the other tests stand on: it keeps what it had, and leaves nothing behind."""

import psutil
import pytest

from testkit.kubernetes import ControlPlane
from testkit.waiting import until_blocking

pytestmark = pytest.mark.needs("kubernetes")


def test_a_killed_api_server_comes_back_with_what_was_stored(own_control_plane: ControlPlane) -> None:
    plane = own_control_plane
    plane.kubectl("create", "configmap", "kept", "--from-literal=a=b")
    plane.restart_api()
    assert plane.get("configmap", "kept")["data"] == {"a": "b"}
    # Pods are taken, and nobody runs them; accounts and namespaces are looked after.
    plane.kubectl("run", "pod", "--image=none")
    assert plane.get("pod", "pod")["status"]["phase"] == "Pending"
    with plane.namespace() as name:
        plane.kubectl("create", "configmap", "gone", "-n", name)
    until_blocking(
        lambda: plane.kubectl("get", "namespace", name, check=False).returncode, what="the namespace is gone"
    )


def test_stopped_nothing_of_it_runs(own_control_plane: ControlPlane) -> None:
    mine = {"etcd", "kube-apiserver", "kube-controller-manager"}

    def running() -> set[str]:
        folder = str(own_control_plane.kubeconfig.parent)
        # With the attributes named, what ends meanwhile is left out.
        found = [one.info for one in psutil.process_iter(["name", "cmdline"])]
        return {one["name"][:15] for one in found if folder in " ".join(one["cmdline"] or [])}

    assert running() == {name[:15] for name in mine}
    own_control_plane.stop()
    assert running() == set()
