"""The `cncmon-api` command as a process."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request

import msgspec
import pytest

from testkit.waiting import WAIT_S_MAX, until_blocking

COMMAND = [sys.executable, "-m", "cncmon_api.main"]


def environ(**settings: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CNCMON_")}
    return clean | {f"CNCMON_API_{name.upper()}": value for name, value in settings.items()}


def run(variables: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], env=variables, capture_output=True, text=True, timeout=WAIT_S_MAX, check=False
    )


def test_starts_serves_and_stops_with_a_stream_open(database_dsn):
    process = subprocess.Popen(COMMAND, env=environ(database_dsn=database_dsn, port="0"), stderr=subprocess.PIPE)
    try:
        lines = []
        for line in process.stderr:
            lines.append(msgspec.json.decode(line))
            if lines[-1]["event"] == "serving":
                break
        url = f"http://{lines[-1]['address']}"
        assert lines[-1]["service"] == "cncmon-api"

        def answers() -> bool:
            try:
                return bool(urllib.request.urlopen(f"{url}/api/v1/machines", timeout=WAIT_S_MAX).status == 200)
            except OSError:
                return False

        until_blocking(answers)
        stream = urllib.request.urlopen(f"{url}/api/v1/live", timeout=WAIT_S_MAX)
        assert stream.readline() == b"retry: 2000\n"
        # Nobody closes the stream: who waits for its end waits for ever.
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S_MAX) == 0
    finally:
        process.kill()
        rest = process.stderr.read()
        process.stderr.close()
    for line in rest.splitlines():
        assert msgspec.json.decode(line)["level"] == "info"
    assert database_dsn.encode() not in rest


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "CNCMON_API_DATABASE_DSN is not set"),
        ({"database_dsn": "postgresql://x", "port": "99999"}, "CNCMON_API_PORT is '99999'"),
        ({"database_dsn": "postgresql://x", "host": "no.such.host.invalid"}, "CNCMON_API_HOST"),
    ],
)
def test_wrong_settings_are_named(settings, said):
    done = subprocess.run(
        COMMAND, env=environ(**settings), capture_output=True, text=True, timeout=WAIT_S_MAX, check=False
    )
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        settings = environ(database_dsn="postgresql://x", port=port)
        done = run(settings)
    assert done.returncode == 2
    assert f"port {port}: Address already in use" in done.stderr


def test_help_lists_every_setting():
    done = subprocess.run(
        [*COMMAND, "--help"], env=environ(), capture_output=True, text=True, timeout=WAIT_S_MAX, check=True
    )
    assert "CNCMON_API_STALE_AFTER_MS [15000]" in done.stdout
