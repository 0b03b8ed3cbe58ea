"""Is it ready? Asked of a part from outside, as its clients would."""

import asyncio

import msgspec

from cncmon_standalone.supervise.part import Probe

_TIMEOUT_S = 2.0
_ANSWER_BYTES_MAX = 4 << 20


def nats_server(port: int) -> Probe:
    """Return a probe for a nats-server: it greets with INFO once JetStream has recovered."""

    async def ask() -> str | None:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    greeting = await reader.readline()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return f"does not listen on port {port} yet"
        return None if greeting.startswith(b"INFO ") else f"something else than NATS answers on port {port}"

    return ask


def postgres(dsn: str) -> Probe:
    """Return a probe for PostgreSQL: it answers a query; makes our database where there is none yet."""

    async def ask() -> str | None:
        from cncmon_standalone.embedded.database import ensure

        return await ensure(dsn)

    return ask


def http(port: int, path: str = "/readyz") -> Probe:
    """Return a probe for our own services: their `/readyz` says yes, or names what is missing."""

    async def ask() -> str | None:
        try:
            status, body = await http_get(port, path)
        except (OSError, TimeoutError, ValueError):
            return f"does not answer on port {port} yet"
        return None if status == 200 else missing(body)

    return ask


def missing(body: bytes) -> str:
    """Return what a `/readyz` answer says is missing."""
    try:
        failed = msgspec.json.decode(body)["failed"]
        return "; ".join(f"{name}: {text}" for name, text in failed.items())
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError):
        return body[:200].decode(errors="replace").strip() or "not ready"


async def http_get(port: int, path: str, *, timeout_s: float = _TIMEOUT_S) -> tuple[int, bytes]:
    """Return status and body of a GET to the loopback address.

    HTTP/1.0 on purpose: the body ends with the connection, and importing a client would cost more than it saves.

    Raises:
        OSError, TimeoutError: nobody answers. ValueError: not HTTP.
    """
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            answer = await reader.read(_ANSWER_BYTES_MAX)
            while chunk := await reader.read(_ANSWER_BYTES_MAX):
                answer += chunk
        finally:
            writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/"):
        raise ValueError("not HTTP")
    return int(words[1]), body
