import json
import os
import signal
import subprocess
import sys
import urllib.request

from testkit.waiting import WAIT_S_MAX

SERVICE = """
import asyncio, sys
from cncmon_core import service

async def main(health, stop):
    health.ready_when("work", lambda: "not begun")
    print("begun", flush=True)
    await stop.wait()
    print("stopped in order", flush=True)

sys.exit(service.run("example", main))
"""


def start(**environ: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CNCMON_")}
    return subprocess.Popen(
        [sys.executable, "-c", SERVICE],
        env=inherited | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_sigterm_stops_in_order_with_status_0() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        process = start()
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        said, _ = process.communicate(timeout=WAIT_S_MAX)
        assert said == "stopped in order\n"
        assert process.returncode == 0


def test_wrong_settings_are_named_with_status_2_and_no_traceback() -> None:
    process = start(CNCMON_SERVICE_LOG_LEVEL="loud", CNCMON_SERVICE_MONITOR_PORT="99999")
    _, said = process.communicate(timeout=WAIT_S_MAX)
    assert process.returncode == 2
    assert "CNCMON_SERVICE_LOG_LEVEL is 'loud'" in said
    assert "CNCMON_SERVICE_MONITOR_PORT is '99999'" in said
    assert "Traceback" not in said


def test_health_is_served_on_the_port_that_the_log_names() -> None:
    process = start(CNCMON_SERVICE_MONITOR_PORT="0")
    assert process.stderr
    line = json.loads(process.stderr.readline())
    assert line["event"] == "serving health and metrics"
    url = f"http://127.0.0.1:{line['port']}"
    with urllib.request.urlopen(f"{url}/healthz", timeout=WAIT_S_MAX) as answer:
        assert json.load(answer) == {"ok": True, "failed": {}}
    with urllib.request.urlopen(f"{url}/metrics", timeout=WAIT_S_MAX) as answer:
        assert 'cncmon_build_info{service="example"' in answer.read().decode()
    process.terminate()
    process.communicate(timeout=WAIT_S_MAX)
