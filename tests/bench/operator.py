"""The operator at a fleet's size: 2,000 Machines on 200 edges, on a real API server and a real NATS."""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
from nats.aio.client import Client

from bench.report import Figure, Report, run
from cluster.operators import FILES, Hall, Operator, hall_of
from cncmon_core import names
from cncmon_core.edge_documents import EdgeDocuments
from cncmon_ingest import bootstrap
from testkit import ingest
from testkit.kubernetes import ControlPlane, running_control_plane
from testkit.servers import running_nats

EDGES, MACHINES_AN_EDGE = 200, 10
CHANGES = 200
STEADY_S = 120.0
HEARTBEAT_S = 10.0


def machine(edge: int, number: int, register: int = 1) -> dict[str, Any]:
    spec = {
        "site": "hall",
        "edge": f"e{edge:03}",
        "connection": {"modbus": {"host": "10.0.0.1"}},
        "signals": [{"name": f"s{at}", "register": register + at} for at in range(12)],
    }
    name = f"m{edge:03}-{number}"
    return {"apiVersion": "cncmon.dev/v1alpha1", "kind": "Machine", "metadata": {"name": name}, "spec": spec}


class Api:
    """The API server without kubectl, whose start would be most of what is measured."""

    def __init__(self, plane: ControlPlane) -> None:
        config = json.loads(plane.kubeconfig.read_text())
        token = config["users"][0]["user"]["token"]
        self.client = httpx.AsyncClient(
            base_url=f"{config['clusters'][0]['cluster']['server']}/apis/cncmon.dev/v1alpha1/namespaces/default",
            verify=False,
            headers={"Authorization": f"Bearer {token}"},
            timeout=30,
        )

    async def create(self, document: dict[str, Any]) -> None:
        (await self.client.post("/machines", json=document)).raise_for_status()

    async def change(self, name: str, interval_ms: int) -> None:
        patch = {"spec": {"pollIntervalMs": interval_ms}}
        headers = {"Content-Type": "application/merge-patch+json"}
        answer = await self.client.patch(f"/machines/{name}", content=json.dumps(patch), headers=headers)
        answer.raise_for_status()

    async def round_trip_s(self) -> float:
        """Return the floor of a change: the write alone."""
        started_s = time.perf_counter()
        await self.change("m000-0", 1000)
        return time.perf_counter() - started_s


async def _written(client: Client, configured: int) -> None:
    """Wait until every edge has its document with all machines."""
    documents = EdgeDocuments(client)
    left = {("hall", f"e{edge:03}") for edge in range(configured)}
    while left:
        for edge in sorted(left):
            config = (await documents.read(*edge)).config
            if config is not None and len(config.machines) == MACHINES_AN_EDGE:
                left.discard(edge)
        await asyncio.sleep(0.2)


async def _statuses(operator: Operator, number: int) -> None:
    while operator.metric("cncmon_operator_statuses_written_total") < number:
        await asyncio.sleep(0.2)


async def _change_s(api: Api, client: Client, edge: int, interval_ms: int) -> float:
    """Return how long it takes from the API server's answer until the edge's document has the change."""
    heard: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def on_message(message: Any) -> None:
        if f'"pollIntervalMs":{interval_ms}'.encode() in message.data and not heard.done():
            heard.set_result(time.perf_counter())

    subject = names.republish_subject(names.KV_CONFIG, "hall", f"e{edge:03}")
    subscription = await client.subscribe(subject, cb=on_message)
    await client.flush()
    await api.change(f"m{edge:03}-3", interval_ms)
    started_s = time.perf_counter()
    try:
        return max(0.0, await asyncio.wait_for(heard, 30) - started_s)
    finally:
        await subscription.unsubscribe()


async def _beat(hall: Hall, edges: int) -> None:
    """Have every edge send heartbeats, spread over their interval."""
    bucket = await hall.client.jetstream().key_value(names.KV_STATUS)
    documents = EdgeDocuments(hall.client)
    configs = [(await documents.read("hall", f"e{edge:03}")).config for edge in range(edges)]
    while True:
        for edge, config in enumerate(configs):
            assert config is not None
            moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            read = [
                {"id": name, "state": "connected", "machine_state": "running", "last_sample": moment}
                for name in config.by_name
            ]
            says = {"revision": config.revision, "sha256": config.sha256, "errors": []}
            said = {"version": "0.1.0", "machines": read, "config": says, "buffer": {"hours_left": 99}, "problems": []}
            await bucket.put(f"hall.e{edge:03}", msgspec.json.encode(said))
            await asyncio.sleep(HEARTBEAT_S / edges)


