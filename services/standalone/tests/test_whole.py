"""The whole system on this machine, as root and as a normal user: demo, up, status, doctor, dlq, down, kill -9."""

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from cncmon_standalone import backlog
from cncmon_standalone.embedded.process import die_with_parent
from cncmon_standalone.folder import DataFolder
from cncmon_standalone.ports import pick
from cncmon_standalone.state import RunState, read
from testkit.waiting import WAIT_S_MAX, until_blocking

COMMAND = [sys.executable, "-m", "cncmon_standalone.cli"]
NORMAL_USER = ["unshare", "--user", "--map-user=65534", "--map-group=65534"]
"""Another uid with our rights to files: the interpreter may lie in a folder that is closed to other users."""

MACHINES = """
apiVersion: cncmon.dev/v1alpha1
kind: Machine
metadata: {name: lathe-1}
spec:
  site: halle-1
  connection: {modbus: {host: 127.0.0.1, port: %d, timeoutMs: 200}}
  pollIntervalMs: 100
  signals:
    - {name: temperature, register: 0}
---
apiVersion: cncmon.dev/v1alpha1
kind: Machine
metadata: {name: lathe-2}
spec:
  site: halle-2
  connection: {modbus: {host: 127.0.0.1, port: %d, timeoutMs: 200}}
  pollIntervalMs: 100
  signals:
    - {name: temperature, register: 0}
---
apiVersion: cncmon.dev/v1alpha1
kind: Machine
metadata: {name: lathe-3}
spec:
  connection: {modbus: {host: 127.0.0.1}}
  signals:
    - {name: temperature, registr: 0}
"""


def normal_user() -> list[str]:
    """Return the words before a command that make it run as a normal user."""
    if os.geteuid() != 0:
        return []
    probe = subprocess.run([*NORMAL_USER, "true"], check=False, capture_output=True)
    # A container may forbid user namespaces; the command is then run as root once more.
    return NORMAL_USER if probe.returncode == 0 else []


@contextmanager
def running(*arguments: str | Path, home: Path, as_normal_user: bool = False) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*(normal_user() if as_normal_user else []), *COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if "--json" not in arguments else subprocess.PIPE,
        text=True,
        env=os.environ | {"HOME": str(home), "XDG_STATE_HOME": str(home / "state")},
        preexec_fn=die_with_parent,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(WAIT_S_MAX)
        process.kill()
        process.communicate()


def cncmon(*arguments: str | Path, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S_MAX,
        env=os.environ | {"HOME": str(home), "XDG_STATE_HOME": str(home / "state")},
    )


def wait_until_running(data: Path, process: subprocess.Popen[str]) -> RunState:
    def running() -> RunState | None:
        state = read(DataFolder(data))
        if state and all(part.state in ("running", "done") for part in state.processes):
            return state
        assert process.poll() is None, process.stdout and process.stdout.read()
        return None

    state: RunState = until_blocking(running, what=lambda: f"running: {read(DataFolder(data))}")
    return state


def test_demo_proves_itself_as_a_normal_user_with_a_part_killed(reachable: Path) -> None:
    port = pick()[0]
    arguments = ["demo", "--for", "4s", "--json", "--machines", "4", "--hz", "10", "--kill", "nats"]
    with running(*arguments, "--api-port", str(port), home=reachable, as_normal_user=True) as process:
        out, told = process.communicate(timeout=WAIT_S_MAX)
    found: dict[str, Any] = json.loads(out)
    assert process.returncode == 0, told
    assert found["lost"] == found["duplicated"] == found["mismatched"] == found["gaps"] == found["dead_lettered"] == 0
    assert found["examples"] == []
    assert found["stored"] == found["accepted"] > 100
    assert found["acquired"] <= found["answered"] <= found["due"] + found["machines"]
    assert found["killed"] == "nats"
    assert found["restarts"] == {"nats": 1}
    assert found["recovery_s"] > 0
    assert set(found["latency_ms"]) == {"p50", "p99", "max", "samples", "unseen", "probes"}
    assert found["latency_ms"]["unseen"] == 0
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"] <= found["latency_ms"]["max"]
    assert 10 < found["agent_rss_mb"] < 200
    assert found["agent_cpu_us_per_sample"] > 0
    assert f"http://127.0.0.1:{port}/" in told
    assert "kill -9 nats" in told
    assert "nats was ended by SIGKILL; starting it again" in told
    assert "Removed the temporary folder" in told


