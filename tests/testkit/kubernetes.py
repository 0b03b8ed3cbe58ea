"""A real Kubernetes API: one of the user's (`KUBECONFIG`), or a control plane of our own on loopback.

The control plane is etcd, kube-apiserver and the controllers that delete and collect; there is no node, so pods are
taken and never run. It needs no root, and several may run beside one another.
"""

import contextlib
import itertools
import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cncmon_standalone.embedded.process import Command, base_environ
from testkit.ports import free_port
from testkit.servers import Server
from testkit.waiting import WAIT_S_MAX, until_blocking

ROOT: Final = Path(__file__).parents[2]

_CONTROLLERS = "namespace-controller,garbage-collector-controller,serviceaccount-controller"
_names = itertools.count(1)


class Cluster:
    """Something that speaks the Kubernetes API. programs: the folder of kubectl, where that is not on PATH."""

    def __init__(self, kubeconfig: Path, programs: Path | None = None) -> None:
        self.kubeconfig = kubeconfig
        self._kubectl = str(programs / "kubectl") if programs else "kubectl"

    def kubectl(
        self, *arguments: str, stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl; check: raise AssertionError with what it said where it fails."""
        done = subprocess.run(
            [self._kubectl, *arguments],
            env=base_environ() | {"KUBECONFIG": str(self.kubeconfig), "HOME": str(self.kubeconfig.parent)},
            input=stdin,
            text=True,
            capture_output=True,
            timeout=WAIT_S_MAX,
        )
        assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done

    def get(self, *arguments: str) -> Any:
        """Return what `kubectl get -o json` prints."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json").stdout)

    def wait_for(self, *arguments: str) -> None:
        """Run kubectl until it succeeds."""
        told = ""

        def done() -> bool:
            nonlocal told
            answer = self.kubectl(*arguments, check=False)
            told = answer.stderr
            return not answer.returncode

        until_blocking(done, what=lambda: f"kubectl {' '.join(arguments)}: {told}", every_s=0.1)

    def wait_established(self, *definitions: str) -> None:
        """Wait until resources are served: plural names with group. `kubectl wait` alone fails on a new definition."""
        names = [f"crd/{name}" for name in definitions]
        self.wait_for("wait", "--for=condition=Established", *names, "--timeout=30s")

    @contextlib.contextmanager
    def namespace(self) -> Iterator[str]:
        """Make a namespace of its own for a test, and have it deleted after."""
        name = f"test-{os.getpid()}-{next(_names)}"
        self.kubectl("create", "namespace", name)
        try:
            yield name
        finally:
            self.kubectl("delete", "namespace", name, "--wait=false")


class ControlPlane(Cluster):
    """A control plane of our own; `api` and `etcd` may be killed and started again on what they had stored."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.port = free_port()
        super().__init__(folder / "kubeconfig", programs)
        self._folder, self._programs = folder, programs
        etcd_port = free_port()
        clients, peers = f"http://127.0.0.1:{etcd_port}", f"http://127.0.0.1:{free_port()}"
        self.etcd = self._server(
            "etcd", etcd_port,
            f"--data-dir={folder / 'etcd.data'}",
            f"--listen-client-urls={clients}", f"--advertise-client-urls={clients}",
            f"--listen-peer-urls={peers}", f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}", "--unsafe-no-fsync", "--log-level=warn",
        )  # fmt: skip
        key, token = folder / "accounts.key", secrets.token_hex(16)
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        (folder / "tokens.csv").write_text(f"{token},admin,admin,system:masters\n")
        self.api = self._server(
            "kube-apiserver", self.port,
            f"--etcd-servers={clients}",
            "--bind-address=127.0.0.1", f"--secure-port={self.port}", f"--cert-dir={folder / 'certificates'}",
            f"--token-auth-file={folder / 'tokens.csv'}", "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}",
            "--service-cluster-ip-range=10.96.0.0/24", "--endpoint-reconciler-type=none",
        )  # fmt: skip
        manager_port = free_port()
        self.controllers = self._server(
            "kube-controller-manager", manager_port,
            "--bind-address=127.0.0.1", f"--secure-port={manager_port}", f"--kubeconfig={self.kubeconfig}",
            "--leader-elect=false", f"--controllers={_CONTROLLERS}",
        )  # fmt: skip
        self._token = token

    def _server(self, program: str, port: int, *arguments: str) -> Server:
        command = Command(program, [str(self._programs / program), *arguments], cwd=self._folder)
        return Server(command, port, self._folder / f"{program}.log")

    def start(self) -> None:
        self.etcd.start()
        self.api.start()
        self._write_kubeconfig()
        self.wait_ready()
        self.controllers.start()
        self.wait_for("get", "serviceaccount", "default", "-n", "default")

    def stop(self) -> None:
        for server in (self.controllers, self.api, self.etcd):
            server.stop()

    def restart_api(self) -> None:
        """Kill the API server and start it again; what is stored stays."""
        self.api.kill()
        self.api.start()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until the API server serves."""
        self.wait_for("get", "--raw", "/readyz")

    def _write_kubeconfig(self) -> None:
        cluster = {
            "server": f"https://127.0.0.1:{self.port}",
            "certificate-authority": str(self._folder / "certificates" / "apiserver.crt"),
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": self._token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
            "current-context": "test",
        }
        self.kubeconfig.write_text(json.dumps(config))


@contextlib.contextmanager
def running_control_plane(folder: Path) -> Iterator[ControlPlane]:
    """Yield a control plane that lives as long as this context; its programs are made where they are not there yet."""
    made = subprocess.run([ROOT / "scripts/setup-cluster.sh"], check=True, stdout=subprocess.PIPE, text=True)
    plane = ControlPlane(folder, Path(made.stdout.strip()))
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


@contextlib.contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """Yield the cluster of KUBECONFIG, or a control plane of our own."""
    if kubeconfig := os.environ.get("KUBECONFIG"):
        yield Cluster(Path(kubeconfig))
        return
    with running_control_plane(folder) as plane:
        yield plane
