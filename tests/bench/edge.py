"""The edge agent's figures: memory, processor, bytes to disk, latency, and how it comes back from outages.

Every part is a process of its own: Modbus machines, NATS, PostgreSQL, ingest, the agent, and an outside SQL reader. The
agent's disk is an ext4 file system in a file, so that what really goes to the device can be counted.
"""

import asyncio
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import asyncpg

from bench.backlog import HZ, MACHINES, fill
from bench.capture import floor_us
from bench.plant import CountingDisk, Memory, Part, Plant, cpu_s, memory, running_plant, written_bytes
from bench.report import Figure, Report, run
from cncmon_agent.buffer.spool import Spool
from cncmon_agent.settings import AgentSettings
from cncmon_agent.storage import spool_settings
from cncmon_core import frames
from cncmon_core.sample import decode_sample
from cncmon_ingest import rows
from cncmon_standalone.proof import latency
from cncmon_standalone.proof.accepted import AcceptedLog
from cncmon_standalone.proof.compare import Window

SETTLE_S = 15
"""Before measuring: imports, first connections, rings that fill for the first time."""

_RSS = "import cncmon_agent.main; print(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmRSS')))"

OUTAGES = (("1 min", 60, 2), ("1 h", 3600, 15), ("12 h", 43_200, 100), ("24 h", 86_400, 200))
"""Name, seconds, seconds that recovery may take."""

COPY_ROWS = 5000
COPY_S = 5.0
"""What the database can take at all is measured so: rows packed beforehand, two connections as there are workers."""

SAMPLE_BYTES = 380
HIGH = 1000
"""Samples a second of the largest edge."""


class Watch:
    """Samples an agent's memory, processor time and writes over a while."""

    def __init__(self, part: Part, disk: CountingDisk | None) -> None:
        self._pid = part.process.pid
        self._disk = disk
        self._began = self._read()
        self.memories: list[tuple[float, Memory]] = []

    def _read(self) -> tuple[float, float, int, int]:
        if self._disk is not None:
            os.sync()
        device = self._disk.written_bytes() if self._disk else 0
        return time.monotonic(), cpu_s(self._pid), written_bytes(self._pid), device

    def run(self, seconds: float) -> None:
        """Look twice a second."""
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            self.memories.append((time.monotonic(), memory(self._pid)))
            time.sleep(0.5)
        self._ended = self._read()

    def difference(self) -> tuple[float, float, int, int]:
        """Return (seconds, CPU seconds, bytes by the process, bytes to the device)."""
        return tuple(after - before for before, after in zip(self._began, self._ended, strict=True))  # type: ignore[return-value]

    @property
    def rss_max(self) -> float:
        return max(found.rss for _, found in self.memories)

    @property
    def anonymous_max(self) -> float:
        return max(found.anonymous for _, found in self.memories)

    def slope_mb_per_h(self) -> float:
        """Return by how much memory grows, by least squares."""
        times = [at for at, _ in self.memories]
        if len(times) < 3:
            return 0.0
        return statistics.linear_regression(times, [found.rss for _, found in self.memories]).slope * 3600


@contextmanager
def reading(plant: Plant, machines: list[str], seen: Path) -> Iterator[None]:
    """Look into the database from outside, as fast as a dashboard never would."""
    environ = os.environ | {"CNCMON_READER_DSN": plant.postgres.dsn, "CNCMON_READER_INTERVAL_MS": "10"}
    with (plant.folder / "reader.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cncmon_standalone.proof.reader", str(seen), *latency.probes_of(machines)],
            env=environ,
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


def _rows(plant: Plant, query: str, *arguments: object) -> list[asyncpg.Record]:
    async def ask() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(plant.postgres.dsn, command_timeout=600)
        try:
            return await connection.fetch(query, *arguments)
        finally:
            await connection.close()

    return asyncio.run(ask())


