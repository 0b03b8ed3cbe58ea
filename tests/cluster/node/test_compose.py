"""compose.yaml, brought up by podman-compose with images built here, until samples reach the API."""

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.node.plant import until
from testkit.images import podman, variables
from testkit.kubernetes import ROOT
from testkit.ports import free_port

pytestmark = [pytest.mark.needs("node"), pytest.mark.in_order, pytest.mark.timeout(900)]

MACHINES = {f"cnc-00{number}" for number in range(1, 6)}
HEALTHY = ("nats", "database", "ingest", "api", "simulator", "agent")


class Compose:
    """A project of its own name, on ports of its own."""

    def __init__(self) -> None:
        self.project = f"cncmon-test-{os.getpid()}"
        self.port = free_port()
        ports = {"CNCMON_PAGE_PORT": str(self.port), "CNCMON_NATS_PORT": str(free_port())}
        self._environ = os.environ | variables() | ports | {"CNCMON_PASSWORD": "secret1e5"}

    def __call__(self, *arguments: str) -> str:
        program = str(Path(sys.executable).parent / "podman-compose")
        command = [program, "--project-name", self.project, "--file", str(ROOT / "compose.yaml"), *arguments]
        done = subprocess.run(
            command, env=self._environ, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{' '.join(arguments)}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    def container(self, service: str) -> str:
        found: list[str] = podman("ps", "-aq", "--filter", f"name={self.project}[_-]{service}[_-]1").stdout.split()
        assert len(found) == 1, f"{service}: {found}"
        return found[0]

    def healthy(self, service: str) -> bool:
        # Without systemd nobody runs the checks by their intervals: they are run here, as they are written.
        return podman("healthcheck", "run", self.container(service), check=False).returncode == 0

    def machines(self) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.port}/api/v1/machines"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            return {one["id"]: one for one in json.load(answer)["machines"] if one["last_sample"]}
        return {}


@pytest.fixture(scope="module")
def compose(images: Path) -> Iterator[Compose]:
    project = Compose()
    try:
        project("up", "--detach", "--no-build")
        yield project
    finally:
        project("down", "--volumes", "--timeout", "5")


def test_samples_reach_the_api(compose: Compose) -> None:
    until(lambda: set(compose.machines()) == MACHINES, "samples of five machines")
    for service in HEALTHY:
        until(lambda one=service: compose.healthy(one), f"{service} is healthy")  # type: ignore[misc]
    state = json.loads(podman("inspect", compose.container("migrate")).stdout)[0]["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 0)


def test_what_is_away_is_no_longer_healthy_and_samples_go_on_when_it_is_back(compose: Compose) -> None:
    podman("stop", "--time", "10", compose.container("database"))
    until(lambda: not compose.healthy("ingest"), "ingest says that its database is away")
    back = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    podman("start", compose.container("database"))
    until(lambda: compose.healthy("ingest"), "ingest works again")
    until(lambda: _all_newer(compose.machines(), back), "news of all machines")


def _all_newer(machines: dict[str, Any], than: str) -> bool:
    return set(machines) == MACHINES and all(one["last_sample"]["timestamp"] > than for one in machines.values())
