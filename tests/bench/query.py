"""Charts out of a database of a hundred million samples: what a page asks of the query API, and how soon it answers.

Four machines at 10 Hz for 30 days. Six hours are simulated, stored and rolled up as the product does it; the database
itself copies them, samples, rollups and states alike, to the 119 spans of six hours before. Each answer stands beside
the same rows read and summed up by a bare connection.
"""

import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import httpx

from bench.pipeline import running_database
from bench.plant import Plant
from bench.report import Figure, Report, run
from cncmon_api.series import ROLLUPS, SAMPLES, Source, source_of
from cncmon_ingest import rollup_sql, rows
from cncmon_standalone import ports
from cncmon_standalone.bench import traffic
from testkit.ingest import compute_rollups
from testkit.servers import running_nats

MACHINES, HZ = 4, 10
SPAN = timedelta(hours=6)
SPANS, SPANS_QUICK = 120, 8
COMMIT_ROWS = 5000
"""In one COPY: as ingest does where there is much."""

REQUESTS = 60
POINTS = 2000
MB = 1e6

HOUR, DAY, MONTH = timedelta(hours=1), timedelta(days=1), timedelta(days=30)


async def _fill(dsn: str, spans: int) -> datetime:
    """Store and copy; return where the newest span ends."""
    connection = await asyncpg.connect(dsn)
    end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    begin = end - SPAN
    samples = traffic.shop_samples(round(SPAN.total_seconds()) * HZ * MACHINES, MACHINES, end)
    # Partitions of a day, where there are no chunks.
    for table in ("sensor_data", *(source.table for source in ROLLUPS)):
        moments = [end - number * SPAN - timedelta(microseconds=1) for number in range(spans + 1)]
        await connection.execute("SELECT ensure_partition($1, t) FROM unnest($2::timestamptz[]) t", table, moments)
    for at in range(0, len(samples), COMMIT_ROWS):
        some = samples[at : at + COMMIT_ROWS]
        packed = rows.by_machine(rows.pack(one, rows.microseconds(one.timestamp)) for one in some)
        await connection.copy_to_table(
            rows.TABLE, source=rows.pieces(packed), columns=list(rows.COLUMNS), format="binary"
        )
    names = sorted({sample.machine_id for sample in samples})
    await connection.executemany(
        "INSERT INTO machines (machine_id, site, edge, first_seen) VALUES ($1, 'hall', 'e1', $2)",
        [(name, end - spans * SPAN) for name in names],
    )
    await compute_rollups(connection, begin, end)
    await connection.execute("DELETE FROM rollup_10s WHERE time < $1 OR time >= $2", begin, end)
    await connection.execute("UPDATE state_intervals SET to_time = least(to_time, $1)", end)
    await _copy(dsn, begin, end, spans)
    await connection.execute("ANALYZE")
    await connection.close()
    return end


async def _copy(dsn: str, begin: datetime, end: datetime, spans: int) -> None:
    """Copy the newest span to all before it: samples by two connections, then rollups and states."""
    todo = iter(range(1, spans))
    at_once = [await asyncpg.connect(dsn) for _ in range(2)]
    columns = ", ".join(name for name in rows.COLUMNS if name != "time")
    began_s = time.monotonic()

    async def samples(connection: asyncpg.Connection) -> None:
        for number in todo:
            await connection.execute(
                f"INSERT INTO sensor_data (time, {columns}) SELECT time - $3::interval, {columns} FROM sensor_data "
                "WHERE time >= $1 AND time < $2",
                *(begin, end, number * SPAN),
            )
            if number % 20 == 0:
                print(f"{number} of {spans} spans after {time.monotonic() - began_s:.0f} s", flush=True)

    await asyncio.gather(*(samples(connection) for connection in at_once))
    first = at_once[0]
    moved = ", ".join(name for name in rollup_sql.COLUMNS.split(", ") if name != "time")
    for source in ROLLUPS:
        await first.execute(
            f"INSERT INTO {source.table} (time, {moved}) SELECT time - number * $3::interval, {moved} "
            f"FROM {source.table}, generate_series(1, $4) number WHERE time >= $1 AND time < $2",
            *(begin, end, SPAN, spans - 1),
        )
    await first.execute(
        "INSERT INTO state_intervals (machine_id, from_time, to_time, state, program, alarm) "
        "SELECT machine_id, from_time - number * $1::interval, to_time - number * $1::interval, state, program, alarm "
        "FROM state_intervals, generate_series(1, $2) number",
        *(SPAN, spans - 1),
    )
    for connection in at_once:
        await connection.close()


