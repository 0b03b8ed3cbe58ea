"""Health and metrics over HTTP (`/healthz`, `/readyz`, `/metrics`), by a thread so that a stuck event loop shows."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import msgspec
from prometheus_client import REGISTRY, make_wsgi_app

LOOP_STUCK_S: Final = 30.0
"""Liveness fails when the event loop has not turned for this long; a restart helps then, and only then."""

Check = Callable[[], str | None]
"""Returns None when well, else one sentence that says what is wrong."""


class Health:
    """The named checks of one service. Readiness: may it be given work? Liveness: does only a restart help?"""

    def __init__(self) -> None:
        self._ready: dict[str, Check] = {}
        self._live: dict[str, Check] = {}
        self._beat_s: float | None = None

    def ready_when(self, name: str, check: Check) -> None:
        """Add a readiness check."""
        self._ready[name] = check

    def live_when(self, name: str, check: Check) -> None:
        """Add a liveness check."""
        self._live[name] = check

    async def beat(self) -> None:
        """Mark that the event loop turns, until cancelled."""
        while True:
            self._beat_s = time.monotonic()
            await asyncio.sleep(1)

    def _loop(self) -> str | None:
        if self._beat_s is None or time.monotonic() - self._beat_s < LOOP_STUCK_S:
            return None
        return f"the event loop has not turned for {time.monotonic() - self._beat_s:.0f} s"

    def report(self, *, ready: bool) -> tuple[bool, bytes]:
        """Return whether all checks of a kind pass, and a JSON object that names those that don't."""
        checks = self._ready if ready else {"event loop": self._loop, **self._live}
        failed = {name: said for name, check in checks.items() if (said := check()) is not None}
        return not failed, msgspec.json.encode({"ok": not failed, "failed": failed})


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A probe that hangs up or says nothing is no news either, and a traceback would break the log's JSON lines."""


class _QuietHandler(WSGIRequestHandler):
    timeout = 5.0

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 the base class's name
        """Probes every few seconds are no news."""


def serve(health: Health, host: str, port: int) -> int:
    """Serve health and metrics from a daemon thread until the process ends; return the port (useful with port 0).

    Raises:
        OSError: the address is in use.
    """
    metrics = make_wsgi_app(REGISTRY)

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            body: Iterable[bytes] = metrics(environ, start_response)
            return body
        if path not in ("/healthz", "/readyz"):
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"/healthz /readyz /metrics\n"]
        passed, report = health.report(ready=path == "/readyz")
        status = HTTPStatus.OK if passed else HTTPStatus.SERVICE_UNAVAILABLE
        start_response(f"{status.value} {status.phrase}", [("Content-Type", "application/json")])
        return [report]

    server = make_server(host, port, app, server_class=_Server, handler_class=_QuietHandler)
    threading.Thread(target=server.serve_forever, name="monitor", daemon=True).start()
    return server.server_port