def _machine_names(file: Path) -> list[str]:
    return [
        line.split(": ", 1)[1]
        for document in file.read_text().split("---")
        if "kind: Machine\n" in document
        for line in document.splitlines()
        if line.startswith("  name: ")
    ]


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
        names = _machine_names(file)
        with reading(plant, names, seen):
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
    _rows(plant, "TRUNCATE sensor_data")
    return rate


def _frames_of(data: bytes) -> list[bytes]:
    return frames.split(frames.decompress(data))[0]


def _recovery(report: Report, plant: Plant, name: str, seconds: float, reach_s: float) -> None:
    """An agent that comes back to a server with a backlog on its disk, while it reads machines."""
    copy_rate = _copy_limit(plant)
    data = plant.folder / f"recovery-{seconds}"
    settings = AgentSettings(spool_free_bytes_min=0)
    filled = fill(data, seconds, settings)
    polls, accepted, seen = (data / f"bench.{kind}" for kind in ("polls", "accepted", "seen"))
    simulator, file = plant.machines(MACHINES, HZ, polls)
    names = _machine_names(file)
    with reading(plant, names, seen):
        time.sleep(2)
        started_ns = time.time_ns()
        agent = plant.agent(file, data, accepted_log=str(accepted))
        try:
            agent.wait_for("connected to NATS")
            connected_s = time.monotonic()
            watch = Watch(agent, None)
            while not _rows(
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
    rows = _rows(
        plant,
        "SELECT count(*) AS stored, count(DISTINCT (machine_id, part_count)) AS different FROM sensor_data "
        "WHERE machine_id LIKE 'gen-%'",
    )[0]
    report.add(label, Figure(took_s, "s", filled.samples / copy_rate, "bare COPY", reach_s, "at_most"))
    report.add(f"{label}.rate", Figure(filled.samples / took_s, "samples/s", copy_rate, "bare COPY"))
    report.add(f"{label}.lost", Figure(filled.samples - rows["different"], "samples", None, "", 0, "at_most"))
    report.add(f"{label}.duplicated", Figure(rows["stored"] - rows["different"], "samples", None, "", 0, "at_most"))
    report.add(f"{label}.rss", Figure(watch.rss_max, "MB", None, "", 50, "at_most"))
    found = latency.measure(seen, AcceptedLog(accepted), polls, Window(started_ns, ended_ns), latency.probes_of(names))
    limit_ms = AgentSettings().linger_ms / 2
    report.add(f"{label}.live_p99", Figure(found.p99 or math.nan, "ms", limit_ms, "half a linger", 500, "at_most"))
    first_s, imports_s = _first_live_s(agent, accepted, started_ns), _imports_s()
    report.add(f"{label}.first_live", Figure(first_s, "s", imports_s, "imports alone", 2, "at_most"))
    _rows(plant, "DELETE FROM sensor_data WHERE machine_id LIKE 'gen-%'") if seconds < 3600 else _rows(
        plant, "TRUNCATE sensor_data"
    )


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


def measure(report: Report, quick: bool) -> None:
    """Run all of it (quick: the load and one minute's backlog)."""
    with tempfile.TemporaryDirectory() as name, running_plant(Path(name)) as plant:
        plant.ingest()
        _load(report, plant, "load_1000", 100, 10, 15 if quick else 120)
        _recovery(report, plant, *OUTAGES[0])
        if quick:
            report.not_run += ["load_10", "load_250", "longer sync intervals", "outage", "recovery 1 h, 12 h, 24 h"]
            return
        _load(report, plant, "load_10", 10, 1, 120)
        for interval_ms in (2000, 10_000):
            _load(report, plant, f"load_10_sync_{interval_ms}ms", 10, 1, 60, sync_interval_ms=interval_ms)
        _load(report, plant, "load_250", 50, 5, 120)
        for outage in OUTAGES[1:]:
            _recovery(report, plant, *outage)
        _outage(report, plant, 600)


if __name__ == "__main__":
    sys.exit(run("edge", measure))
