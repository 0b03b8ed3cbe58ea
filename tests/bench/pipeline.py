"""The cloud side at full speed: a full stream drained, samples that keep coming, single frames a message.

Samples are of the original system's twelve fields; under `shop` also as the demo's agents send them, with five fields
more and six extras, which are a quarter of what PostgreSQL does for such a sample (jsonb).

Each rate stands beside its limit of the same run: bare COPY into the same table with as many connections, or bare fetch
and ack. Every part is a process of its own; all of them, the publisher too, share this machine's cores.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import uvloop
from msgspec import structs
from nats.aio.client import Client

from bench.plant import Part, Plant
from bench.report import Figure, Report, run
from cncmon_core.frames import join
from cncmon_core.sample import CORE_FIELDS, FIELDS, Sample, encode_sample
from cncmon_ingest import rows
from cncmon_standalone.bench import limits, traffic
from cncmon_standalone.bench.measure import Cost, Drained, Pids, cpu_s, drain, floor
from testkit.parts import timescaledb_programs
from testkit.servers import Postgres, running_nats, running_postgres

SAMPLES = 200_000
"""Made once; published again and again as batches of new epochs."""

BACKLOG_FRAMES, LIVE_FRAMES = 500, 100
"""Frames a message: of a backlog, and of 100 machines at 10 Hz with an agent's linger of 100 ms."""

DRAIN_SAMPLES, BACKLOG_SAMPLES, SUSTAINED_S, PENDING_MAX = 2_000_000, 10_000_000, 60.0, 400
ROLLUP_SHARE, MARKS_MAX = 0.7, 400
"""As shipped; and how many ranges may wait to be computed before the publisher waits."""
WARM_UP_S, RSS_LOOK_S = 10.0, 0.2
"""Before a sustained rate is taken: the workers have started and rollups have their first turns behind them."""
DISTINCT_TIMES = 40
"""Where rollups are computed, no time comes twice: eight million samples, of 100 machines in two hours."""
SINGLE_MESSAGES, BURST_MESSAGES, PUBLISHERS, WINDOW = 50_000, 10_000, 10, 200
SETTINGS = {"fsync": "on", "shared_buffers": "256MB", "max_wal_size": "4GB"}
EXTENSION = {"shared_preload_libraries": "timescaledb", "timescaledb.telemetry_level": "off"}


class Pipeline:
    """A plant without machines: servers, and workers that come and go."""

    def __init__(self, plant: Plant) -> None:
        self.plant = plant
        self.workers: list[Part] = []

    def bootstrap(self) -> None:
        self.plant.ingest(0)

    def start(self, workers: int, rollup_share: float = 0) -> None:
        dsn = self.plant.postgres.dsn
        environ = {"CNCMON_INGEST_DATABASE_DSN": dsn, "CNCMON_INGEST_ROLLUP_SHARE": str(rollup_share)}
        self.workers = [self.plant.start("cncmon_ingest.main", environ, "run", name="ingest") for _ in range(workers)]

    def stop(self) -> None:
        for worker in self.workers:
            worker.stop()
        self.workers = []

    @property
    def pids(self) -> Pids:
        return Pids(self.plant.nats.pid, self.plant.postgres.pid, [one.process.pid for one in self.workers])

    def empty(self) -> None:
        async def ask() -> None:
            connection = await asyncpg.connect(self.plant.postgres.dsn)
            await connection.execute(
                "TRUNCATE sensor_data, ledger, ledger_unidentified, watermarks, machines, dirty_ranges, rollup_10s, "
                "rollup_1min, rollup_1h, state_intervals"
            )
            await connection.close()

        asyncio.run(ask())


async def _drain(pipeline: Pipeline, url: str, workers: int) -> Drained:
    """Start workers on a full stream and see how they drain it."""
    client = Client()
    await client.connect(url)
    begin, _ = await floor(client)
    pipeline.start(workers)
    drained = await drain(client, begin, pipeline.pids)
    await client.close()
    pipeline.stop()
    return drained


