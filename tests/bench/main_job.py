"""The main job under load: 100 machines × 10 Hz through `cncmon demo`, also while parts are killed.

Floors of the same run: for latency, half a linger plus one PubAck and one commit of a batch on servers of their own;
for memory, a process that has imported the agent and does nothing.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nats.aio.client import Client

from bench.report import Figure, Report, run
from cncmon_agent.settings import AgentSettings
from cncmon_core.frames import join
from cncmon_ingest.connection import connect
from cncmon_ingest.decode import Incoming, Limits, decode
from cncmon_ingest.migrate import migrate
from cncmon_ingest.store import Store
from testkit import ingest
from testkit.servers import running_nats, running_postgres

CNCMON = str(Path(sys.executable).parent / "cncmon")
LOAD = ["--machines", "100", "--hz", "10"]
_RSS = "import cncmon_agent.main; print(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmRSS')))"


def demo(*options: str) -> dict[str, Any]:
    """Run the demo and return its report."""
    done = subprocess.run([CNCMON, "demo", "--json", *options], capture_output=True, text=True, check=False)
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError as error:
        raise SystemExit(f"cncmon demo {' '.join(options)} failed:\n{done.stderr[-3000:]}") from error
    return found


async def _floor_ms(nats_url: str, dsn: str) -> float:
    """Return the median time of a PubAck plus a commit of one batch of 100 samples, one after the other, in ms."""
    client = Client()
    await client.connect(nats_url)
    connection = await connect(dsn)
    await migrate(connection)
    store = Store(connection, datetime.now(UTC))
    await ingest.prepare(client, ingest.settings_for(dsn))
    parts = [ingest.frame(number) for number in range(100)]
    times = []
    for seq in range(1, 101):
        started = time.perf_counter()
        await ingest.publish_batch(client, seq, parts)
        now = datetime.now(UTC)
        await store.write([decode(Incoming("CNC_DATA.floor", {}, join(parts), seq, now), Limits.at(now, 300, 0))])
        times.append((time.perf_counter() - started) * 1000)
    store.close()
    await client.close()
    return statistics.median(times)


def _floors() -> tuple[float, float]:
    """Return the floors of latency (ms) and of memory (MB)."""
    with tempfile.TemporaryDirectory() as folder, running_nats(Path(folder)) as nats, running_postgres() as postgres:
        latency_ms = asyncio.run(_floor_ms(f"nats://127.0.0.1:{nats.port}", postgres.dsn))
    rss_kb = int(subprocess.run([sys.executable, "-c", _RSS], capture_output=True, text=True, check=True).stdout)
    return AgentSettings().linger_ms / 2 + latency_ms, rss_kb / 1024


def _add(report: Report, name: str, found: dict[str, Any], floor_ms: float, floor_mb: float) -> None:
    percent = 100.0 * found["acquired"] / found["due"] if found["due"] else 0.0
    report.add(f"{name}.lost", Figure(found["lost"], "samples", reach=0, better="at_most"))
    report.add(f"{name}.duplicated", Figure(found["duplicated"], "samples", reach=0, better="at_most"))
    report.add(f"{name}.mismatched", Figure(found["mismatched"], "samples", reach=0, better="at_most"))
    report.add(f"{name}.stored", Figure(found["stored"], "samples"))
    report.add(f"{name}.acquired_of_due", Figure(percent, "%", reach=None if found["killed"] == "agent" else 99.9))
    latency, cpu = found["latency_ms"], found["agent_cpu_us_per_sample"]
    limit = "half a linger, a PubAck and a commit"
    if found["killed"]:
        report.add(f"{name}.recovery", Figure(found["recovery_s"] or 0.0, "s"))
        report.add(f"{name}.p99_with_the_outage", Figure(latency["p99"], "ms", floor_ms, limit))
    else:
        report.add(f"{name}.p50", Figure(latency["p50"], "ms", floor_ms, limit))
        report.add(f"{name}.p99", Figure(latency["p99"], "ms", floor_ms, limit, 500, "at_most"))
    report.add(f"{name}.agent_rss", Figure(found["agent_rss_mb"], "MB", floor_mb, "imports alone", 50, "at_most"))
    report.add(f"{name}.agent_cpu", Figure(cpu, "µs/sample"))


def measure(report: Report, quick: bool) -> None:
    """Run the load undisturbed, then with each part killed half-way (quick: the load alone, briefly)."""
    floor_ms, floor_mb = _floors()
    _add(report, "load", demo(*LOAD, "--for", "15s" if quick else "60s"), floor_ms, floor_mb)
    for part in ("ingest", "nats", "postgres", "agent"):
        if quick:
            report.not_run.append(f"kill_{part}")
        else:
            _add(report, f"kill_{part}", demo(*LOAD, "--for", "40s", "--kill", part), floor_ms, floor_mb)


if __name__ == "__main__":
    sys.exit(run("main_job", measure))
