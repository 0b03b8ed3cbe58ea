"""`cncmon bench` on its own NATS and PostgreSQL; and that it tells when samples were lost or doubled."""

import json
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from cncmon_standalone.bench import command
from cncmon_standalone.bench.measure import Cost, Drained

COMMAND = [sys.executable, "-m", "cncmon_standalone.cli", "bench", "--samples", "100000"]


def test_bench_measures_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--workers", "2", "--json"],
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    [drain] = figures["drains"]
    assert figures["samples"] == 100_000
    assert (drain["workers"], drain["lost"], drain["doubled"]) == (2, 0, 0)
    rates = [drain["samples_s"], *figures["copy_s"].values(), *(figures[f"{name}_s"] for name in ("decode", "publish"))]
    assert all(rate > 0 for rate in rates)
    assert all(drain["cpu_us"][part] > 0 for part in ("ingest", "postgres", "nats"))
    assert figures["database"]["fsync"] == figures["database"]["synchronous_commit"] == "on"
    assert list(tmp_path.glob("cncmon*")) == []


async def test_bench_counts_rows_that_no_batch_accounts_for(
    postgres_dsn: str, database: asyncpg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    await database.execute("SELECT ensure_partition('sensor_data', now())")
    for _ in range(3):
        await database.execute("INSERT INTO sensor_data (time, machine_id) VALUES (now(), 'm')")
    await database.execute(
        "INSERT INTO watermarks (epoch, site, edge, seq, samples_stored) VALUES (1, 'hall', 'e1', 1, 2)"
    )
    stored, doubled = await command._stored(postgres_dsn)
    assert (stored, doubled) == (3, 1)
    drained = Drained(10, 10.0, Cost(1, 1, 1), 80.0, 0.0)
    assert command._figures(1, drained, 1e5, 2, stored, doubled).doubled == 1
    lost = command._figures(1, drained, 1e5, 4, stored, doubled)
    assert lost.lost == 2
    figures = command.Figures(
        samples=4, cores=2, bytes_a_sample=500, database={}, copy_s={}, fetch_messages_s=1, decode_s=1, publish_s=1,
        publish_us=1, drains=[lost],
    )  # fmt: skip
    assert not figures.holds
    command._show(figures)
    assert "2 samples lost and 1 doubled" in capsys.readouterr().out
