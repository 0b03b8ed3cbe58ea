"""What is installed in a namespace of the node, as people and machines outside of it see it."""

import base64
import contextlib
import json
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from cncmon_standalone.embedded.process import base_environ
from testkit import images
from testkit.kubernetes import ROOT
from testkit.node import Node
from testkit.ports import free_port
from testkit.waiting import until_blocking

RESTRICTED = [f"pod-security.kubernetes.io/{mode}=restricted" for mode in ("enforce", "warn", "audit")]


class Plant:
    """A namespace with release `plant` of the chart cnc-monitor in it. `commands` of a shell see kubectl and helm."""

    def __init__(self, node: Node, namespace: str, scratch: Path) -> None:
        self.node, self.namespace = node, namespace
        self._api = ""
        tools = scratch / "tools"
        tools.mkdir(parents=True, exist_ok=True)
        # What a user of k3s has and this node has not: it imports into this node.
        _write_program(tools / "k3s", f'test "$*" = "ctr images import $4" && exec {node.import_command} "$4"')
        _write_program(tools / "sudo", 'exec "$@"')
        own = {"KUBECONFIG": str(node.kubeconfig), "HOME": str(scratch)}
        path = f"{tools}:{node.programs}:{base_environ()['PATH']}"
        self.environ = base_environ() | images.variables() | own | {"PATH": path}

    def make_namespace(self) -> None:
        """Make the namespace, with the strictest of the Pod Security standards enforced."""
        self.node.kubectl("create", "namespace", self.namespace)
        self.node.kubectl("label", "namespace", self.namespace, *RESTRICTED)

    def remove(self) -> None:
        """Uninstall all of it, and remove what that leaves: another namespace may have the definitions then."""
        self.kubectl("delete", "machines,machineprofiles,edgenodes", "--all", "--timeout=60s", check=False)
        releases = self.run(f"helm list --short --namespace {self.namespace}").stdout.split()
        self.run("\n".join(f"helm uninstall {name} --namespace {self.namespace} --wait" for name in releases))
        kinds = "crd,validatingadmissionpolicy,validatingadmissionpolicybinding"
        self.node.kubectl("delete", kinds, "-l", "app.kubernetes.io/part-of=cnc-monitor", "--timeout=60s")
        self.node.kubectl("delete", "namespace", self.namespace, "--wait=false")

    def run(self, command: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command line in the checkout, as a user with bash does."""
        done = subprocess.run(
            ["bash", "-euc", command], cwd=ROOT, env=self.environ, capture_output=True, text=True,
            timeout=1800, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done

    def kubectl(
        self, *arguments: str, stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl in the namespace."""
        return self.node.kubectl("-n", self.namespace, *arguments, stdin=stdin, check=check)

    def get(self, *arguments: str) -> Any:
        """Return what `kubectl get -o json` prints."""
        return self.node.get(*arguments, "-n", self.namespace)

    def pods(self, component: str) -> list[dict[str, Any]]:
        """Return the pods of a component of either chart."""
        found: list[dict[str, Any]] = self.get("pods", "-l", f"app.kubernetes.io/component={component}")["items"]
        return found

    def api(self, path: str) -> Any:
        """Ask the query API through its Service."""
        if not self._api:
            self._api = self.get("service", "plant-cnc-monitor-api")["spec"]["clusterIP"]
        with urllib.request.urlopen(f"http://{self._api}:8080/api/v1/{path}", timeout=5) as answer:
            return json.load(answer)

    def machines(self) -> dict[str, dict[str, Any]]:
        """Return the machines that the query API knows; {} while it can't be asked."""
        with contextlib.suppress(OSError):
            return {one["id"]: one for one in self.api("machines")["machines"]}
        self._api = ""
        return {}

    def conditions(self, machine: str) -> dict[str, dict[str, Any]]:
        """Return the conditions of a Machine by their type."""
        status = self.get("machine", machine).get("status", {})
        return {one["type"]: one for one in status.get("conditions", [])}

    def secret(self, name: str, key: str) -> str:
        """Return a value of a Secret."""
        return base64.b64decode(self.get("secret", name)["data"][key]).decode()

    @contextlib.contextmanager
    def forwarded(self, target: str, port: int) -> Iterator[int]:
        """Yield a port of this machine that leads to one of a pod or Service, past all policies."""
        local = free_port()
        process = subprocess.Popen(
            ["kubectl", "port-forward", "-n", self.namespace, target, f"{local}:{port}"],
            env=self.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            until(lambda: _listens(local), f"{target} is not forwarded")
            yield local
        finally:
            process.kill()
            process.wait()

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """Yield the DSN of the bundled database."""
        password = self.secret("plant-cnc-monitor-database", "password")
        with self.forwarded("pod/plant-cnc-monitor-database-0", 5432) as port:
            yield f"postgresql://cncmon:{password}@127.0.0.1:{port}/cncmon"


def until(holds: Callable[[], object], what: str) -> float:
    """Wait until something holds; return how long that took, in seconds."""
    began_s = time.monotonic()
    until_blocking(holds, what=what, every_s=0.2)
    return time.monotonic() - began_s


def readme_commands(heading: str) -> list[str]:
    """Return the lines of the first block of commands under a heading of the README."""
    text = (ROOT / "README.md").read_text()
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = re.search(r"^```\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    assert found is not None, heading
    return found.group(1).splitlines()


def documents(path: Path) -> list[dict[str, Any]]:
    """Return the YAML documents of a file."""
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _write_program(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/bash\n{line}\n")
    path.chmod(0o755)