@pytest.fixture
def arguments(reachable: Path) -> list[str | Path]:
    """Of `up`, on ports of its own, with two good machines that are switched off and a bad document."""
    api, nats, postgres, nobody = pick(4)
    file = reachable / "machines.yaml"
    file.write_text(MACHINES % (nobody, nobody))
    ports = ["--api-port", str(api), "--nats-port", str(nats), "--postgres-port", str(postgres)]
    return ["up", "-f", file, "--data", reachable / "data", *ports]


def test_up_leaves_nothing_when_killed_and_the_next_one_runs_to_its_end(
    reachable: Path, arguments: list[str | Path]
) -> None:
    data = reachable / "data"
    file = Path(arguments[2])
    documents = file.read_text()
    file.write_text(documents + "---" + documents.split("---")[0].replace("lathe-1", "lathe-0"))
    with running(*arguments, home=reachable) as first:
        state = wait_until_running(data, first)
        children = [psutil.Process(part.pid) for part in state.processes if part.pid]
        assert len(children) == 6
        first.kill()
        _, alive = psutil.wait_procs(children, timeout=WAIT_S_MAX)
        assert alive == []
    assert cncmon("status", "--data", data, home=reachable).returncode == 3
    file.write_text(documents)

    with running(*arguments, home=reachable) as process:
        state = wait_until_running(data, process)
        names = [part.name for part in state.processes]
        assert names[-2:] == ["agent-halle-1-edge", "agent-halle-2-edge"]

        second = cncmon(*arguments, home=reachable)
        assert second.returncode == 1
        assert f"pid {process.pid}" in second.stderr
        elsewhere = cncmon(*arguments, "--data", reachable / "other", home=reachable)
        assert elsewhere.returncode == 1
        assert "in use by cncmon_api.main, pid " in elsewhere.stderr
        for option in ("--api-port", "--nats-port", "--postgres-port"):
            assert f"choose another with {option} N" in elsewhere.stderr

        found = _status_with_both_machines(data, reachable)
        assert found["api_url"] == f"http://127.0.0.1:{arguments[6]}"
        assert found["nats_url"] == f"nats://127.0.0.1:{arguments[8]}"
        assert found["database_dsn"].endswith(f"@127.0.0.1:{arguments[10]}/cncmon")
        assert found["backlog"] == 0
        assert found["problems"] == []
        assert {"name", "pid", "state", "restarts"} <= set(found["processes"][0])
        # lathe-0 is what the first one may have stored before it was killed.
        states = {machine["id"]: machine["state"] for machine in found["machines"]}
        assert states == dict.fromkeys(states.keys() | {"lathe-1", "lathe-2"}, "offline")
        table = cncmon("status", home=reachable).stdout  # found without --data
        assert "agent-halle-2-edge" in table
        assert found["database_dsn"].split(":")[2].split("@")[0] not in table  # no password on a screen

        doctor = json.loads(cncmon("doctor", "--json", "--data", data, home=reachable).stdout)
        assert [check for check in doctor["checks"] if check["status"] == "fail"] == []
        assert doctor["ok"]
        assert doctor["running"]
        _dead_letters(data, reachable, found["nats_url"])
        _machines_change(data, reachable, documents)

        down = cncmon("down", "--data", data, home=reachable)
        assert down.returncode == 0, down.stderr
        assert "√ postgres stopped" in down.stdout
        told, _ = process.communicate(timeout=WAIT_S_MAX)
    assert process.returncode == 0
    assert f"{arguments[2]}:28: Machine lathe-3 spec.signals[0]: unknown field" in told
    assert "2 machines can be read all the same" in told
    assert "halle-1/edge lathe-0 removed: not in these files" in told
    stopped = [line.split()[1] for line in told.splitlines() if " stopped" in line]
    assert sorted(stopped[:2]) == names[-2:]
    assert stopped[2:] == ["ingest", "api", "nats", "postgres"]


