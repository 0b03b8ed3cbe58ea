"""`cncmon-agent` as people and supervisors see it: exit status, what is printed, health and metrics."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cncmon_standalone.embedded.process import base_environ, die_with_parent
from robustness.faults.small_disk import fill_up, small_disk
from testkit.ports import free_port
from testkit.waiting import WAIT_S_MAX, until_blocking

COMMAND = [sys.executable, "-m", "cncmon_agent.main"]
NOWHERE = "nats://127.0.0.1:9"


def environ(**changes: str) -> dict[str, str]:
    return base_environ() | {"CNCMON_NATS_SERVERS": NOWHERE} | changes


def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    return subprocess.run(
        [*COMMAND, *arguments], env=environ(**changes), capture_output=True, text=True, timeout=WAIT_S_MAX, check=False
    )


class Running:
    """A running agent, its log and its monitor port."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, port: int) -> None:
        self.process = process
        self._log = log
        self._port = port

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=WAIT_S_MAX) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str) -> float:
        lines = [line.split() for line in self.get("/metrics")[1].splitlines() if not line.startswith("#")]
        return next(float(line[1]) for line in lines if line[0] == name)

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def wait_for(self, event: str) -> dict[str, Any]:
        def said() -> dict[str, Any] | None:
            found = next((line for line in self.log() if line["event"] == event), None)
            assert found or self.process.poll() is None, self._log.read_text()
            return found

        line: dict[str, Any] = until_blocking(said, what=lambda: f"{event!r} in {self._log.read_text()}")
        return line

    def until_looked(self) -> None:
        """Wait until the agent has looked at its buffer once: every slot sets the metrics."""
        until_blocking(lambda: self.metric("cncmon_edge_buffer_capacity_bytes"), what=self._log.read_text)

    def stop(self) -> None:
        """Stop it by SIGTERM. What it might wait for on its way out never comes in these tests."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(WAIT_S_MAX) == 0, self._log.read_text()


@contextlib.contextmanager
def running(folder: Path, **changes: str) -> Iterator[Running]:
    """Run an agent until the block ends; its log lies in the folder."""
    port = free_port()
    more = {"CNCMON_SERVICE_MONITOR_PORT": str(port), **changes}
    path = folder / f"agent-{port}.log"
    with path.open("wb") as log:
        process = subprocess.Popen(COMMAND, env=environ(**more), stdout=log, stderr=log, preexec_fn=die_with_parent)
    try:
        agent = Running(process, path, port)
        agent.wait_for("agent made")
        yield agent
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """A folder that even root can't write to, where we are root."""
    folder.mkdir()
    if os.geteuid():
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def one_line(said: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that is said of a refusal: no traceback, nothing on standard output."""
    refusals = [line for line in said.stderr.splitlines() if not line.startswith("{")]
    assert len(refusals) == 1, said.stderr
    assert "Traceback" not in said.stderr
    assert said.stdout == ""
    return refusals[0]


def test_help_says_what_it_does_and_how_it_ends() -> None:
    said = run("--help")
    assert said.returncode == 0
    assert said.stderr == ""
    assert said.stdout.startswith("usage: cncmon-agent [-h] [buffer ls|verify|export …]\n")
    assert "reads this edge's machines" in said.stdout
    assert "buffer --help" not in said.stdout
    assert run("buffer", "--help").stdout.startswith("usage: cncmon-agent buffer [-h] ls|verify|export ...\n")


@pytest.mark.parametrize("arguments", [["bufer"], ["--verbose"], ["buffer"], ["buffer", "rm"]])
def test_wrong_arguments_are_named_and_nothing_is_run(arguments: list[str]) -> None:
    said = run(*arguments)
    assert said.returncode == 2
    assert said.stderr.startswith("usage: cncmon-agent ")
    assert "error: " in said.stderr.splitlines()[-1]
    assert arguments[-1].lstrip("-") in said.stderr.splitlines()[-1] or arguments == ["buffer"]


def test_every_wrong_setting_is_named_at_once(tmp_path: Path) -> None:
    said = run(
        CNCMON_AGENT_DATA_DIR=str(tmp_path / "data"),
        CNCMON_AGENT_LINGER_MS="soon",
        CNCMON_AGENT_SPOOL="maybe",
        CNCMON_AGENT_SPOOL_BYTES_MAX="1000",
    )
    assert said.returncode == 2
    line = one_line(said)
    for variable, value in (("LINGER_MS", "soon"), ("SPOOL", "maybe"), ("SPOOL_BYTES_MAX", "1000")):
        assert f"CNCMON_AGENT_{variable} is '{value}': " in line
    assert ">= 16777216" in line
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("below", [".", "agent"])
def test_a_read_only_folder_ends_it_with_one_line(tmp_path: Path, below: str) -> None:
    with read_only(tmp_path / "data") as folder:
        said = run(CNCMON_AGENT_DATA_DIR=str(folder / below))
    assert said.returncode == 1
    why = "Read-only file system" if os.geteuid() == 0 else "Permission denied"
    assert one_line(said) == f"cncmon-agent: data folder {folder / below} can't be used: {why}"


@pytest.mark.parametrize("spool", ["required", "preferred"])
def test_another_agent_on_the_folder_is_refused_however_it_is_set(tmp_path: Path, spool: str) -> None:
    with running(tmp_path, CNCMON_AGENT_DATA_DIR=str(tmp_path / "data")) as first:
        said = run(CNCMON_AGENT_DATA_DIR=str(tmp_path / "data"), CNCMON_AGENT_SPOOL=spool)
        assert said.returncode == 1
        assert one_line(said) == (
            f"cncmon-agent: another agent runs on data folder {tmp_path / 'data'}: "
            "give each its own (CNCMON_AGENT_DATA_DIR)"
        )
        assert first.get("/healthz")[0] == 200


def test_a_file_in_the_folders_place_ends_it_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    said = run(CNCMON_AGENT_DATA_DIR=str(tmp_path / "data"))
    assert (said.returncode, one_line(said)) == (
        1,
        f"cncmon-agent: data folder {tmp_path / 'data'} can't be used: a file has that name",
    )


def test_a_file_in_the_place_of_the_batches_ends_it_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "spool").touch()
    said = run(CNCMON_AGENT_DATA_DIR=str(tmp_path))
    assert said.returncode == 1
    assert f"{tmp_path / 'spool'} can't be used" in one_line(said)


def test_a_record_that_cant_be_written_is_named_by_its_own_path(tmp_path: Path) -> None:
    said = run(CNCMON_AGENT_DATA_DIR=str(tmp_path / "data"), CNCMON_AGENT_ACCEPTED_LOG=str(tmp_path))
    assert said.returncode == 1
    assert one_line(said) == f"cncmon-agent: {tmp_path} can't be used: Is a directory"


@pytest.mark.needs("root")
@pytest.mark.parametrize("size", [128 << 10, 1 << 20], ids=["not a byte", "no room for a segment"])
def test_a_full_disk_ends_it_with_one_line(tmp_path: Path, size: int) -> None:
    with small_disk(tmp_path / "disk", size) as disk:
        leave(disk, 0 if size < 1 << 20 else 512 << 10)
        said = run(CNCMON_AGENT_DATA_DIR=str(disk / "agent"), CNCMON_AGENT_SPOOL_FREE_BYTES_MIN="0")
        assert said.returncode == 1
        line = one_line(said)
        assert line.startswith(f"cncmon-agent: data folder {disk / 'agent'}")
        assert "No space left on device" in line or "0 MiB are free, and 4 MiB are needed" in line
    assert disk.is_dir()


def leave(disk: Path, size: int) -> None:
    """Fill a disk up but for so many bytes."""
    kept = disk / "kept"
    kept.write_bytes(bytes(size))
    fill_up(disk / "others")
    kept.unlink()


def check_memory_only(agent: Running, why: str) -> None:
    status, said = agent.get("/readyz")
    assert status == 503
    assert why in json.loads(said)["failed"]["buffer"]
    assert agent.get("/healthz")[0] == 200, "a restart would not help"
    assert agent.metric("cncmon_edge_buffer_memory_only") == 1
    assert agent.metric("cncmon_edge_buffer_capacity_bytes") == 2 << 20
    assert any(why in line.get("reason", "") for line in agent.log() if line["level"] == "error")


@pytest.mark.parametrize("in_the_way", ["data", "spool"])
def test_where_a_disk_is_only_preferred_it_runs_in_memory_and_says_so(tmp_path: Path, in_the_way: str) -> None:
    data = tmp_path / "data"
    if in_the_way == "spool":
        data.mkdir()
    (data if in_the_way == "data" else data / "spool").touch()
    with running(tmp_path, CNCMON_AGENT_DATA_DIR=str(data), CNCMON_AGENT_SPOOL="preferred") as agent:
        agent.until_looked()
        check_memory_only(agent, "a file has that name" if in_the_way == "data" else "File exists")
        agent.stop()


def test_a_read_only_folder_where_a_disk_is_only_preferred(tmp_path: Path) -> None:
    data = tmp_path / "data"
    settings = {"CNCMON_AGENT_DATA_DIR": str(data), "CNCMON_AGENT_SPOOL": "preferred"}
    with read_only(data), running(tmp_path, **settings) as agent:
        agent.until_looked()
        check_memory_only(agent, f"data folder {data} can't be used: ")
        agent.stop()


@pytest.mark.needs("root")
@pytest.mark.parametrize("size", [128 << 10, 1 << 20], ids=["not a byte", "no room for a segment"])
def test_a_full_disk_where_it_is_only_preferred(tmp_path: Path, size: int) -> None:
    with small_disk(tmp_path / "disk", size) as disk:
        leave(disk, 0 if size < 1 << 20 else 512 << 10)
        settings = {
            "CNCMON_AGENT_DATA_DIR": str(disk / "agent"),
            "CNCMON_AGENT_SPOOL": "preferred",
            "CNCMON_AGENT_SPOOL_FREE_BYTES_MIN": "0",
        }
        with running(tmp_path, **settings) as agent:
            agent.until_looked()
            check_memory_only(agent, "No space left" if size < 1 << 20 else "no room for batches")
            agent.stop()


def test_no_disk_on_purpose_is_no_fault(tmp_path: Path) -> None:
    with running(tmp_path, CNCMON_AGENT_DATA_DIR=str(tmp_path / "data"), CNCMON_AGENT_SPOOL="off") as agent:
        agent.until_looked()
        failed = json.loads(agent.get("/readyz")[1])["failed"]
        assert list(failed) == ["nats"]
        assert agent.metric("cncmon_edge_buffer_memory_only") == 1


def test_a_cold_tier_that_is_not_there_is_said_and_the_agent_runs(tmp_path: Path) -> None:
    (tmp_path / "stick").touch()
    settings = {"CNCMON_AGENT_DATA_DIR": str(tmp_path / "data"), "CNCMON_AGENT_COLD_DIR": str(tmp_path / "stick")}
    with running(tmp_path, **settings) as agent:
        said = agent.wait_for("the cold tier can't be used")
        stick, data = tmp_path / "stick", tmp_path / "data"
        assert said["reason"] == f"cold tier {stick} can't be used: Not a directory. Batches stay in {data}"
        agent.until_looked()
        assert agent.metric("cncmon_edge_cold_tier_missing") == 1
        assert agent.metric("cncmon_edge_buffer_memory_only") == 0


def test_a_stop_while_nats_is_away_is_quick(tmp_path: Path) -> None:
    with running(tmp_path, CNCMON_AGENT_DATA_DIR=str(tmp_path / "data")) as agent:
        agent.wait_for("can't connect to NATS")
        agent.stop()
        assert agent.log()[-1]["event"] == "agent stopped"
        assert all("exception" not in line for line in agent.log())
