"""`cncmon bench`: our own NATS and PostgreSQL in a fresh folder, the limits, then workers that drain a full stream."""

import asyncio
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import asyncpg
import msgspec
from nats.aio.client import Client
from rich.table import Table

from cncmon_core.sample import encode_sample
from cncmon_ingest import rows
from cncmon_standalone import console, folder, ports, session, system
from cncmon_standalone.bench import limits, traffic
from cncmon_standalone.bench.measure import Drained, Pids, drain, floor
from cncmon_standalone.embedded.postgres import SETTINGS
from cncmon_standalone.errors import PartError, StopRequestedError
from cncmon_standalone.supervise.supervisor import Supervisor

FRAMES_EACH = 500
DISTINCT_MAX = 200_000
SHOWN_SETTINGS = ("fsync", "full_page_writes", "synchronous_commit", "shared_buffers", "max_wal_size")
FETCH_MESSAGES_MAX = 2000
CONNECTIONS = (1, 2)


@dataclass(frozen=True)
class Options:
    """samples: in the stream, before each drain. workers: how many in each."""

    samples: int
    workers: tuple[int, ...]
    as_json: bool


class Drain(msgspec.Struct, kw_only=True):
    """One drain. copy_limit_s: rows a second of bare COPY by as many connections, two at most; cpu in µs a sample."""

    workers: int
    samples_s: float
    copy_limit_s: float
    ratio: float
    cpu_us: dict[str, float]
    rss_mb: float
    lost: int
    doubled: int


class Published(NamedTuple):
    """Samples a second, and the publisher's processor time a sample."""

    samples_s: float
    cpu_us: float


class Figures(msgspec.Struct, kw_only=True):
    """What was measured. Rates a second: copy_s by number of connections; decode_s samples by one process.

    publish_us: the publisher's processor time a sample.
    """

    samples: int
    cores: int
    bytes_a_sample: float
    database: dict[str, str]
    copy_s: dict[str, float]
    fetch_messages_s: float
    decode_s: float
    publish_s: float
    publish_us: float
    drains: list[Drain]

    @property
    def holds(self) -> bool:
        """Whether every sample was stored exactly once."""
        return all(one.lost == one.doubled == 0 for one in self.drains)


async def run(options: Options) -> int:
    """Measure and print; return 1 where samples were lost or doubled.

    Raises:
        StandaloneError: a part can't run, or the user stopped it.
    """
    progress = console.Progress(console.for_people(to_stderr=True))
    root = folder.make_temporary()
    data = folder.DataFolder(root)
    data.make()
    try:
        with data.locked():
            figures = await _Bench(options, data, progress).run()
    finally:
        await asyncio.to_thread(shutil.rmtree, root, ignore_errors=True)
    if options.as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(figures)).decode() + "\n")
    else:
        _show(figures)
    return 0 if figures.holds else 1


