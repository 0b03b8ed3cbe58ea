"""uvicorn's HTTP/1.1 protocol with what it lacks: a time limit for the request's head and body, and a connection limit.

uvicorn limits only idle keep-alive connections; a client that sends its head byte by byte (slow-loris) would be held
for ever.
"""

import asyncio
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cncmon_api import metrics, problems


class BoundedProtocol(HttpToolsProtocol):
    """One connection. Subclassed with its limits by `bounded`."""

    header_timeout_s: float
    connections_max: int
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        """Begin the time for the first request; refuse the connection where there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.connections_max:
            metrics.REFUSED.labels("connections").inc()
            self._refuse(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "Too many connections at once",
                f"At most {self.connections_max} connections may be open. Try again.",
            )
            return
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer with the connection."""
        self._disarm()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Begin the time for a further request on the connection; let the response cut the connection."""
        super().on_message_begin()
        self.scope["state"]["abort"] = self.transport.abort
        if self._head_timer is None:
            self._arm()

    def on_message_complete(self) -> None:
        """The whole request is here."""
        self._disarm()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no HTTP request, as a problem like every other error."""
        self._refuse(HTTPStatus.BAD_REQUEST, "No HTTP request", msg)

    def _refuse(self, status: HTTPStatus, title: str, detail: str) -> None:
        body = problems.body(status, title, detail, "/")
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: {problems.MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\nretry-after: 1\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _arm(self) -> None:
        self._head_timer = self.loop.call_later(self.header_timeout_s, self._too_slow)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        metrics.REFUSED.labels("header_timeout").inc()
        self.transport.abort()


def bounded(header_timeout_s: float, connections_max: int) -> type[BoundedProtocol]:
    """Return the protocol with these limits."""
    limits = {"header_timeout_s": header_timeout_s, "connections_max": connections_max}
    return type("LimitedProtocol", (BoundedProtocol,), limits)