async def _measure(report: Report, folder: Path, plane: ControlPlane, nats_url: str, *, quick: bool) -> None:
    edges = 20 if quick else EDGES
    client = Client()
    await client.connect(nats_url)
    await bootstrap.ensure(client, ingest.settings_for(""))
    plane.kubectl("apply", "--server-side", "-f", str(FILES / "crds"), "-f", str(FILES / "admission"))
    plane.wait_established("machines.cncmon.dev")
    api = Api(plane)
    for edge in range(edges):
        await asyncio.gather(*(api.create(machine(edge, number)) for number in range(MACHINES_AN_EDGE)))
    shipped: dict[str, Any] = {"resync_s": 60, "status_interval_s": 10, "value_interval_s": 60, "lease_s": 15}
    async with hall_of(plane, "default", nats_url, client, folder) as hall:
        started_s = time.monotonic()
        operator = hall.operator(**shipped)
        await _written(client, edges)
        documents_s = time.monotonic() - started_s
        await _statuses(operator, edges * MACHINES_AN_EDGE)
        all_s = time.monotonic() - started_s
        first = operator.metric("cncmon_operator_api_requests_total")
        # The very first start of all: each Machine gets its finalizer and its status.
        report.add("operator.first_documents", Figure(documents_s, "s"))
        report.add("operator.first_statuses", Figure(all_s, "s"))
        report.add("operator.first_requests", Figure(first / (edges * MACHINES_AN_EDGE), "requests/machine"))

        again_s = time.monotonic()
        operator.stop()
        operator.start()
        await _leads(operator)
        looked = 0.0
        while looked < edges:
            looked = operator.metric("cncmon_operator_reconcile_seconds_count")
            await asyncio.sleep(0.05)
        report.add("operator.resync", Figure(time.monotonic() - again_s, "s", None, "", 30, "at_most"))

        floor_s = statistics.median([await api.round_trip_s() for _ in range(20)])
        took_s = [await _change_s(api, client, at % edges, 1001 + at) for at in range(20 if quick else CHANGES)]
        took_s.sort()
        p50, p99 = took_s[len(took_s) // 2], took_s[int(len(took_s) * 0.99) - 1]
        report.add("operator.change_p50", Figure(1000 * p50, "ms", 1000 * floor_s, "a write to the API server"))
        report.add(
            "operator.change_p99",
            Figure(1000 * p99, "ms", 1000 * floor_s, "a write to the API server", 1000, "at_most"),
        )

        beats = asyncio.create_task(_beat(hall, edges))
        await asyncio.sleep(20 if quick else 75)  # until the first statuses of all are written
        before = operator.metric("cncmon_operator_api_requests_total")
        await asyncio.sleep(10 if quick else STEADY_S)
        steady = operator.metric("cncmon_operator_api_requests_total") - before
        report.add("operator.steady_requests", Figure(steady / (10 if quick else STEADY_S), "requests/s"))
        beats.cancel()
        assert operator.pid is not None
        rss_mb = psutil.Process(operator.pid).memory_info().rss / 1e6
        report.add("operator.rss", Figure(rss_mb, "MB", None, "", 200, "at_most"))
        report.add(
            "operator.errors", Figure(operator.metric("cncmon_operator_errors_total"), "", None, "", 0, "at_most")
        )
    await api.client.aclose()
    await client.close()


async def _leads(operator: Operator) -> None:
    while True:
        try:
            if operator.metric("cncmon_operator_leader") == 1:
                return
        except OSError:  # not serving yet
            pass
        await asyncio.sleep(0.05)


def measure(report: Report, quick: bool) -> None:
    """Run it (quick: 200 machines on 20 edges)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with running_control_plane(folder) as plane, running_nats(folder) as nats:
            asyncio.run(_measure(report, folder, plane, f"nats://127.0.0.1:{nats.port}", quick=quick))
    if quick:
        report.not_run.append("2,000 machines on 200 edges")


if __name__ == "__main__":
    sys.exit(run("operator", measure))
