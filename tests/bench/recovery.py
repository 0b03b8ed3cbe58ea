"""How an edge comes back from an outage: a backlog on its disk of a stated length, while it reads machines."""

import asyncio
import contextlib
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import asyncpg

from bench.backlog import HZ, MACHINES, fill
from bench.plant import Part, Plant, memory
from bench.report import Figure, Report
from bench.watch import Watch, fetch, machine_names, reading
from cncmon_agent.buffer.spool import Spool
from cncmon_agent.settings import AgentSettings
from cncmon_agent.storage import spool_settings
from cncmon_core import frames
from cncmon_core.sample import decode_sample
from cncmon_ingest import rows
from cncmon_standalone.proof import latency
from cncmon_standalone.proof.accepted import AcceptedLog
from cncmon_standalone.proof.compare import Window

OUTAGES = (("1 min", 60, 2), ("1 h", 3600, 15), ("12 h", 43_200, 100), ("24 h", 86_400, 200))
"""Name, seconds, seconds that recovery may take."""

OTHERS, OTHER_EDGE = 100, "others"
"""With them 1,000 samples a second are live beside the longest replay."""

COPY_ROWS = 5000
COPY_S = 5.0
"""What the database can take at all is measured so: rows packed beforehand, two connections as there are workers."""


def _copy_limit(plant: Plant) -> float:
    """Return rows a second of bare COPY: no stream, no ledger, no edge, nobody who reads."""
    spare = plant.folder / "copy"
    settings = AgentSettings(spool_free_bytes_min=0)
    fill(spare, COPY_ROWS / MACHINES / HZ, settings)
    spool = Spool(spare / "spool", spool_settings(settings))
    for piece in spool.recover_steps():
        piece.run()
        piece.install()
    found = [decode_sample(f) for log in spool.earlier.values() for b in log for f in _frames_of(b.data)]
    spool.close()
    shutil.rmtree(spare)
    packed = [rows.pack(sample, rows.microseconds(sample.timestamp)) for sample in found]

    async def copy() -> int:
        connection = await asyncpg.connect(plant.postgres.dsn)
        until_s, copied = time.monotonic() + COPY_S, 0
        while time.monotonic() < until_s:
            await connection.copy_to_table(
                rows.TABLE, source=rows.pieces(packed), columns=rows.COLUMNS, format="binary"
            )
            copied += len(packed)
        await connection.close()
        return copied

    async def both() -> float:
        began_s = time.monotonic()
        copied = sum(await asyncio.gather(copy(), copy()))
        return copied / (time.monotonic() - began_s)

    rate = asyncio.run(both())
    fetch(plant, "TRUNCATE sensor_data")
    return rate


def _frames_of(data: bytes) -> list[bytes]:
    return frames.split(frames.decompress(data))[0]


class Live(NamedTuple):
    """Machines that are read live; what they answered, and what their agent accepted."""

    names: list[str]
    polls: Path
    accepted: Path

    def p99_ms(self, seen: Path, window: Window) -> float:
        """Return how long their samples took until they could be queried."""
        probes = latency.probes_of(self.names)
        return latency.measure(seen, AcceptedLog(self.accepted), self.polls, window, probes).p99 or math.nan


@contextlib.contextmanager
def _others(plant: Plant) -> Iterator[Live]:
    """Run another edge with 100 machines at 10 Hz, which never was away."""
    data = plant.folder / "others"
    data.mkdir()
    polls, accepted = data / "bench.polls", data / "bench.accepted"
    simulator, file = plant.machines(OTHERS, HZ, polls, OTHER_EDGE)
    agent = plant.agent(file, data / "agent", accepted_log=str(accepted), edge=OTHER_EDGE)
    try:
        agent.wait_for("connected to NATS")
        yield Live(machine_names(file), polls, accepted)
    finally:
        agent.stop()
        simulator.stop()
        shutil.rmtree(data)


