"""The control API: a few routes of HTTP/1.1 on the machines' own event loop, to list machines and to set faults."""

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from cncmon_core import logs
from cncmon_core.errors import SettingsError
from cncmon_core.settings import variable_of
from cncmon_simulator import faults
from cncmon_simulator.errors import FaultError, UnknownMachineError
from cncmon_simulator.fleet import Fleet
from cncmon_simulator.settings import SECTION

log = logs.get(__name__)

HEAD_BYTES_MAX: Final = 8192
BODY_BYTES_MAX: Final = 16384
REQUEST_S_MAX: Final = 10.0
CONNECTIONS_MAX: Final = 64

ROUTES: Final = (
    "GET /machines, GET /machines/{id}, POST /machines/{id}/faults, DELETE /machines/{id}/faults, "
    "DELETE /machines/{id}/faults/{fault}; {id} may be * for all"
)


class _HttpError(Exception):
    """Answered with this status and sentence."""

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status


@asynccontextmanager
async def serve(fleet: Fleet) -> AsyncIterator[int | None]:
    """Serve the control API inside this block; yields its port, or None where the settings ask for none.

    Raises:
        SettingsError: the port is in use.
    """
    host, port = fleet.settings.control_host, fleet.settings.control_port
    if port < 0:
        yield None
        return
    api = _Api(fleet)
    try:
        server = await asyncio.start_server(api.connected, host, port, limit=HEAD_BYTES_MAX)
    except OSError as error:
        what = "is in use" if error.errno == errno.EADDRINUSE else f"can't be listened on ({error.strerror or error})"
        raise SettingsError(
            f"port {port} of {host}, meant for the control API, {what}: set {variable_of(SECTION, 'control_port')} to "
            f"another port (0 picks a free one, -1 serves none)"
        ) from error
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        api.close()
        await server.wait_closed()


class _Api:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._open: set[asyncio.StreamWriter] = set()

    def close(self) -> None:
        """End the connections that are left."""
        for writer in self._open:
            writer.transport.abort()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, and close."""
        if len(self._open) >= CONNECTIONS_MAX:
            writer.transport.abort()
            return
        self._open.add(writer)
        try:
            async with asyncio.timeout(REQUEST_S_MAX):
                status, body = await self._answer(reader)
                writer.write(_response(status, body))
                await writer.drain()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError) as error:
            log.debug("a control request was not answered", error=repr(error))
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[HTTPStatus, Any]:
        try:
            method, path, body = await _read_request(reader)
            return HTTPStatus.OK, await self._route(method, path, body)
        except FaultError as error:
            return _problem(HTTPStatus.BAD_REQUEST, str(error))
        except UnknownMachineError as error:
            return _problem(HTTPStatus.NOT_FOUND, str(error))
        except _HttpError as error:
            return _problem(error.status, str(error))

    async def _route(self, method: str, path: str, body: bytes) -> Any:
        parts = [unquote(part) for part in path.split("?")[0].split("/")[1:]]
        match method, *parts:
            case "GET", "machines":
                return {"machines": [self._describe(name) for name in self._fleet.machines]}
            case "GET", "machines", name:
                return self._describe(self._fleet.machine(name).name)
            case "POST", "machines", name, "faults":
                await self._fleet.set_fault(name, faults.parse(_json(body)))
                return self._after(name)
            case "DELETE", "machines", name, "faults":
                await self._fleet.clear_faults(name)
                return self._after(name)
            case "DELETE", "machines", name, "faults", kind:
                await self._fleet.clear_faults(name, kind)
                return self._after(name)
        known = parts and parts[0] == "machines" and method not in ("GET", "POST", "DELETE")
        status = HTTPStatus.METHOD_NOT_ALLOWED if known else HTTPStatus.NOT_FOUND
        raise _HttpError(status, f"{method} {path[:200]}: there are {ROUTES}")

    def _after(self, name: str) -> Any:
        names = self._fleet.machines if name == "*" else [name]
        return {"machines": [self._describe(n) for n in names]}

    def _describe(self, name: str) -> dict[str, Any]:
        machine = self._fleet.machine(name)
        host, port, unit = self._fleet.address(name)
        active = machine.faults.active()
        return {
            "id": name,
            "host": host,
            "port": port,
            "unit_id": unit,
            "state": "offline" if "off" in active else machine.state(),
            "counter": machine.counter,
            "faults": list(active.values()),
        }


async def _read_request(reader: asyncio.StreamReader) -> tuple[str, str, bytes]:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError as error:
        raise _HttpError(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the headers have more than {HEAD_BYTES_MAX} bytes"
        ) from error
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise _HttpError(HTTPStatus.BAD_REQUEST, "expected an HTTP/1.1 request")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if "transfer-encoding" in headers:
        raise _HttpError(HTTPStatus.LENGTH_REQUIRED, "send the body with Content-Length, not chunked")
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise _HttpError(HTTPStatus.BAD_REQUEST, f"Content-Length {length[:20]!r} is no number")
    if len(length) > 9 or int(length) > BODY_BYTES_MAX:
        raise _HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body may have at most {BODY_BYTES_MAX} bytes")
    return words[0], words[1], await reader.readexactly(int(length))


def _json(body: bytes) -> Any:
    try:
        asked = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FaultError(f'the body is no JSON: {error}; for example {{"fault": "late", "delay_ms": 1500}}') from error
    if not isinstance(asked, dict):
        raise FaultError('the body must be a JSON object; for example {"fault": "late", "delay_ms": 1500}')
    return asked


def _problem(status: HTTPStatus, detail: str) -> tuple[HTTPStatus, Any]:
    return status, {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": detail}


def _response(status: HTTPStatus, body: Any) -> bytes:
    content = msgspec.json.encode(body)
    kind = "application/json" if status is HTTPStatus.OK else "application/problem+json"
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + content