async def _timed(call: Callable[[], Awaitable[object]], times: int) -> list[float]:
    """Return milliseconds of each call."""
    took = []
    for _ in range(times):
        began_s = time.perf_counter()
        await call()
        took.append(1000 * (time.perf_counter() - began_s))
    return took


def _p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


async def _bare(
    connection: asyncpg.Connection, source: Source, machine_id: str, begin: datetime, end: datetime
) -> None:
    columns = ("temperature",) if source is SAMPLES else ("temperature_min", "temperature_max")
    sums = ", ".join(f"sum({name})" for name in columns)
    await connection.fetchrow(
        f"SELECT count(*), {sums} FROM {source.table} WHERE machine_id = $1 AND time >= $2 AND time < $3",
        *(machine_id, begin, end),
    )


async def _ask(report: Report, url: str, dsn: str, end: datetime, spans: int) -> None:
    dice = random.Random(1)
    connection = await asyncpg.connect(dsn)
    machines = [row[0] for row in await connection.fetch("SELECT machine_id FROM machines ORDER BY 1")]
    oldest = end - spans * SPAN
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        for name, length, reach in (("1h", HOUR, None), ("24h", DAY, 100), ("30d", MONTH, 50)):
            if length > end - oldest:
                report.not_run.append(f"query.{name}")
                continue
            source = source_of(length, POINTS)

            def some(length: timedelta = length) -> tuple[str, datetime, datetime]:
                begin = oldest + dice.random() * (end - oldest - length)
                return dice.choice(machines), begin, begin + length

            async def ask(some: Callable[[], tuple[str, datetime, datetime]] = some) -> None:
                machine_id, begin, until = some()
                asked: dict[str, str | int] = {"from": begin.isoformat(), "to": until.isoformat(), "points": POINTS}
                answer = await client.get(f"/api/v1/machines/{machine_id}/series", params=asked)
                answer.raise_for_status()
                assert any(value is not None for value in answer.json()["fields"]["temperature"]["mean"])

            bare = await _timed(lambda source=source, some=some: _bare(connection, source, *some()), REQUESTS)  # type: ignore[misc]
            took = await _timed(ask, REQUESTS)
            limit = f"the {source.name} of one field summed up, p95"
            report.add(f"query.{name}.p50", Figure(statistics.median(took), "ms"))
            report.add(f"query.{name}.p95", Figure(_p95(took), "ms", _p95(bare), limit, reach, "at_most"))
    await connection.close()


async def _sizes(report: Report, dsn: str) -> None:
    """What a million samples take, rollups apart: of these machines, 10 Hz each."""
    connection = await asyncpg.connect(dsn)
    number = await connection.fetchval("SELECT count(*) FROM sensor_data")
    report.add("query.samples", Figure(number, "samples", None, ""))
    for table in ("sensor_data", *(source.table for source in ROLLUPS), "state_intervals"):
        size = await connection.fetchval(
            "WITH RECURSIVE parts AS (SELECT $1::regclass::oid AS part UNION ALL "
            "SELECT inhrelid FROM pg_inherits JOIN parts ON inhparent = part) "
            "SELECT sum(pg_total_relation_size(part)) FROM parts",
            table,
        )
        report.add(f"query.size.{table}", Figure(float(size) / MB / (number / 1e6), "MB/10⁶ smp"))
    await connection.close()


def measure(report: Report, quick: bool) -> None:
    """Fill a database, and ask."""
    spans = SPANS_QUICK if quick else SPANS
    with tempfile.TemporaryDirectory(prefix="cncmon-bench-") as name:
        folder = Path(name)
        with running_nats(folder) as nats, running_database() as postgres:
            plant = Plant(folder, nats, postgres)
            plant.ingest(0)
            end = asyncio.run(_fill(postgres.dsn, spans))
            asyncio.run(_sizes(report, postgres.dsn))
            port = ports.pick()[0]
            environ = {"CNCMON_API_DATABASE_DSN": postgres.dsn, "CNCMON_API_PORT": str(port)}
            api = plant.start("cncmon_api.main", environ, name="api")
            try:
                api.wait_for("serving")
                asyncio.run(_ask(report, f"http://127.0.0.1:{port}", postgres.dsn, end, spans))
            finally:
                api.stop()


if __name__ == "__main__":
    sys.exit(run("query", measure))
