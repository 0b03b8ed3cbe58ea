"""The edge agent's figures: memory, processor, bytes to disk, latency, and how it comes back from outages.

Every part is a process of its own: Modbus machines, NATS, PostgreSQL, ingest, the agent, and an outside SQL reader. The
agent's disk is an ext4 file system in a file, so that what really goes to the device can be counted.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from bench import recovery
from bench.capture import floor_us
from bench.plant import CountingDisk, Part, Plant, running_plant
from bench.report import Figure, Report, run
from bench.watch import Watch, machine_names, reading
from cncmon_agent.buffer.spool import Spool
from cncmon_agent.settings import AgentSettings
from cncmon_agent.storage import spool_settings
from cncmon_core import frames
from cncmon_standalone.proof import latency
from cncmon_standalone.proof.accepted import AcceptedLog
from cncmon_standalone.proof.compare import Window

SETTLE_S = 15
"""Before measuring: imports, first connections, rings that fill for the first time."""

_RSS = "import cncmon_agent.main; print(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmRSS')))"

SAMPLE_BYTES = 380
HIGH = 1000
"""Samples a second of the largest edge."""


def _load(
    report: Report, plant: Plant, name: str, machines: int, hz: float, seconds: float, **settings: object
) -> None:
    """Measure one rate in steady running: what it costs; then, recording all that is accepted, how late it is."""
    polls = plant.folder / f"{name}.polls"
    simulator, file = plant.machines(machines, hz, polls)
    folder = plant.folder / name
    folder.mkdir()
    disk = CountingDisk(folder, 512)
    agent = plant.agent(file, disk.path / "agent", spool_free_bytes_min=0, **settings)
    try:
        agent.wait_for("connected to NATS")
        time.sleep(SETTLE_S)
        if machines * hz >= HIGH:
            # Until files are used again: each of the first two is written twice, and never after.
            _wait_for_spare(disk.path / "agent" / "spool")
        watch = Watch(agent, disk)
        watch.run(seconds)
        _buffer_use(report, name, agent)
        agent.stop()
        _steady(report, name, watch, machines * hz, _json_bytes(disk.path / "agent"))
        seen = plant.folder / f"{name}.seen"
        names = machine_names(file)
        with reading(plant, latency.probes_of(names), seen):
            agent = plant.agent(
                file,
                disk.path / "agent",
                accepted_log=str(plant.folder / f"{name}.accepted"),
                spool_free_bytes_min=0,
                **settings,
            )
            agent.wait_for("connected to NATS")
            time.sleep(5)
            began_ns = time.time_ns()
            time.sleep(min(seconds, 30))
            ended_ns = time.time_ns()
            time.sleep(2)
        agent.stop()
        accepted = AcceptedLog(plant.folder / f"{name}.accepted")
        found = latency.measure(seen, accepted, polls, Window(began_ns, ended_ns), latency.probes_of(names))
        limit = AgentSettings().linger_ms / 2
        report.add(f"{name}.p50", Figure(found.p50 or math.nan, "ms", limit, "half a linger"))
        report.add(f"{name}.p99", Figure(found.p99 or math.nan, "ms", limit, "half a linger", 250, "at_most"))
    finally:
        agent.stop()
        simulator.stop()
        disk.close()


def _buffer_use(report: Report, name: str, agent: Part) -> None:
    """Say how full the tiers are while nothing is amiss."""
    url = f"http://127.0.0.1:{agent.monitor_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    metrics = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    tiers = {tier: float(metrics[f'cncmon_edge_buffer_bytes{{tier="{tier}"}}']) for tier in ("hot", "warm", "cold")}
    capacity = float(metrics["cncmon_edge_buffer_capacity_bytes"])
    hot_max = AgentSettings().hot_bytes_max
    report.add(f"{name}.buffer_hot", Figure(100 * tiers["hot"] / hot_max, "%"))
    report.add(f"{name}.buffer_disk", Figure(100 * (tiers["warm"] + tiers["cold"]) / capacity, "%"))


def _wait_for_spare(spool: Path) -> None:
    deadline_s = time.monotonic() + 240
    while not list(spool.glob("*.spare")) and time.monotonic() < deadline_s:
        time.sleep(0.5)


def _json_bytes(data: Path) -> float:
    """Return how much JSON a sample is, from what lies on the agent's disk."""
    spool = Spool(data / "spool", spool_settings(AgentSettings(spool_free_bytes_min=0)))
    try:
        for piece in spool.recover_steps():
            piece.run()
            piece.install()
        found = [batch for log in spool.earlier.values() for batch in log if batch.samples]
        size = sum(len(frames.decompress(batch.data)) - 4 * batch.identity.frames for batch in found)
        return size / sum(batch.samples for batch in found)
    finally:
        spool.close()


