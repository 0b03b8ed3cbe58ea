"""What the charts say of containers, run as processes: their commands and variables make a system that works.

There is no node in it, so names of Services become addresses of this machine, and folders those of the test. The rest
is as rendered: three nats-servers by the chart's file, the migration Job, ingest, query API, agent, and the simulator
of skaffold/.
"""

import base64
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml

from cncmon_standalone.embedded import nats
from cncmon_standalone.embedded.process import Command
from testkit.charts import EDGE, MONITOR, find, manifests
from testkit.kubernetes import ROOT
from testkit.ports import free_port
from testkit.servers import Postgres, Server
from testkit.waiting import WAIT_S_MAX, until_blocking

PROGRAMS = Path(sys.executable).parent
SERVERS = 3
MACHINES = {f"cnc-00{number}" for number in range(1, 6)}


class Pods:
    """Containers of rendered objects as processes. places: texts of the objects, and what they are here."""

    def __init__(self, folder: Path, objects: list[dict[str, Any]], places: Mapping[str, str]) -> None:
        self.folder, self.objects, self.places = folder, objects, dict(places)
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def here(self, text: str) -> str:
        for place, local in self.places.items():
            text = text.replace(place, local)
        return text

    def environment(self, container: dict[str, Any], **changes: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for variable in container["env"]:
            if "value" in variable:
                text = variable["value"]
            elif reference := variable["valueFrom"].get("secretKeyRef"):
                secret = find(self.objects, "Secret", reference["name"])
                text = base64.b64decode(secret["data"][reference["key"]]).decode()
            else:
                text = variable["valueFrom"]["fieldRef"]["fieldPath"]
            for name, value in found.items():
                text = text.replace(f"$({name})", value)
            found[variable["name"]] = text
        found = {name: self.here(text) for name, text in found.items()}
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder), **found, **changes}

    def container(self, kind: str, end: str) -> dict[str, Any]:
        one = find(self.objects, kind, end)
        spec = one["spec"] if kind == "Pod" else one["spec"]["template"]["spec"]
        container: dict[str, Any] = spec["containers"][0]
        return container

    def start(self, kind: str, end: str, **changes: str) -> subprocess.Popen[bytes]:
        container = self.container(kind, end)
        command = [*container["command"], *container.get("args", [])]
        program = sys.executable if command[0] == "python3" else str(PROGRAMS / command[0])
        with (self.folder / f"{kind}{end}.log").open("ab") as log:
            process = subprocess.Popen(
                [program, *command[1:]], env=self.environment(container, **changes), stdout=log, stderr=log
            )
        self.running[f"{kind}{end}"] = process
        return process

    def finish(self, kind: str, end: str, seconds: float = WAIT_S_MAX) -> None:
        """Run a container to its end, which must be a good one."""
        process = self.start(kind, end)
        assert process.wait(seconds) == 0, self.log(kind, end)

    def log(self, kind: str, end: str) -> str:
        return (self.folder / f"{kind}{end}.log").read_text()[-3000:]

    def stop(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            process.kill()
            process.wait()


def nats_servers(pods: Pods, folder: Path) -> list[Server]:
    """Return the servers of the chart's StatefulSet, not started."""
    text = find(pods.objects, "ConfigMap", "-nats")["data"]["nats.conf"]
    container = pods.container("StatefulSet", "-nats")
    client, cluster = ([free_port() for _ in range(SERVERS)] for _ in range(2))
    for number, port in enumerate(cluster):
        text = text.replace(
            f"plant-cnc-monitor-nats-{number}.plant-cnc-monitor-nats-headless:6222", f"127.0.0.1:{port}"
        )
    servers = []
    for number in range(SERVERS):
        own = folder / f"nats-{number}"
        own.mkdir()
        changes = {
            "0.0.0.0:4222": f"127.0.0.1:{client[number]}", "0.0.0.0:6222": f"127.0.0.1:{cluster[number]}",
            "0.0.0.0:8222": f"127.0.0.1:{free_port()}", "/data/jetstream": str(own), "/tmp/nats.pid": str(own / "pid"),
        }  # fmt: skip
        mine = text
        for place, local in changes.items():
            assert place in mine
            mine = mine.replace(place, local)
        file = own / "nats.conf"
        file.write_text(mine)
        variables = pods.environment(container)
        variables["SERVER_NAME"] = f'"plant-cnc-monitor-nats-{number}"'
        argv = ["env", *(f"{name}={value}" for name, value in variables.items()), str(nats.program()), "-c", str(file)]
        servers.append(Server(Command(f"nats-{number}", argv, cwd=own), client[number], folder / f"nats-{number}.log"))
    urls = ",".join(f"nats://127.0.0.1:{port}" for port in client)
    pods.places["nats://plant-cnc-monitor-nats:4222"] = urls
    return servers


@pytest.fixture
async def database(postgres_server: Postgres) -> str:
    """The URL of a database without tables."""
    connection = await asyncpg.connect(postgres_server.dsn)
    name = f"charts_{time.monotonic_ns()}"
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    return postgres_server.dsn.rsplit("/", 1)[0] + f"/{name}"


@pytest.fixture
def pods(tmp_path: Path, database: str) -> Iterator[Pods]:
    machines = tmp_path / "machines"
    machines.mkdir()
    objects = manifests(MONITOR, {"nats": {"bundled": {"replicas": SERVERS}}})
    edge = {
        "site": "hall", "edge": "simulated", "machinesConfigMap": "machines",
        "nats": {"servers": ["nats://plant-cnc-monitor-nats:4222"], "existingSecret": "plant-cnc-monitor-nats"},
        "settings": {"spool_bytes_max": 64 << 20, "spool_free_bytes_min": 0},
    }  # fmt: skip
    objects += manifests(EDGE, edge)
    objects += [one for one in yaml.safe_load_all((ROOT / "docs/examples/simulated/simulator.yaml").read_text()) if one]
    secret = find(objects, "Secret", "-database")
    password = database.partition("://")[2].partition("@")[0].partition(":")[2]
    secret["data"]["password"] = base64.b64encode(password.encode()).decode()
    api = free_port()
    host, _, name = database.rpartition("@")[2].partition("/")
    places = {
        "plant-cnc-monitor-database:5432/cncmon": f"{host}/{name}", "http://plant-cnc-monitor-api:8080": f"http://127.0.0.1:{api}",
        "/etc/cncmon/machines": str(machines), "/data/agent": str(tmp_path / "agent"),
    }  # fmt: skip
    found = Pods(tmp_path, objects, places)
    found.places["api-port"] = str(api)
    profile = ROOT / "docs/examples/simulated/profile.yaml"
    (machines / "profile.yaml").write_text(profile.read_text())
    ports = {15020 + number: free_port() for number in range(len(MACHINES))}
    text = (ROOT / "docs/examples/simulated/machines.yaml").read_text().replace("host: simulator", "host: 127.0.0.1")
    base = free_port()
    for number, port in enumerate(ports):
        text = text.replace(str(port), str(base + number))
    (machines / "machines.yaml").write_text(text)
    found.places["simulator-port"] = str(base)
    try:
        yield found
    finally:
        found.stop()


def machines_of(api: str) -> dict[str, str]:
    """Return the machines that the API knows, and the time of the newest sample of each."""
    with urllib.request.urlopen(f"{api}/api/v1/machines", timeout=WAIT_S_MAX) as answer:
        document = json.load(answer)
    return {one["id"]: one["last_sample"]["timestamp"] for one in document["machines"] if one["last_sample"]}


def test_what_the_charts_start_is_a_system_that_stores_samples(pods: Pods, tmp_path: Path) -> None:
    servers = nats_servers(pods, tmp_path)
    api_port = pods.places["api-port"]
    api = f"http://127.0.0.1:{api_port}"
    try:
        for server in servers:
            server.start()
        pods.finish("Job", "-migrate-1")
        pods.start("Deployment", "-ingest", CNCMON_SERVICE_MONITOR_PORT=str(free_port()))
        pods.start("Deployment", "-api", CNCMON_API_PORT=api_port)
        pods.start(
            "Deployment", "simulator", CNCMON_SIMULATOR_PORT_BASE=pods.places["simulator-port"],
            CNCMON_SERVICE_MONITOR_PORT=str(free_port()), CNCMON_SIMULATOR_CONTROL_PORT="-1",
        )  # fmt: skip
        agent_port = str(free_port())
        pods.places["http://plant-cnc-edge-0.plant-cnc-edge:9090"] = f"http://127.0.0.1:{agent_port}"
        pods.start("StatefulSet", "-edge", CNCMON_SERVICE_MONITOR_PORT=agent_port)

        # The pods of `helm test`.
        pods.finish("Pod", "-monitor-test")
        pods.finish("Pod", "-edge-test")

        def all_newer(than: dict[str, str]) -> None:
            def newer() -> bool:
                with contextlib.suppress(OSError):
                    found = machines_of(api)
                    return set(found) == MACHINES and all(found[one] > than.get(one, "") for one in found)
                return False

            until_blocking(newer, what=lambda: pods.log("StatefulSet", "-edge") + pods.log("Deployment", "-ingest"))

        all_newer({})
        # One of three servers dies: streams of three replicas go on.
        servers[0].kill()
        before = machines_of(api)
        time.sleep(3)
        all_newer(before)
    finally:
        for server in servers:
            server.stop()
