"""Samples that flow through a plant on the node, and the judgement on them.

Machines outside of it write down what they answered, its edge what it accepted; both are compared with the table.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import yaml

from cluster.node.plant import Plant, until
from robustness.traffic.child import Child
from robustness.validate import recovery
from robustness.validate.finding import Finding, judge
from robustness.validate.promised import Promised, last_epoch, newest
from testkit.node import HOST
from testkit.ports import free_port
from testkit.waiting import WAIT_S_MAX

MACHINES = 20
POLL_INTERVAL_MS = 100
EDGE = "proof"
AGENT = f"{EDGE}-cnc-edge"
STORED_S_MAX = WAIT_S_MAX
SAMPLES_MIN = 50
"""Of each machine, between two judgements: five seconds."""


class Flow:
    """The samples of one edge in a plant's namespace. `killed` collects the epochs that a kill -9 ended."""

    def __init__(self, plant: Plant, folder: Path) -> None:
        self.plant, self.folder = plant, folder
        self.killed: set[int] = set()
        self._sent = 0
        self.polls, self.documents = folder / "polls.jsonl", folder / "machines.yaml"
        settings = {
            "SIMULATOR_MACHINES": MACHINES, "SIMULATOR_HOST": HOST, "SIMULATOR_PORT_BASE": free_port(),
            "SIMULATOR_SITE": "hall", "SIMULATOR_EDGE": EDGE, "SIMULATOR_POLL_INTERVAL_MS": POLL_INTERVAL_MS,
            "SIMULATOR_NAME_PREFIX": f"{EDGE}-", "SIMULATOR_MACHINES_FILE": self.documents,
            "SIMULATOR_POLL_LOG": self.polls, "SIMULATOR_CONTROL_PORT": -1, "SERVICE_MONITOR_PORT": free_port(),
        }  # fmt: skip
        environ = {f"CNCMON_{name}": str(value) for name, value in settings.items()}
        self._simulator = Child("simulator", folder, ["-m", "cncmon_simulator.main"], environ)

    @contextlib.contextmanager
    def machines(self) -> Iterator[None]:
        """Run the machines while this lasts."""
        self._simulator.start()
        try:
            until(self.documents.exists, f"the machines run, {self._simulator.log}")
            yield
        finally:
            self._simulator.kill()

    def values(self) -> str:
        """Return a file of values for this edge's release of the chart cnc-edge."""
        values = {
            "site": "hall",
            "edge": EDGE,
            "nats": {"servers": ["nats://plant-cnc-monitor-nats:4222"], "existingSecret": "plant-cnc-monitor-nats"},
            "extraEnv": [{"name": "CNCMON_AGENT_ACCEPTED_LOG", "value": "/data/accepted.jsonl"}],
        }
        path = self.folder / "edge.yaml"
        path.write_text(yaml.safe_dump(values))
        return str(path)

    @property
    def accepted(self) -> Path:
        """What the edge accepted, written by its process into its volume."""
        return self.plant.node.volume(self.plant.namespace, f"data-{AGENT}-0") / "accepted.jsonl"

    def stored(self) -> int:
        """Return how many of the machines have a sample that is at most three seconds old."""
        found = self.plant.machines().values()
        return sum(one["state"] != "offline" and _age_s(one) <= 3 for one in found)

    def wait_until_it_flows(self) -> float:
        """Wait until news of all machines come in; return how long that took."""
        return until(lambda: self.stored() == MACHINES, f"news of {MACHINES} machines")

    def note_kill(self) -> None:
        """The agent is about to be killed: what it has neither synced nor seen acknowledged is no promise."""
        epoch = last_epoch(self.accepted)
        assert epoch is not None
        self.killed.add(epoch)

    def judge(self) -> Finding:
        """Stop the edge, wait until all that it promised is stored, judge, start it again.

        Nothing may be lost, doubled, altered or in a gap. Begins once something has been stored since the last time.
        """
        plant = self.plant
        wanted = self._sent + MACHINES * SAMPLES_MIN
        with plant.database() as dsn:
            until(lambda: asyncio.run(_rows(dsn)) >= wanted, f"{wanted} samples are stored")
            plant.kubectl("scale", "statefulset", AGENT, "--replicas=0")
            until(lambda: not plant.pods("agent"), "the edge stops")
            accepted = self.accepted
            ends = Promised([accepted], self.killed).ends() if self.killed else dict([_newest(accepted)])
            asyncio.run(recovery.wait_for(dsn, {epoch: seq for epoch, seq in ends.items() if seq}, STORED_S_MAX))
            # Poll logs are written every so often.
            time.sleep(1)
            finding = asyncio.run(judge(dsn, [accepted], [self.polls], self.folder, killed=self.killed))
        assert finding.holds, finding.complaints
        assert finding.excuses.gaps == []
        assert not finding.excuses.dead
        assert finding.sent >= wanted
        self._sent = finding.sent
        plant.kubectl("scale", "statefulset", AGENT, "--replicas=1")
        self.wait_until_it_flows()
        return finding


async def _rows(dsn: str) -> int:
    connection = await asyncpg.connect(dsn)
    number: int = await connection.fetchval("SELECT count(*) FROM sensor_data")
    await connection.close()
    return number


def _newest(accepted: Path) -> tuple[int, int]:
    found = newest(accepted)
    assert found is not None
    return found


def _age_s(machine: dict[str, object]) -> float:
    sample = machine["last_sample"]
    assert isinstance(sample, dict)
    return (datetime.now(UTC) - datetime.fromisoformat(sample["timestamp"])).total_seconds()
