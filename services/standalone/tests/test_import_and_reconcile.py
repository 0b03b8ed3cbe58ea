"""`cncmon import` and `cncmon reconcile` on a database that is given by its URL, and against nothing at all."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from cncmon_core import identity
from cncmon_core.frames import join
from testkit.ingest import frame
from testkit.waiting import WAIT_S_MAX

COMMAND = [sys.executable, "-m", "cncmon_standalone.cli"]
EPOCH = 4242


def cncmon(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=WAIT_S_MAX
    )


def exported(path: Path, *seqs: int, damaged: bool = False) -> Path:
    lines = [b'{"cncmon_export":1,"site":"hall","edge":"e1"}']
    for seq in seqs:
        parts = [frame(seq), frame(seq + 100)]
        line: dict[str, Any] = {
            "site": "hall", "edge": "e1", "epoch": EPOCH, "seq": seq, "base": 2 * (seq - 1), "kind": "samples",
            "sha256": identity.digest(join(parts)), "created_ms": int(datetime.now(UTC).timestamp() * 1000),
            "frames": [msgspec.Raw(part) for part in parts],
        }  # fmt: skip
        lines.append(msgspec.json.encode(line))
    if damaged:
        lines[2] = lines[2].replace(b"2500", b"2501")
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


async def test_import_then_reconcile(dsn: str, connection: asyncpg.Connection, tmp_path: Path) -> None:
    path = exported(tmp_path / "edge.jsonl", 1, 2, 3)
    done = cncmon("import", path, "--dsn", dsn)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == (
        "3 batches new with 6 samples, 0 batches known already, 0 dead letters, 0 damaged places in 1 file"
    )
    assert await connection.fetchval("SELECT count(*) FROM sensor_data") == 6

    again = cncmon("import", path, exported(tmp_path / "more.jsonl", 4, 5, damaged=True), "--dsn", dsn, "--json")
    assert again.returncode == 1
    found = json.loads(again.stdout)
    assert (found["batches_new"], found["batches_known"], found["damaged"], found["files"]) == (1, 3, 1, 2)
    assert found["damage"][0].startswith(f"{tmp_path}/more.jsonl, line 3: epoch {EPOCH}, seq 5")
    told = cncmon("import", tmp_path / "more.jsonl", tmp_path / "none", "--dsn", dsn)
    assert "line 3" in told.stdout
    assert "can't be read: No such file" in told.stdout

    books = cncmon("reconcile", "--dsn", dsn)
    assert (books.returncode, books.stderr) == (0, "")
    assert books.stdout.startswith("4 batches accepted in 1 epochs: 4 stored, 0 dead, 0 in gaps.")
    assert "every epoch balances" in books.stdout
    await connection.execute("UPDATE watermarks SET samples_stored = 1")
    books = cncmon("reconcile", "--dsn", dsn)
    assert books.returncode == 1
    assert "Does not balance" in books.stdout
    assert "hall/e1" in books.stdout
    (account,) = json.loads(cncmon("reconcile", "--dsn", dsn, "--json").stdout)["unbalanced"]
    assert account["problem"] == "1 samples more than were accepted"


async def test_reconcile_says_what_is_on_its_way(dsn: str, connection: asyncpg.Connection, tmp_path: Path) -> None:
    cncmon("import", exported(tmp_path / "edge.jsonl", 1, 4), "--dsn", dsn)
    books = cncmon("reconcile", "--dsn", dsn)
    assert books.returncode == 0
    assert "2 on their way" in books.stdout
    assert "On their way, from edges that have them" in books.stdout


@pytest.mark.parametrize("arguments", [("reconcile",), ("import", "file")])
def test_a_database_that_is_not_there_and_a_system_that_does_not_run(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    away = cncmon(*arguments, "--dsn", "postgresql://nobody@127.0.0.1:1/nothing")
    assert away.returncode == 1
    assert away.stderr.startswith("cncmon: the database ")
    for bad in ("rubbish", "postgresql://[/x"):
        wrong = cncmon(*arguments, "--dsn", bad)
        assert wrong.returncode == 1
        assert "Traceback" not in wrong.stderr
    nothing = cncmon(*arguments, "--data", tmp_path / "none")
    assert nothing.returncode == 3
    assert "does not run on" in nothing.stderr


def test_a_database_without_our_tables(dsn: str, tmp_path: Path) -> None:
    other = dsn.rsplit("/", 1)[0] + "/postgres"
    for arguments in (("reconcile",), ("import", exported(tmp_path / "edge.jsonl", 1))):
        done = cncmon(*arguments, "--dsn", other)
        assert done.returncode == 1
        assert "schema" in done.stderr or "tables" in done.stderr
