"""Operators as processes, and what a test asks of Machines, documents and heartbeats."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import yaml
from nats.aio.client import Client

from cncmon_core import names
from cncmon_core.edge_config import EdgeConfig
from cncmon_core.edge_documents import EdgeDocuments, Stored
from cncmon_standalone.embedded.process import base_environ
from testkit.kubernetes import ROOT, Cluster
from testkit.ports import free_port
from testkit.waiting import WAIT_S_MAX

FILES = ROOT / "charts/cnc-monitor/files"
WAIT_S = WAIT_S_MAX


class Operator:
    """One replica."""

    def __init__(self, cluster: Cluster, namespace: str, nats_url: str, log: Path, **settings: Any) -> None:
        quick = {"resync_s": 60, "status_interval_s": 0.2, "value_interval_s": 0.5, "lease_s": 3} | settings
        self.port = free_port()
        self.log = log
        self._environ = base_environ() | {
            "KUBECONFIG": str(cluster.kubeconfig),
            "CNCMON_NATS_SERVERS": nats_url,
            "CNCMON_OPERATOR_NAMESPACE": namespace,
            "CNCMON_SERVICE_MONITOR_PORT": str(self.port),
            **{f"CNCMON_OPERATOR_{name.upper()}": str(value) for name, value in quick.items()},
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            command = [sys.executable, "-P", "-m", "cncmon_operator.main", "run"]
            self._process = subprocess.Popen(command, env=self._environ, stdout=log, stderr=log)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ask it to stop, and wait until it has."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(WAIT_S) == 0, self.log.read_text()[-3000:]

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def pause(self, paused: bool) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP if paused else signal.SIGCONT)

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels; 0 where it has not been counted yet."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=WAIT_S) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


class Relay:
    """Passes TCP on, until it is told to forget the connections that are open: they stay open, and silent."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._pumps: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[int]:
        """Yield the port to connect to."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        yield server.sockets[0].getsockname()[1]
        server.close()
        self.fall_silent()
        for writer in self._writers:
            writer.transport.abort()

    def fall_silent(self) -> None:
        """Pass nothing more on over what is open now; new connections work."""
        for pump in self._pumps:
            pump.cancel()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        source, upstream = await asyncio.open_connection("127.0.0.1", self._target_port)
        self._writers += writer, upstream
        for ends in ((reader, upstream), (source, writer)):
            pump = asyncio.create_task(self._pump(*ends))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(64 << 10):
                writer.write(data)
                await writer.drain()
            writer.close()


class Hall:
    """A namespace with operators, and the edges' documents that come of it."""

    def __init__(self, cluster: Cluster, namespace: str, nats_url: str, client: Client, folder: Path) -> None:
        self.cluster, self.namespace, self.client = cluster, namespace, client
        self.documents = EdgeDocuments(client)
        self.operators: list[Operator] = []
        self.nats_url, self._folder = nats_url, folder

    def operator(self, by: Cluster | None = None, **settings: Any) -> Operator:
        """Start another replica. by: how it sees the cluster, where not as we do."""
        log = self._folder / f"operator-{len(self.operators)}.log"
        made = Operator(by or self.cluster, self.namespace, self.nats_url, log, **settings)
        self.operators.append(made)
        made.start()
        return made

    def release(self) -> None:
        """Let go of all Machines, as one does before the operator is removed."""
        environ = {"KUBECONFIG": str(self.cluster.kubeconfig), "CNCMON_OPERATOR_NAMESPACE": self.namespace}
        command = [sys.executable, "-P", "-m", "cncmon_operator.main", "release"]
        done = subprocess.run(command, env=base_environ() | environ, capture_output=True, text=True, timeout=WAIT_S)
        assert done.returncode == 0, done.stderr

    def apply(self, *documents: dict[str, Any]) -> None:
        self.cluster.kubectl("apply", "-n", self.namespace, "-f", "-", stdin=yaml.safe_dump_all(documents))

    def delete(self, what: str, *names_: str, wait: bool = True) -> None:
        self.cluster.kubectl("delete", what, *names_, "-n", self.namespace, f"--wait={str(wait).lower()}")

    def get(self, *what: str) -> Any:
        return self.cluster.get(*what, "-n", self.namespace)

    async def stored(self, edge: str = "e1") -> Stored:
        return await self.documents.read("hall", edge)

    async def config(self, edge: str = "e1") -> EdgeConfig | None:
        return (await self.stored(edge)).config

    async def machines(self, edge: str = "e1") -> list[str] | None:
        """Return which machines an edge's document has; None where there is none."""
        config = await self.config(edge)
        return None if config is None else sorted(config.by_name)

    def conditions(self, name: str, kind: str = "mc") -> dict[str, tuple[str, str]]:
        """Return status and reason by condition."""
        found = self.get(kind, name).get("status", {}).get("conditions", ())
        return {one["type"]: (one["status"], one["reason"]) for one in found}

    async def beat(self, edge: str = "e1", **more: Any) -> None:
        """Send a heartbeat as an edge would that runs what is written for it."""
        config = await self.config(edge)
        says = {"revision": config.revision, "sha256": config.sha256, "errors": []} if config else {}
        read = [
            {"id": name, "state": "connected", "machine_state": "running"}
            for name in (config.by_name if config else ())
        ]
        said = {"version": "0.1.0", "machines": read, "config": says, "buffer": {"hours_left": 12.5}, "problems": []}
        bucket = await self.client.jetstream().key_value(names.KV_STATUS)
        await bucket.put(names.edge_key("hall", edge), msgspec.json.encode(said | more))

    async def until(self, holds: Callable[[], Awaitable[bool]], what: str, timeout_s: float = WAIT_S) -> float:
        """Wait until something is so; return how long it took, in seconds."""
        started_s = time.monotonic()
        while not await holds():
            if time.monotonic() - started_s > timeout_s:
                logs = "\n".join(one.log.read_text()[-4000:] for one in self.operators)
                raise AssertionError(f"after {timeout_s:.0f} s: not {what}\n{logs}")
            await asyncio.sleep(0.05)
        return time.monotonic() - started_s

    async def until_machines(self, expected: list[str], edge: str = "e1", timeout_s: float = WAIT_S) -> float:
        async def holds() -> bool:
            return await self.machines(edge) == expected

        return await self.until(holds, f"{expected} in the document of {edge}", timeout_s)

    async def until_condition(self, name: str, kind: str, truth: str, reason: str, what: str = "mc") -> None:
        async def holds() -> bool:
            return self.conditions(name, what).get(kind) == (truth, reason)

        await self.until(holds, f"{name} {kind} {truth} {reason}")


@contextlib.asynccontextmanager
async def hall_of(cluster: Cluster, namespace: str, nats_url: str, client: Client, folder: Path) -> AsyncIterator[Hall]:
    """Yield a hall; its operators are stopped, and its resources let go, at the end."""
    hall = Hall(cluster, namespace, nats_url, client, folder)
    try:
        yield hall
    finally:
        for operator in hall.operators:
            if operator.running:
                operator.kill()
        hall.release()