def _machines_change(data: Path, home: Path, documents: str) -> None:
    """Change one machine of one edge, try another, take one away; each edge says what it runs."""
    file = home / "changed.yaml"
    first, second, _ = documents.split("---")
    file.write_text(first.replace("pollIntervalMs: 100", "pollIntervalMs: 200") + "---" + second)
    tried = cncmon("apply", "-f", file, "--dry-run", "--data", data, home=home)
    assert "halle-1/edge lathe-1 configured (dry run)" in tried.stdout
    done = json.loads(cncmon("apply", "-f", file, "--json", "--data", data, home=home).stdout)
    edges = {edge["site"]: edge for edge in done["edges"]}
    assert edges["halle-1"]["machines"] == [
        {"machine": "lathe-1", "verb": "configured", "fields": ["spec.pollIntervalMs: 100 -> 200"]}
    ]
    assert edges["halle-1"]["state"] == "applied"
    assert edges["halle-2"]["machines"] == [{"machine": "lathe-2", "verb": "unchanged", "fields": []}]
    assert edges["halle-2"]["state"] is None
    again = cncmon("apply", "-f", file, "--data", data, home=home)
    assert again.stdout.count("unchanged") == 2
    assert again.returncode == 0

    missing = cncmon("delete", "machine", "lathe-1", "lathe-7", "--data", data, home=home)
    assert missing.returncode == 2
    assert "no edge has lathe-7" in missing.stderr
    gone = cncmon("delete", "machine", "lathe-1", "--data", data, home=home)
    assert "halle-1/edge lathe-1 removed" in gone.stdout
    assert "√ halle-1/edge runs revision " in gone.stdout


def _dead_letters(data: Path, home: Path, nats_url: str) -> None:
    frame = b'{"machine_id": "CNC-MALFORMED", "temperature": "not-a-float"}'

    async def publish() -> None:
        client = await backlog.connect(nats_url)
        await client.jetstream().publish("CNC_DATA.old", len(frame).to_bytes(4, "big") + frame)
        await client.close()

    asyncio.run(publish())
    (letter,) = until_blocking(lambda: json.loads(cncmon("dlq", "ls", "--json", "--data", data, home=home).stdout))
    assert letter["reason"] == "invalid_field"
    assert f"{letter['id']}  " in cncmon("dlq", "ls", "--data", data, home=home).stdout
    shown = json.loads(cncmon("dlq", "show", str(letter["id"]), "--json", "--data", data, home=home).stdout)
    assert base64.b64decode(shown["payload_base64"]) == frame
    assert frame.decode() in cncmon("dlq", "show", str(letter["id"]), "--data", data, home=home).stdout
    again = cncmon("dlq", "replay", "--all", "--data", data, home=home)
    assert again.returncode == 1
    assert f"× {letter['id']}: invalid_field" in again.stdout
    assert cncmon("dlq", "show", "999", "--data", data, home=home).returncode == 2


def _status_with_both_machines(data: Path, home: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def both() -> bool:
        found.update(json.loads(cncmon("status", "--json", "--data", data, home=home).stdout))
        return {machine["id"] for machine in found["machines"]} >= {"lathe-1", "lathe-2"} and not found["backlog"]

    until_blocking(both, what=lambda: f"both machines and no backlog: {found}")
    return found
