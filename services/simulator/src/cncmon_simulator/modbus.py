"""A Modbus TCP server connection (Modbus Messaging on TCP/IP V1.0b, Modbus Application Protocol V1.1b3).

Not pymodbus's server: that one gives a late answer the transaction id of whatever request came last on the connection,
loses the second of two requests that arrive in one segment, and takes several times the processor time. The tests read
with pymodbus's client.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Final, cast

from cncmon_simulator.machine import Answer, Machine

READ_HOLDING_REGISTERS: Final = 3
ILLEGAL_FUNCTION: Final = 1
ILLEGAL_DATA_VALUE: Final = 3
GATEWAY_TARGET_FAILED: Final = 11

REGISTERS_MAX: Final = 125
HEADER_BYTES: Final = 7
LENGTH_MAX: Final = 254
"""Unit id and PDU: 1 + 253 bytes (Application Protocol, section 4.1)."""

LATE_MAX: Final = 64
"""Answers held back on one connection; a client with more outstanding gets none for the others."""

_HEADER: Final = struct.Struct(">HHHB")
_READ: Final = struct.Struct(">BHH")
_ANSWER_HEADER: Final = struct.Struct(">HHHBBB")
_RESET: Final = struct.pack("ii", 1, 0)

Route = Callable[[int], Machine | None]
"""From a unit id to its machine."""


class Connection(asyncio.Protocol):
    """One client's connection. Holds at most one incomplete request, and reads no further while the client doesn't."""

    def __init__(self, route: Route, connections: set["Connection"], connections_max: int) -> None:
        self._route = route
        self._connections = connections
        self._connections_max = connections_max
        self._rest = b""
        self._late: set[asyncio.TimerHandle] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, unless there are too many already."""
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)
        if len(self._connections) > self._connections_max:
            self.reset()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the answers that are still held back."""
        self._connections.discard(self)
        for handle in self._late:
            handle.cancel()

    def pause_writing(self) -> None:
        """Take no more requests from a client that does not read its answers."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on with a client that reads again."""
        self._transport.resume_reading()

    def reset(self) -> None:
        """End the connection with RST, as a controller that loses power does, not with an orderly FIN."""
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Answer every request that is complete."""
        if self._rest:
            data = self._rest + data
        at, size = 0, len(data)
        while size - at >= HEADER_BYTES:
            transaction, protocol, length, unit = _HEADER.unpack_from(data, at)
            if protocol != 0 or not 2 <= length <= LENGTH_MAX:
                # No Modbus, and no way to find where the next request starts.
                self._transport.close()
                return
            end = at + HEADER_BYTES - 1 + length
            if end > size:
                break
            self._request(transaction, unit, data[at + HEADER_BYTES : end])
            if self._transport.is_closing():
                return
            at = end
        self._rest = data[at:]

    def _request(self, transaction: int, unit: int, pdu: bytes) -> None:
        machine = self._route(unit)
        if machine is None or machine.is_off:
            return self._refuse(transaction, unit, pdu[0], GATEWAY_TARGET_FAILED)
        if pdu[0] != READ_HOLDING_REGISTERS:
            return self._refuse(transaction, unit, pdu[0], ILLEGAL_FUNCTION)
        if len(pdu) != _READ.size:
            return self._refuse(transaction, unit, pdu[0], ILLEGAL_DATA_VALUE)
        _, address, count = _READ.unpack(pdu)
        if not 1 <= count <= REGISTERS_MAX:
            return self._refuse(transaction, unit, pdu[0], ILLEGAL_DATA_VALUE)
        answer = machine.read(address, count)
        if answer.faults:
            return self._answer_with_faults(transaction, unit, answer)
        if answer.exception:
            return self._refuse(transaction, unit, READ_HOLDING_REGISTERS, answer.exception)
        return self._transport.write(_frame(transaction, unit, answer))

    def _refuse(self, transaction: int, unit: int, function: int, code: int) -> None:
        self._transport.write(_exception(transaction, unit, function, code))

    def _answer_with_faults(self, transaction: int, unit: int, answer: Answer) -> None:
        faults = answer.faults
        if "drop" in faults:
            return self.reset()
        if "wrong_transaction_id" in faults:
            transaction = (transaction + 1) & 0xFFFF
        frame = (
            _exception(transaction, unit, READ_HOLDING_REGISTERS, answer.exception)
            if answer.exception
            else _frame(transaction, unit, answer)
        )
        if "late" not in faults:
            return self._transport.write(frame)
        if len(self._late) < LATE_MAX:
            self._hold_back(frame, faults["late"].delay_ms / 1000)
        return None

    def _hold_back(self, frame: bytes, delay_s: float) -> None:
        def send() -> None:
            self._late.discard(handle)
            self._transport.write(frame)

        handle = asyncio.get_running_loop().call_later(delay_s, send)
        self._late.add(handle)


def _frame(transaction: int, unit: int, answer: Answer) -> bytes:
    size = len(answer.registers)
    return _ANSWER_HEADER.pack(transaction, 0, 3 + size, unit, READ_HOLDING_REGISTERS, size) + answer.registers


def _exception(transaction: int, unit: int, function: int, code: int) -> bytes:
    return _ANSWER_HEADER.pack(transaction, 0, 3, unit, 0x80 | function, code)


class Listener:
    """A listening socket that can be closed with all its connections, and opened again on the same port."""

    def __init__(self, host: str, port: int, route: Route, connections_max: int) -> None:
        self.host = host
        self.port = port
        self._route = route
        self._connections_max = connections_max
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    @property
    def is_open(self) -> bool:
        """Whether the socket listens."""
        return self._server is not None

    async def open(self) -> None:
        """Listen; port 0 is replaced by the free port that was picked.

        Raises:
            OSError: the address can't be used.
        """
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Connection(self._route, self._connections, self._connections_max), self.host, self.port, backlog=128
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Close the socket and reset every connection."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for connection in list(self._connections):
            connection.reset()
        await server.wait_closed()