def measure(
    report: Report, plant: Plant, name: str, seconds: float, reach_s: float, others: Live | None = None
) -> None:
    """An agent that comes back to a server with a backlog on its disk, while it reads machines; others go on."""
    copy_rate = _copy_limit(plant)
    data = plant.folder / f"recovery-{seconds}"
    settings = AgentSettings(spool_free_bytes_min=0)
    filled = fill(data, seconds, settings)
    polls, accepted, seen = (data / f"bench.{kind}" for kind in ("polls", "accepted", "seen"))
    simulator, file = plant.machines(MACHINES, HZ, polls)
    ours = Live(machine_names(file), polls, accepted)
    probes = [name for live in (ours, others) if live for name in latency.probes_of(live.names)]
    with reading(plant, probes, seen):
        time.sleep(2)
        started_ns = time.time_ns()
        agent = plant.agent(file, data, accepted_log=str(accepted))
        try:
            agent.wait_for("connected to NATS")
            connected_s = time.monotonic()
            watch = Watch(agent, None)
            while not fetch(
                plant, "SELECT FROM watermarks WHERE epoch = $1 AND seq >= $2", filled.epoch, filled.batches
            ):
                watch.memories.append((time.monotonic(), memory(agent.process.pid)))
                if time.monotonic() - connected_s > 4 * reach_s + 60:
                    raise SystemExit(f"{name}: not back after {time.monotonic() - connected_s:.0f} s\n{agent.log}")
                time.sleep(0.1)
            took_s, ended_ns = time.monotonic() - connected_s, time.time_ns()
            time.sleep(2)
        finally:
            agent.stop()
            simulator.stop()
    label = f"recovery.{name.replace(' ', '')}"
    stored = fetch(
        plant,
        "SELECT count(*) AS stored, count(DISTINCT (machine_id, part_count)) AS different FROM sensor_data "
        "WHERE machine_id LIKE 'gen-%'",
    )[0]
    report.add(label, Figure(took_s, "s", filled.samples / copy_rate, "bare COPY", reach_s, "at_most"))
    report.add(f"{label}.rate", Figure(filled.samples / took_s, "samples/s", copy_rate, "bare COPY"))
    report.add(f"{label}.lost", Figure(filled.samples - stored["different"], "samples", None, "", 0, "at_most"))
    report.add(f"{label}.duplicated", Figure(stored["stored"] - stored["different"], "samples", None, "", 0, "at_most"))
    report.add(f"{label}.rss", Figure(watch.rss_max, "MB", None, "", 50, "at_most"))
    window, limit_ms = Window(started_ns, ended_ns), AgentSettings().linger_ms / 2
    for what, live in (("live", ours), ("others", others)):
        if live is not None:
            p99 = live.p99_ms(seen, window)
            report.add(f"{label}.{what}_p99", Figure(p99, "ms", limit_ms, "half a linger", 500, "at_most"))
    first_s, imports_s = _first_live_s(agent, accepted, started_ns), _imports_s()
    report.add(f"{label}.first_live", Figure(first_s, "s", imports_s, "imports alone", 2, "at_most"))
    fetch(plant, "TRUNCATE sensor_data")


def _imports_s() -> float:
    """Return how long a Python takes to have imported the agent, and to do nothing with it."""
    began_s = time.monotonic()
    subprocess.run([sys.executable, "-c", "import cncmon_agent.main"], check=True)
    return time.monotonic() - began_s


def _first_live_s(agent: Part, accepted: Path, started_ns: int) -> float:
    """Return when the agent took the first sample of its own epoch, after its process began, in seconds."""
    made = next(json.loads(line) for line in agent.log.read_text().splitlines() if '"agent made"' in line)
    for line in accepted.read_text().splitlines():
        entry = json.loads(line)
        if entry.get("epoch") == made["epoch"] and entry.get("samples"):
            first = entry["samples"][0][2]
            return datetime.fromisoformat(first).timestamp() - started_ns / 1e9
    return math.nan


def measure_beside_others(report: Report, plant: Plant) -> None:
    """The longest outage, while others' samples are live."""
    _, seconds, reach_s = OUTAGES[-1]
    with _others(plant) as others:
        # They have their share of the processors: what is demanded is that nobody's live samples wait.
        measure(report, plant, "24 h beside others", seconds, 2 * reach_s, others)