class _Bench:
    def __init__(self, options: Options, data: folder.DataFolder, progress: console.Progress) -> None:
        self._options = options
        self._progress = progress
        nats_port, postgres_port, api_port = ports.pick(3)
        self._plan = system.Plan(
            folder=data,
            edges=(),
            workers=max(options.workers),
            api_port=api_port,
            nats_port=nats_port,
            postgres_port=postgres_port,
            ingest_settings={"CNCMON_INGEST_ROLLUP_SHARE": "0"},
        )
        self._file = data.root / "messages"
        self._plan.cluster.draw_password()
        self._parts = system.parts(self._plan)

    async def run(self) -> Figures:
        servers = [part for part in self._parts if part.group in ("postgres", "nats", "bootstrap")]
        supervisor = Supervisor(servers, self._plan.folder.logs, self._progress)
        async with session.stopping_on_signals(supervisor):
            return await supervisor.run(lambda: self._until_stopped(supervisor))

    async def _until_stopped(self, supervisor: Supervisor) -> Figures:
        """Measure, unless the user would rather not wait."""
        measuring = asyncio.create_task(self._measure(supervisor))
        stopping = asyncio.create_task(supervisor.stop_requested.wait())
        await asyncio.wait({measuring, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not measuring.done():
            measuring.cancel()
            await asyncio.wait([measuring])
            raise StopRequestedError("stopped before everything was measured")
        return measuring.result()

    async def _measure(self, supervisor: Supervisor) -> Figures:
        await supervisor.wait_ready()
        wanted = self._options.samples // FRAMES_EACH
        dsn = self._plan.cluster.dsn
        async with self._progress.never_silent("making samples of 100 machines"):
            packed, found, size = await asyncio.to_thread(self._make)
        client = Client()
        await client.connect(self._plan.nats_url)
        copied = {}
        with console.bar("COPY limit", len(CONNECTIONS) * len(limits.COPY_ROWS)) as done:
            for connections in CONNECTIONS:
                copied[connections] = await limits.copy_rate(dsn, packed, connections, done)
        async with self._progress.never_silent("decode limit"):
            decoded = await asyncio.to_thread(limits.decode_rate, found)
        published = Published(0.0, 0.0)
        fetched = 0.0
        drains: list[Drain] = []
        for workers in self._options.workers:
            async with self._progress.never_silent("filling the stream"):
                published = max(published, await self._publish(wanted))
            if not drains:
                fetched = await limits.fetch_rate(client, min(wanted, FETCH_MESSAGES_MAX))
            with console.bar(f"{workers} worker{'s' * (workers > 1)}", wanted) as done:
                drained = await self._drain(supervisor, client, workers, done)
            # Once more after it: the machine may be shared, and the better of the two is the limit.
            connections = min(workers, max(CONNECTIONS))
            stored, doubled = await _stored(dsn)
            copied[connections] = max(copied[connections], await limits.copy_rate(dsn, packed, connections))
            await _empty(dsn)
            drains.append(_figures(workers, drained, copied[connections], wanted * FRAMES_EACH, stored, doubled))
        await client.close()
        return Figures(
            samples=wanted * FRAMES_EACH,
            cores=len(os.sched_getaffinity(0)),
            bytes_a_sample=size,
            database={name: SETTINGS.get(name, "").strip("'") for name in SHOWN_SETTINGS},
            copy_s={str(connections): rate for connections, rate in copied.items()},
            fetch_messages_s=fetched,
            decode_s=decoded,
            publish_s=published.samples_s,
            publish_us=published.cpu_us,
            drains=drains,
        )

    def _make(self) -> tuple[list[bytes], list[traffic.Message], float]:
        """Return rows for the limit, messages, and how many bytes of JSON a sample is; writes the messages as well."""
        samples = traffic.shop_samples(min(self._options.samples, DISTINCT_MAX))
        packed = [rows.pack(sample, rows.microseconds(sample.timestamp)) for sample in samples]
        found = traffic.messages(samples, FRAMES_EACH)
        traffic.save(self._file, found)
        encoded = [encode_sample(sample) for sample in samples[:1000]]
        return packed, found, sum(map(len, encoded)) / len(encoded)

    async def _publish(self, messages: int) -> Published:
        """Fill the stream."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "cncmon_standalone.bench.traffic"),
            *(self._plan.nats_url, str(self._file), str(messages), "-1"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, error = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode:
            raise PartError(f"the publisher failed: {error.decode(errors='replace')[-500:]}")
        told = msgspec.json.decode(out)
        samples = FRAMES_EACH * told["messages"]
        return Published(samples / told["seconds"], 1e6 * told["cpu_seconds"] / samples)

    async def _drain(
        self, supervisor: Supervisor, client: Client, workers: int, done: Callable[[int], None]
    ) -> Drained:
        begin, _ = await floor(client)
        parts = [part for part in self._parts if part.group == "ingest"][:workers]
        # They wait for the servers by themselves, and those run.
        workers_alone = Supervisor(
            [replace(part, after=()) for part in parts], self._plan.folder.logs, lambda _event: None
        )

        async def watch() -> Drained:
            await workers_alone.wait_ready()
            pids = [runner.pid for runner in workers_alone.runners.values() if runner.pid]
            nats, postgres = (supervisor.runners[name].pid or 0 for name in ("nats", "postgres"))
            return await drain(client, begin, Pids(nats, postgres, pids), done)

        return await workers_alone.run(watch)


def _figures(workers: int, drained: Drained, limit: float, samples: int, stored: int, doubled: int) -> Drain:
    rate, measured = drained.rate * FRAMES_EACH, drained.messages * FRAMES_EACH
    return Drain(
        workers=workers,
        samples_s=rate,
        copy_limit_s=limit,
        ratio=rate / limit,
        cpu_us={name: 1e6 * seconds / measured for name, seconds in drained.cost._asdict().items()},
        rss_mb=drained.rss_mb,
        lost=max(0, samples - (stored - doubled)),
        doubled=doubled,
    )


async def _stored(dsn: str) -> tuple[int, int]:
    """Return how many samples there are, and how many of them are too many: no batch may be stored twice."""
    connection = await asyncpg.connect(dsn)
    stored: int = await connection.fetchval("SELECT count(*) FROM sensor_data")
    told: int = await connection.fetchval(
        "SELECT coalesce((SELECT sum(samples_stored) FROM watermarks), 0) "
        "+ coalesce((SELECT sum(stored) FROM ledger), 0)"
    )
    await connection.close()
    return stored, max(0, stored - int(told))


async def _empty(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute("TRUNCATE sensor_data, ledger, ledger_unidentified, watermarks, machines, dirty_ranges")
    await connection.close()


def _show(figures: Figures) -> None:
    out = console.for_people()
    out.print(
        f"\n{figures.samples:,} samples of 100 machines, {figures.bytes_a_sample:.0f} bytes of JSON each, in batches "
        f"of {FRAMES_EACH}; all parts share {figures.cores} cores.",
        soft_wrap=True,
    )
    said = ", ".join(f"{name} {value}" for name, value in figures.database.items())
    out.print(f"[dim]PostgreSQL: {said}; rollups are put off.[/]\n", soft_wrap=True)
    known = Table(box=None, padding=(0, 1), header_style="dim")
    known.add_column("what the parts can take at all")
    known.add_column("a second", justify="right")
    for connections, rate in figures.copy_s.items():
        known.add_row(f"PostgreSQL, COPY by {connections} connection{'s' * (connections != '1')}", f"{rate:,.0f} rows")
    known.add_row("NATS, fetch and ack", f"{figures.fetch_messages_s:,.0f} messages")
    known.add_row("decoding, one process", f"{figures.decode_s:,.0f} samples")
    known.add_row("publishing, acknowledged", f"{figures.publish_s:,.0f} samples")
    out.print(known)
    out.print()
    # Within 80 columns.
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for title in ("full stream drained", "samples/s", "of COPY", "ingest", "PostgreSQL", "NATS", "memory"):
        table.add_column(title, justify="left" if title.startswith("full") else "right", no_wrap=True)
    for one in figures.drains:
        cpu = [f"{one.cpu_us[name]:.1f} µs" for name in ("ingest", "postgres", "nats")]
        name = f"by {one.workers} worker{'s' * (one.workers > 1)}"
        table.add_row(name, f"{one.samples_s:,.0f}", f"{one.ratio:.2f}", *cpu, f"{one.rss_mb:.0f} MB")
    out.print(table)
    out.print(
        f"[dim]Of each part: processor time a sample; the publisher's was {figures.publish_us:.1f} µs. "
        "Memory: the most that a worker had.[/]",
        soft_wrap=True,
    )
    if figures.holds:
        out.print("\n[green]√ Every sample is stored exactly once.[/]")
    for one in figures.drains:
        if one.lost or one.doubled:
            out.print(f"\n[red]× {one.lost:,} samples lost and {one.doubled:,} doubled by {one.workers} workers.[/]")