def _steady(report: Report, name: str, watch: Watch, rate: float, json_bytes: float) -> None:
    seconds, cpu, process, device = watch.difference()
    samples = seconds * rate
    floor_mb = (
        int(subprocess.run([sys.executable, "-c", _RSS], capture_output=True, text=True, check=True).stdout) / 1024
    )
    report.add(f"{name}.rss", Figure(watch.rss_max, "MB", floor_mb, "imports alone", 50, "at_most"))
    report.add(f"{name}.rss_anon", Figure(watch.anonymous_max, "MB", None, "", 40, "at_most"))
    report.add(f"{name}.rss_slope", Figure(watch.slope_mb_per_h(), "MB/h"))
    high = rate >= HIGH
    floor = floor_us(10) if high else None
    reach = 100 if high else None
    report.add(f"{name}.cpu", Figure(cpu / samples * 1e6, "µs/sample", floor, "a bare protocol", reach, "at_most"))
    report.add(f"{name}.cpu_share", Figure(100 * cpu / seconds, "% of a core"))
    reach = 60 if high else 1229 if rate <= 10 else None
    # The demands are for samples of 380 bytes of JSON; these machines say more.
    share = SAMPLE_BYTES / json_bytes
    report.add(f"{name}.json", Figure(json_bytes, "B/sample"))
    for what, size in (("written", process / samples), ("device", device / samples)):
        report.add(f"{name}.{what}", Figure(size, "B/sample", json_bytes, "JSON of it"))
        report.add(f"{name}.{what}_of_380", Figure(size * share, "B/sample", SAMPLE_BYTES, "JSON", reach, "at_most"))


def _outage(report: Report, plant: Plant, seconds: float) -> None:
    """100 machines at 10 Hz while NATS is away: memory stays, and all of it arrives after."""
    simulator, file = plant.machines(100, 10)
    agent = plant.agent(file, plant.folder / "outage")
    try:
        agent.wait_for("connected to NATS")
        time.sleep(SETTLE_S)
        plant.nats.stop()
        watch = Watch(agent, None)
        watch.run(seconds)
        plant.nats.start()
        back_s = time.monotonic()
        after = Watch(agent, None)
        after.run(min(60.0, max(15.0, seconds / 10)))
        report.add("outage.rss", Figure(max(watch.rss_max, after.rss_max), "MB", None, "", 50, "at_most"))
        report.add(
            "outage.rss_anon", Figure(max(watch.anonymous_max, after.anonymous_max), "MB", None, "", 40, "at_most")
        )
        report.add("outage.rss_slope", Figure(watch.slope_mb_per_h(), "MB/h"))
        while (left := _unfreed(plant.folder / "outage")) and time.monotonic() - back_s < 120:
            time.sleep(0.5)
        report.add("outage.left_after_120_s", Figure(left, "batches", None, "", 100, "at_most"))
    finally:
        agent.stop()
        simulator.stop()


def _unfreed(data: Path) -> int:
    epoch = json.loads((data / "epochs.json").read_text())["current"]
    return int(epoch.get("last_seq", 0)) - int(epoch.get("freed_seq", 0))


def measure(report: Report, quick: bool) -> None:
    """Run all of it (quick: the load and one minute's backlog)."""
    with tempfile.TemporaryDirectory() as name, running_plant(Path(name)) as plant:
        plant.ingest()
        _load(report, plant, "load_1000", 100, 10, 15 if quick else 120)
        recovery.measure(report, plant, *recovery.OUTAGES[0])
        if quick:
            report.not_run += ["load_10", "load_250", "longer sync intervals", "outage", "recovery 1 h, 12 h, 24 h"]
            return
        _load(report, plant, "load_10", 10, 1, 120)
        for interval_ms in (2000, 10_000):
            _load(report, plant, f"load_10_sync_{interval_ms}ms", 10, 1, 60, sync_interval_ms=interval_ms)
        _load(report, plant, "load_250", 50, 5, 120)
        for outage in recovery.OUTAGES[1:]:
            recovery.measure(report, plant, *outage)
        recovery.measure_beside_others(report, plant)
        _outage(report, plant, 600)


if __name__ == "__main__":
    sys.exit(run("edge", measure))
