"""What holds for every request: limits, counting, security headers. Plain ASGI, so that streams pass unbuffered."""

import time
from collections.abc import Iterable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cncmon_api import metrics, problems
from cncmon_api.errors import TooBusyError

LIVE_PATH: Final = "/api/v1/live"

SECURITY_HEADERS: Final = (
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'self'; form-action 'self'; "
        b"frame-ancestors 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


class SecurityHeaders:
    """Adds the security headers to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, with the headers."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers: Iterable[tuple[bytes, bytes]] = message.get("headers", ())
                message["headers"] = [*headers, *SECURITY_HEADERS]
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


class Measured:
    """Counts every request by route template and times those that are no live streams."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on and count."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun_s = time.perf_counter()
        status = 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            # Never the path itself: callers could fill our memory with label values.
            route = getattr(scope.get("route"), "path_format", "other")
            metrics.REQUESTS.labels(route, _method(scope["method"]), status or 500).inc()
            if route != LIVE_PATH:
                metrics.LATENCY.labels(route).observe(time.perf_counter() - begun_s)


def _method(method: str) -> str:
    return method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"


class BoundedWork:
    """Lets at most so many API requests be in work; live streams have their own bound."""

    def __init__(self, app: ASGIApp, requests_max: int) -> None:
        self._app = app
        self._requests_max = requests_max
        self._in_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on or refuse with 503."""
        path = scope.get("path", "")
        if scope["type"] != "http" or not path.startswith("/api/") or path == LIVE_PATH:
            await self._app(scope, receive, send)
            return
        if self._in_work >= self._requests_max:
            metrics.REFUSED.labels("concurrent_requests").inc()
            error = TooBusyError(f"{self._requests_max} requests are in work already. Try again after a second.")
            await problems.of(error, path)(scope, receive, send)
            return
        self._in_work += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._in_work -= 1
