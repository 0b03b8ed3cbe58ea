"""A Kubernetes node of our own, with what runs pods: kubelet, containerd, network and its policies, volumes, DNS."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from testkit.images import system_images
from testkit.kubernetes import ROOT, Cluster
from testkit.waiting import WAIT_S_MAX

HOST: Final = "172.30.0.1"
"""This machine, as pods see it."""

_SCRIPT: Final = ROOT / "tests/cluster/node/node.sh"


class Node(Cluster):
    """One node, one a machine. programs: folder with kubectl and helm for it."""

    def __init__(self, folder: Path, programs: Path, images: Path) -> None:
        super().__init__(folder / "admin.conf", programs)
        self.folder, self.programs = folder, programs
        self._environ = {
            **os.environ,
            "CNCMON_NODE_PROGRAMS": str(programs),
            "CNCMON_NODE_DIR": str(folder),
            "CNCMON_NODE_IMAGES": str(images),
            "CNCMON_NODE_PYTHON": sys.executable,
        }

    @property
    def import_command(self) -> str:
        """The beginning of a command line that imports images from the file at its end."""
        names = ("CNCMON_NODE_PROGRAMS", "CNCMON_NODE_DIR")
        return f"env {' '.join(f'{name}={self._environ[name]}' for name in names)} {_SCRIPT} load"

    def up(self) -> None:
        """Start it; after `kill` with all that it had stored."""
        self._run("up")

    def kill(self) -> None:
        """End every process of it at once."""
        self._run("kill")

    def down(self) -> None:
        """End it and remove what it stored."""
        self._run("down")

    def load(self, *archives: Path) -> None:
        """Import images from files."""
        self._run("load", *map(str, archives))

    @contextlib.contextmanager
    def without(self, program: str) -> Iterator[None]:
        """Let a program of it, such as kube-apiserver, stand still while this lasts: it answers nobody."""
        pid = (self.folder / "pids" / program).read_text().strip()
        self._run("exec", "kill", f"-{signal.SIGSTOP.value}", pid)
        try:
            yield
        finally:
            self._run("exec", "kill", f"-{signal.SIGCONT.value}", pid)

    def kill_container(self, pod: dict[str, Any]) -> None:
        """Kill the first container of a pod with SIGKILL; the kubelet starts it again."""
        container = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
        self._run("exec", "ctr", "--namespace", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", container)

    def volume(self, namespace: str, claim: str) -> Path:
        """Return the folder of a volume, as this machine sees it."""
        name = self.get("pvc", claim, "-n", namespace)["spec"]["volumeName"]
        volume = self.get("pv", name)["spec"]
        source: dict[str, Any] = volume.get("hostPath") or volume["local"]
        return Path(source["path"])

    def wait_for_pods(self, namespace: str, *, seconds: float = WAIT_S_MAX) -> None:
        """Wait until every pod of a namespace is ready, but for those that have done their work."""
        end_s = time.monotonic() + seconds
        while True:
            pods = self.get("pods", "-n", namespace)["items"]
            waiting = [pod for pod in pods if pod["status"].get("phase") != "Succeeded" and not ready(pod)]
            if pods and not waiting:
                return
            if time.monotonic() > end_s:
                names = [pod["metadata"]["name"] for pod in waiting]
                told = [self.kubectl("get", "pods", "-n", namespace).stdout]
                told += [self.kubectl("logs", "--tail=20", "-n", namespace, name, check=False).stdout for name in names]
                told += [self.kubectl("describe", "pod", "-n", namespace, name).stdout[-2500:] for name in names]
                raise AssertionError("\n".join(told))
            time.sleep(0.5)

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(
            [_SCRIPT, *arguments], env=self._environ, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, f"node.sh {' '.join(arguments)}: {done.stdout}{done.stderr}"


def ready(pod: dict[str, Any]) -> bool:
    """Whether a pod serves, and is not about to go."""
    conditions = pod["status"].get("conditions", [])
    holds = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    return holds and "deletionTimestamp" not in pod["metadata"]


@contextlib.contextmanager
def running_node(folder: Path) -> Iterator[Node]:
    """Yield a node that lives as long as this context; what it is made of is made first where it is not there yet."""
    made = subprocess.run([ROOT / "scripts/setup-cluster.sh", "node"], check=True, stdout=subprocess.PIPE, text=True)
    programs = Path(made.stdout.strip())
    node = Node(folder, programs, system_images(programs))
    try:
        node.up()
        yield node
    finally:
        if os.environ.get("CNCMON_TEST_KEEP_LOGS"):
            shutil.copytree(folder / "log", Path(os.environ["CNCMON_TEST_KEEP_LOGS"]), dirs_exist_ok=True)
        node.down()
