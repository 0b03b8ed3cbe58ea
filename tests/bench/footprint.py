"""The memory of the cloud side of a small plant: NATS, one ingest worker and PostgreSQL while samples flow.

PSS: of what processes share, each has its part (`/proc/PID/smaps_rollup`), so that their sum is what is really taken.
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import psutil

from bench.plant import Plant
from bench.report import Figure, Report, run
from bench.watch import fetch
from cncmon_standalone.bench import traffic
from testkit.servers import running_nats, running_postgres

RATE, FRAMES = 1000, 100
TIMES = 12
"""A minute of samples, so often, each time as of another minute."""
SMALL = {"fsync": "on", "shared_buffers": "16MB"}
"""What a plant sets that counts megabytes; with the 64 MB that are shipped it was 58 MB more."""

NOT_SHIPPED = ("aiohttp", "rich")
"""Of the environment for development; a worker's image lacks them (requirements/ingest.txt). nats-py and structlog
import them where they are: 12 MB that no worker has.
"""

MINUTES, MINUTES_QUICK = 10.0, 0.5
LOOK_S, LOOKS = 5.0, 24
"""Looked at so often once the time is over: an autovacuum that analyses the samples has 20 MB for a second or two."""
ORIGINAL_MB = 111


def pss_mb(pid: int) -> float:
    """Return the proportional set size of a process and all that it started, in 10^6 bytes."""
    total_kb = 0
    for process in (parent := psutil.Process(pid), *parent.children(recursive=True)):
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        found = re.search(r"\nPss:\s+(\d+) kB", text)
        total_kb += int(found[1]) if found else 0
    return total_kb * 1024 / 1e6


def as_shipped(folder: Path) -> dict[str, str]:
    """Return the environment of a service that finds no package of `NOT_SHIPPED`."""
    folder.mkdir()
    for package in NOT_SHIPPED:
        (folder / f"{package}.py").write_text("raise ImportError('not shipped')\n")
    return {"PYTHONPATH": str(folder)}


def measure(report: Report, quick: bool) -> None:
    """Let 1,000 samples a second of 100 machines flow for ten minutes, in batches as an agent sends them."""
    seconds = 60 * (MINUTES_QUICK if quick else MINUTES)
    with tempfile.TemporaryDirectory(prefix="cncmon-bench-") as name:
        folder = Path(name)
        messages = folder / "messages"
        traffic.save(messages, traffic.messages(traffic.shop_samples(60_000), FRAMES, TIMES))
        with running_nats(folder) as nats, running_postgres(SMALL) as postgres:
            print(f"PostgreSQL: {SMALL}", flush=True)
            plant = Plant(folder, nats, postgres)
            plant.ingest(1, as_shipped(folder / "as-shipped"))
            pids = {"nats": nats.pid, "ingest": plant.parts[-1].process.pid, "postgres": postgres.pid}
            url = f"nats://127.0.0.1:{nats.port}"
            command = [sys.executable, "-m", "cncmon_standalone.bench.traffic", url, str(messages), str(10**7), "-1"]
            try:
                began_s = time.monotonic()
                with subprocess.Popen([*command, "", "0", str(RATE)]) as publisher:
                    try:
                        time.sleep(seconds)
                        looks = []
                        for _ in range(4 if quick else LOOKS):
                            looks.append({kind: pss_mb(pid) for kind, pid in pids.items()})
                            time.sleep(LOOK_S)
                        took_s = time.monotonic() - began_s
                    finally:
                        publisher.kill()
                stored = fetch(plant, "SELECT count(*) FROM sensor_data")[0][0]
            finally:
                for part in reversed(plant.parts):
                    part.stop()
    for kind in pids:
        report.add(f"footprint.{kind}", Figure(median(look[kind] for look in looks), "MB"))
    totals = [sum(look.values()) for look in looks]
    report.add("footprint.all", Figure(median(totals), "MB", ORIGINAL_MB, "the original system", 150, "at_most"))
    report.add("footprint.most", Figure(max(totals), "MB"))
    report.add("footprint.stored", Figure(stored / took_s, "samples/s"))


if __name__ == "__main__":
    sys.exit(run("footprint", measure))
