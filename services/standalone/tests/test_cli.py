"""The command as a user types it, where nothing has to be started."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cncmon_standalone.cli import app
from testkit.waiting import WAIT_S_MAX


def cncmon(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cncmon_standalone.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S_MAX,
        env=os.environ | {"COLUMNS": "100"} | environ,
    )


def test_help_names_every_command() -> None:
    done = cncmon("--help")
    assert done.returncode == 0
    for command in ("demo", "up", "apply", "delete", "status", "doctor", "dlq", "down"):
        assert f"\n  {command} " in done.stdout
    _, _, commands = done.stdout.partition("Commands:")
    assert "..." not in commands  # nothing is cut short


@pytest.mark.parametrize(
    "command",
    [
        ("demo",),
        ("up",),
        ("apply",),
        ("delete", "machine"),
        ("status",),
        ("doctor",),
        ("down",),
        ("dlq", "replay"),
    ],
)
def test_each_command_explains_itself(command: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, [*command, "--help"])
    assert done.exit_code == 0
    assert "Usage: " in done.output


def test_help_comes_at_once() -> None:
    """It loads nothing that only a command needs: each of these alone takes longer than all the rest."""
    code = (
        "import sys\nfrom cncmon_standalone.cli import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert "Commands:" in done.stdout
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    assert (
        loaded & {"asyncpg", "nats", "fastapi", "starlette", "uvicorn", "pydantic", "msgspec", "yaml", "psutil"}
        == set()
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("demo", "--json"), "--json needs --for"),
        (("demo", "--kill", "nats"), "--kill needs --for"),
        (("demo", "--for", "soon"), "'soon' is no duration: write it as 30s"),
        (("demo", "--kill", "moon", "--for", "5s"), "moon"),
        (("demo", "--machines", "0"), "--machines"),
        (("up",), "--file"),
        (("up", "-f", "/nowhere.yaml"), "/nowhere.yaml"),
        (("dlq", "replay"), "say which"),
        (("apply",), "--file"),
        (("apply", "-f", ".", "--wait", "soon"), "'soon' is no duration: write it as 30s"),
        (("delete", "machine"), "NAME"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(arguments: tuple[str, ...], said: str) -> None:
    done = cncmon(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", [("status",), ("status", "--json"), ("down",), ("dlq", "ls"), ("delete", "machine", "a")]
)
def test_nothing_runs(command: tuple[str, ...], tmp_path: Path) -> None:
    done = cncmon(*command, "--data", tmp_path / "none")
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith("cncmon: cncmon does not run on ")
    assert not (tmp_path / "none").exists()


def test_no_usable_machine_is_refused_before_anything_starts(tmp_path: Path) -> None:
    file = tmp_path / "machines.yaml"
    file.write_text("apiVersion: cncmon.dev/v1alpha1\nkind: Machine\nmetadata: {name: Bad Name}\nspec: {}\n")
    done = cncmon("up", "-f", file, "--data", tmp_path / "data")
    assert done.returncode == 2
    assert f"{file}:3: Machine Bad Name metadata.name" in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("prune", [(), ("--prune",)])
def test_apply_takes_all_documents_or_none(tmp_path: Path, prune: tuple[str, ...]) -> None:
    file = tmp_path / "machines.yaml"
    good = "apiVersion: cncmon.dev/v1alpha1\nkind: Machine\nmetadata: {name: good}\nspec:\n"
    good += "  connection: {modbus: {host: h}}\n  signals: [{name: temperature, register: 0}]\n"
    file.write_text(good + "---\n" + good.replace("good", "bad").replace("spec:", "spec:\n  pollIntervalMs: 0"))
    done = cncmon("apply", "-f", file, *prune, "--data", tmp_path / "none")
    assert done.returncode == 2
    assert "nothing was changed" in done.stderr
    assert f"{file}:12: Machine bad spec.pollIntervalMs: expected a whole number" in done.stderr


def test_doctor_for_programs(reachable: Path) -> None:
    done = cncmon("doctor", "--json", "--data", reachable)
    found = json.loads(done.stdout)
    assert set(found) == {"ok", "running", "checks"}
    assert found["running"] is False
    assert all(set(check) == {"group", "name", "status", "detail", "remedy"} for check in found["checks"])
    assert done.returncode == (0 if found["ok"] else 1)
    assert {check["group"] for check in found["checks"]} == {"installation", "this machine", "ports"}


def test_a_demo_that_cannot_start_leaves_no_folder_behind(reachable: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = cncmon("demo", "--api-port", str(port), "--for", "1s", "--json", TMPDIR=str(reachable))
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"port {port} (for the page and the API) is in use by " in done.stderr
    assert "kept" not in done.stderr
    assert list(reachable.iterdir()) == []