def _fill(url: str, file: Path, count: int, pending_max: int = -1) -> float:
    """Publish; return messages a second."""
    command = [sys.executable, "-m", "cncmon_standalone.bench.traffic", url, str(file), str(count), str(pending_max)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    return float(told["messages"] / told["seconds"])


def _cost_figures(report: Report, name: str, cost: Cost, samples: float, ingest_us_max: float | None = 4.5) -> None:
    for part, seconds in (("nats", cost.nats), ("ingest", cost.ingest), ("postgres", cost.postgres)):
        reach = ingest_us_max if part == "ingest" else None
        figure = Figure(seconds / samples * 1e6, "µs/sample", None, "", reach, "at_most")
        report.add(f"{name}.cpu.{part}", figure)


@dataclass(frozen=True)
class Traffic:
    """Samples in one form: rows for the limit, files of batches by frames a message, and frames."""

    packed: list[bytes]
    files: dict[int, Path]
    encoded: list[bytes]


def _traffic(report: Report, name: str, samples: list[Sample], folder: Path) -> Traffic:
    files = {}
    for number in (BACKLOG_FRAMES, LIVE_FRAMES):
        made = traffic.messages(samples, number)
        files[number] = folder / f"{name}-{number}"
        traffic.save(files[number], made)
        report.add(f"{name}.decode{number}", Figure(limits.decode_rate(made), "samples/s"))
    encoded = [encode_sample(sample) for sample in samples[:20_000]]
    report.add(f"{name}.bytes_a_sample", Figure(sum(map(len, encoded)) / len(encoded), "B"))
    packed = [rows.pack(sample, rows.microseconds(sample.timestamp)) for sample in samples]
    return Traffic(packed, files, encoded)


def _drains(report: Report, pipeline: Pipeline, url: str, sent: Traffic, quick: bool, name: str = "pipeline") -> None:
    count, file, packed = (
        DRAIN_SAMPLES // BACKLOG_FRAMES // (4 if quick else 1),
        sent.files[BACKLOG_FRAMES],
        sent.packed,
    )
    for workers, reach in ((1, 0.5), (2, 0.4), (4, None))[: 2 if quick else 3]:
        # The limit before and after: the machine is shared, and the better of the two is taken.
        before = asyncio.run(limits.copy_rate(pipeline.plant.postgres.dsn, packed, workers))
        _fill(url, file, count)
        drained = asyncio.run(_drain(pipeline, url, workers))
        wrong = abs(asyncio.run(_rows(pipeline.plant.postgres.dsn)) - count * BACKLOG_FRAMES)
        pipeline.empty()
        limit = max(before, asyncio.run(limits.copy_rate(pipeline.plant.postgres.dsn, packed, workers)))
        drain_name = f"{name}.drain{workers}"
        report.add(f"{drain_name}.lost_or_doubled", Figure(wrong, "samples", None, "", 0, "at_most"))
        report.add(f"{drain_name}.copy_limit", Figure(limit, "rows/s"))
        wanted = None if reach is None else reach * limit
        stored = Figure(drained.rate * BACKLOG_FRAMES, "samples/s", limit, f"COPY, {workers} connections", wanted)
        report.add(drain_name, stored)
        _cost_figures(report, drain_name, drained.cost, drained.messages * BACKLOG_FRAMES)
        report.add(f"{drain_name}.rss", Figure(drained.rss_mb, "MB", None, "", 120, "at_most"))


def _backlog(report: Report, pipeline: Pipeline, url: str, file: Path) -> None:
    """A backlog of ten million samples costs a worker no more memory than a small one."""
    _fill(url, file, BACKLOG_SAMPLES // BACKLOG_FRAMES)
    drained = asyncio.run(_drain(pipeline, url, 1))
    wrong = abs(asyncio.run(_rows(pipeline.plant.postgres.dsn)) - BACKLOG_SAMPLES)
    pipeline.empty()
    report.add("pipeline.backlog.lost_or_doubled", Figure(wrong, "samples", None, "", 0, "at_most"))
    report.add("pipeline.backlog", Figure(drained.rate * BACKLOG_FRAMES, "samples/s"))
    report.add("pipeline.backlog.rss", Figure(drained.rss_mb, "MB", None, "", 120, "at_most"))
    report.add("pipeline.backlog.rss_growth", Figure(drained.growth_mb, "MB", None, "", 10, "at_most"))


async def _rows(dsn: str) -> int:
    connection = await asyncpg.connect(dsn)
    number: int = await connection.fetchval("SELECT count(*) FROM sensor_data")
    await connection.close()
    return number


async def _stored(dsn: str) -> int:
    connection = await asyncpg.connect(dsn)
    number = await connection.fetchval(
        "SELECT (SELECT coalesce(sum(samples_stored), 0) FROM watermarks) "
        "+ (SELECT coalesce(sum(stored), 0) FROM ledger)"
    )
    await connection.close()
    return int(number)


def _sustained(
    report: Report, pipeline: Pipeline, url: str, file: Path, seconds: float, name: str, reach: float | None
) -> None:
    """Store samples while they are published; with all rollups and states keeping up, or with these put off."""
    rollups = name.endswith("rollups")
    dsn = pipeline.plant.postgres.dsn
    pipeline.start(2, ROLLUP_SHARE if rollups else 0)
    command = [sys.executable, "-m", "cncmon_standalone.bench.traffic", url, str(file), str(10**7), str(PENDING_MAX)]
    with subprocess.Popen([*command, dsn, str(MARKS_MAX)] if rollups else command) as publisher:
        try:
            time.sleep(min(WARM_UP_S, seconds))
            began_s, before, cost = time.monotonic(), asyncio.run(_stored(dsn)), pipeline.pids.cost()
            published, rss_mb = cpu_s(publisher.pid), 0.0
            while time.monotonic() - began_s < seconds:
                rss_mb = max(rss_mb, pipeline.pids.rss_mb())
                time.sleep(RSS_LOOK_S)
            stored, spent = asyncio.run(_stored(dsn)) - before, pipeline.pids.cost().since(cost)
            took_s = time.monotonic() - began_s
            published = cpu_s(publisher.pid) - published
            lag_s = asyncio.run(_rollup_lag_s(dsn)) if rollups else 0.0
        finally:
            publisher.kill()
    pipeline.stop()
    report.add(name, Figure(stored / took_s, "samples/s", None, "", reach))
    if rollups:
        report.add(f"{name}.lag", Figure(lag_s, "s of samples", None, ""))
    _cost_figures(report, name, spent, stored, None if rollups or reach is None else 4.5)
    report.add(f"{name}.cpu.publisher", Figure(published / stored * 1e6, "µs/sample"))
    report.add(f"{name}.rss", Figure(rss_mb, "MB", None, "", 120, "at_most"))
    pipeline.empty()


async def _rollup_lag_s(dsn: str) -> float:
    """Return by how many seconds of samples the newest computed bucket is behind the newest sample."""
    connection = await asyncpg.connect(dsn)
    lag = await connection.fetchval("SELECT (SELECT max(time) FROM sensor_data) - (SELECT max(time) FROM rollup_10s)")
    await connection.close()
    return float(lag.total_seconds())


async def _publish_single(url: str, frames: list[bytes], each: int) -> tuple[float, float]:
    """Publish frames from several publishers, each with a window of PubAcks awaited; return seconds, messages a second.

    All in this process: a publisher's own processor time is what limits it.
    """
    clients = [Client() for _ in range(PUBLISHERS)]
    for client in clients:
        await client.connect(url)

    async def one(number: int, client: Client) -> None:
        js = client.jetstream(publish_async_max_pending=WINDOW)
        acks = [
            await js.publish_async("CNC_DATA.original", frames[(number * each + at) % len(frames)])
            for at in range(each)
        ]
        await asyncio.gather(*acks)

    began_s = time.monotonic()
    await asyncio.gather(*(one(number, client) for number, client in enumerate(clients)))
    took_s = time.monotonic() - began_s
    for client in clients:
        await client.close()
    return took_s, PUBLISHERS * each / took_s


def _single(report: Report, pipeline: Pipeline, url: str, encoded: list[bytes], quick: bool) -> None:
    frames = [join([one]) for one in encoded[:20_000]]
    count = SINGLE_MESSAGES // (5 if quick else 1)
    _, rate = uvloop.run(_publish_single(url, frames, count // PUBLISHERS))
    report.add("pipeline.single.publish", Figure(rate, "messages/s", None, "", 20_000))

    async def limit() -> float:
        client = Client()
        await client.connect(url)
        found = await limits.fetch_rate(client, count)
        await client.close()
        return found

    fetch = asyncio.run(limit())
    drained = asyncio.run(_drain(pipeline, url, 2))
    report.add(
        "pipeline.single.drain", Figure(drained.rate, "messages/s", fetch, "fetch and ack", max(20_000, 0.5 * fetch))
    )
    _cost_figures(report, "pipeline.single", drained.cost, drained.messages, None)
    pipeline.empty()

    async def burst() -> tuple[float, float]:
        client = Client()
        await client.connect(url)
        began_s = time.monotonic()
        published_s, _ = await _publish_single(url, frames, BURST_MESSAGES // PUBLISHERS)
        while True:
            reached, last = await floor(client)
            if reached >= last:
                break
            await asyncio.sleep(0.005)
        await client.close()
        return published_s, time.monotonic() - began_s

    pipeline.start(2)
    for worker in pipeline.workers:
        worker.wait_for("connected to NATS")
    time.sleep(1)
    published_s, stored_s = uvloop.run(burst())
    pipeline.stop()
    report.add("pipeline.burst.published", Figure(1000 * published_s, "ms", None, "", 600, "at_most"))
    report.add("pipeline.burst.stored", Figure(1000 * stored_s, "ms", None, "", 1000, "at_most"))
    pipeline.empty()


@contextlib.contextmanager
def running_database() -> Iterator[Postgres]:
    """Run PostgreSQL with TimescaleDB where that is, and say with what settings."""
    programs = timescaledb_programs()
    settings = SETTINGS | (EXTENSION if programs else {})
    print(f"{'TimescaleDB' if programs else 'plain PostgreSQL'}, {settings}", flush=True)
    with running_postgres(settings, programs) as postgres:
        yield postgres


def measure(report: Report, quick: bool) -> None:
    """Measure all of it on one NATS and one database with hypertables, where TimescaleDB is."""
    with tempfile.TemporaryDirectory(prefix="cncmon-bench-") as name:
        folder = Path(name)
        samples = traffic.shop_samples(SAMPLES // (2 if quick else 1))
        twelve = [structs.replace(sample, **dict.fromkeys(FIELDS[len(CORE_FIELDS) :])) for sample in samples]
        sent = _traffic(report, "pipeline", twelve, folder)
        with running_nats(folder) as nats, running_database() as postgres:
            plant = Plant(folder, nats, postgres)
            url = f"nats://127.0.0.1:{nats.port}"
            pipeline = Pipeline(plant)
            try:
                pipeline.bootstrap()
                _drains(report, pipeline, url, sent, quick)
                live = sent.files[LIVE_FRAMES]
                _sustained(report, pipeline, url, live, 5 if quick else SUSTAINED_S, "pipeline.sustained", 150_000)
                _single(report, pipeline, url, sent.encoded, quick)
                if quick:
                    report.not_run += [
                        "pipeline.drain4",
                        "pipeline.backlog",
                        "pipeline.sustained_rollups",
                        "pipeline.shop",
                    ]
                    return
                _backlog(report, pipeline, url, sent.files[BACKLOG_FRAMES])
                distinct = folder / "distinct"
                traffic.save(distinct, traffic.messages(twelve, LIVE_FRAMES, DISTINCT_TIMES))
                _sustained(report, pipeline, url, distinct, SUSTAINED_S, "pipeline.sustained_rollups", 80_000)
                shop = _traffic(report, "pipeline.shop", samples, folder)
                _drains(report, pipeline, url, shop, quick, "pipeline.shop")
                _sustained(
                    report, pipeline, url, shop.files[LIVE_FRAMES], SUSTAINED_S / 2, "pipeline.shop.sustained", None
                )
            finally:
                for part in reversed(plant.parts):
                    part.stop()


if __name__ == "__main__":
    sys.exit(run("pipeline", measure))
