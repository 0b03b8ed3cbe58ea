"""The service as it is run: a process of its own, on uvloop."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cncmon_core import machine_files
from cncmon_simulator import poll_log
from testkit.waiting import WAIT_S_MAX

POLL = bytes.fromhex("0001 0000 0006 01 03 0064 0027")
ANSWER_BYTES = 9 + 2 * 39


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CNCMON_")}
    values = {"port_base": 0, "control_port": 0, "poll_log": tmp_path / "log", "machines_file": tmp_path / "m.yaml"}
    environ |= {f"CNCMON_SIMULATOR_{name.upper()}": str(value) for name, value in values.items()}
    command = [sys.executable, "-m", "cncmon_simulator.main"]
    process = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)
    yield process, tmp_path
    process.kill()
    process.wait()
    assert process.stderr is not None
    process.stderr.close()


def test_the_whole_service(started) -> None:
    process, folder = started
    said = json.loads(process.stderr.readline())
    assert said["event"] == "machines are listening"
    found = machine_files.load([folder / "m.yaml"])
    assert list(found.machines) == ["mill-01", "lathe-02", "center-03", "grinder-04", "drill-05"]
    address = ("127.0.0.1", found.machines["mill-01"].spec.connection.modbus.port)

    def control(method: str, path: str, body: object = None) -> dict:
        connection = http.client.HTTPConnection("127.0.0.1", said["control_port"], timeout=WAIT_S_MAX)
        connection.request(method, path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        assert answer.status == 200
        return json.load(answer)

    def poll(client: socket.socket) -> bytes:
        client.sendall(POLL)
        return client.recv(ANSWER_BYTES, socket.MSG_WAITALL)

    with socket.create_connection(address, 5) as client:
        assert len(poll(client)) == ANSWER_BYTES
        control("POST", "/machines/mill-01/faults", {"fault": "off"})
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, 5)
    control("DELETE", "/machines/mill-01/faults/off")
    control("POST", "/machines/*/faults", {"fault": "drop"})
    with socket.create_connection(address, 5) as client, pytest.raises(ConnectionResetError):
        poll(client)
    control("DELETE", "/machines/*/faults")
    with socket.create_connection(address, 5) as client:
        assert len(poll(client)) == ANSWER_BYTES
        assert control("GET", "/machines/mill-01")["counter"] == 3
        time.sleep(0.5)
        assert len(list(poll_log.read(folder / "log"))) == 3
        assert len(poll(client)) == ANSWER_BYTES
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert [(r.machine_id, r.counter, r.fault) for r in poll_log.read(folder / "log")] == [
        ("mill-01", 1, None),
        ("mill-01", 2, "drop"),
        ("mill-01", 3, None),
        ("mill-01", 4, None),
    ]
