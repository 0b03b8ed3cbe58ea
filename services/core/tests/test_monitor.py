import asyncio
import http.client
import json
import socket
import time
from collections.abc import Iterator

import pytest
from prometheus_client import Counter
from prometheus_client.parser import text_string_to_metric_families

from cncmon_core import monitor
from cncmon_core.monitor import Health
from testkit.waiting import WAIT_S_MAX

TURNS = Counter("test_monitor_turns", "A metric of this test.")


class Served:
    def __init__(self) -> None:
        self.health = Health()
        self.port = monitor.serve(self.health, "127.0.0.1", 0)

    def get(self, path: str, method: str = "GET") -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S_MAX)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.headers.get_content_type(), answer.read()
        finally:
            connection.close()

    def report(self, path: str) -> tuple[int, dict[str, str]]:
        status, kind, body = self.get(path)
        assert kind == "application/json"
        found = json.loads(body)
        assert found["ok"] == (status == 200)
        return status, found["failed"]


@pytest.fixture
def served() -> Iterator[Served]:
    return Served()


def test_a_service_without_checks_is_well(served: Served) -> None:
    assert served.report("/healthz") == (200, {})
    assert served.report("/readyz") == (200, {})


def test_failing_readiness_is_named_and_leaves_liveness_alone(served: Served) -> None:
    said: dict[str, str | None] = {"nats": "NATS nats://x: refused", "database": None}
    for name in said:
        served.health.ready_when(name, lambda name=name: said[name])
    assert served.report("/readyz") == (503, {"nats": "NATS nats://x: refused"})
    assert served.report("/healthz") == (200, {})
    said["database"] = "down"
    assert served.report("/readyz")[1].keys() == {"nats", "database"}
    said.update(nats=None, database=None)
    assert served.report("/readyz") == (200, {})


def test_failing_liveness_is_named_and_leaves_readiness_alone(served: Served) -> None:
    served.health.live_when("writer", lambda: "stuck")
    assert served.report("/healthz") == (503, {"writer": "stuck"})
    assert served.report("/readyz") == (200, {})


def test_metrics(served: Served) -> None:
    TURNS.inc(3)
    status, kind, body = served.get("/metrics")
    assert (status, kind) == (200, "text/plain")
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    assert families["test_monitor_turns"].samples[0].value == 3
    assert "cncmon_build" in families or "python_info" in families


@pytest.mark.parametrize("path", ["/", "/health", "/metrics/", "/healthz/x", "/%00"])
def test_another_path_is_not_found_and_says_what_there_is(served: Served, path: str) -> None:
    status, _, body = served.get(path)
    assert status == 404
    assert b"/healthz /readyz /metrics" in body


async def test_a_stuck_loop_fails_liveness(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "LOOP_STUCK_S", 0.3)
    beating = asyncio.create_task(served.health.beat())
    await asyncio.sleep(0)
    assert (await asyncio.to_thread(served.report, "/healthz"))[0] == 200
    time.sleep(0.4)
    # The loop stands still in this very call, and is asked about from outside it.
    status, failed = served.report("/healthz")
    assert status == 503
    assert "the event loop has not turned for" in failed["event loop"]
    assert served.report("/readyz") == (200, {})
    beating.cancel()


def test_probes_that_hang_up_or_talk_nonsense_do_no_harm(
    served: Served, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor._QuietHandler, "timeout", 0.1)
    address = ("127.0.0.1", served.port)
    for said in (b"", b"\0\xff\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /healthz HTTP/1.1\r\n" + b"X: y\r\n" * 500):
        with socket.create_connection(address, 5) as probe:
            probe.sendall(said)
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    with socket.create_connection(address, 5) as silent:
        silent.settimeout(5)
        assert silent.recv(1) == b""
    assert served.report("/healthz") == (200, {})
    assert "Traceback" not in capfd.readouterr().err


def test_a_slow_probe_does_not_hold_up_another(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), 5) as slow:
        slow.sendall(b"GET /healthz HTT")
        assert served.report("/healthz") == (200, {})


def test_a_port_in_use_is_an_os_error(served: Served) -> None:
    with pytest.raises(OSError, match="in use"):
        monitor.serve(Health(), "127.0.0.1", served.port)
