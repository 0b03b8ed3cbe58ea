"""A Modbus TCP client connection: one request at a time, and no answer but its own.

Messaging on TCP/IP Implementation Guide V1.0b, section 3.1.3 (MBAP header); Application Protocol V1.1b3, section 6.
Our own because reading is what the agent does most: docs/decisions/0012 has what a library costs instead.
"""

import asyncio
import math
from struct import Struct
from typing import Final, NamedTuple, Protocol, cast

from cncmon_agent.drivers.modbus.plan import BIT_TABLES, Block
from cncmon_agent.errors import DriverError, ProtocolError, UnreachableError

FUNCTIONS: Final = {"coil": 1, "discrete": 2, "holding": 3, "input": 4}
"""Function code by table."""

EXCEPTIONS: Final = {
    1: "illegal function",
    2: "illegal data address",
    3: "illegal data value",
    4: "server device failure",
    5: "acknowledge",
    6: "server device busy",
    8: "memory parity error",
    10: "gateway path unavailable",
    11: "gateway target device failed to respond",
}
"""Application Protocol, section 7."""

LENGTH_MAX: Final = 254
"""Unit id and PDU: 1 + 253 bytes (Application Protocol, section 4.1)."""

TIMER_GRID_S: Final = 0.02
"""Time-outs fall on this grid, where polls do too: a process that sleeps is not woken for them alone."""

EARLIER_MAX: Final = 256
"""Answers to so many transactions back are taken for late or doubled ones and dropped; any other number is a fault."""

_REQUEST: Final = Struct(">HHBBHH")
_ANSWER: Final = Struct(">HHBBB")
_HEADER: Final = Struct(">HHHB")
_LENGTH_END: Final = 6
_DATA: Final = 9
"""Where the data of a good answer begins: transaction, protocol, length, unit, function, byte count."""


class AnsweredError(DriverError):
    """The device answered with an exception."""

    def __init__(self, code: int) -> None:
        super().__init__(f"Modbus exception {code} ({EXCEPTIONS.get(code, 'unknown')})")
        self.code = code


class Question(NamedTuple):
    """A request as bytes, all behind the transaction id: what is sent, and how its good answer begins.

    size: bytes of that answer, from the transaction id to its end.
    """

    request: bytes
    answer: bytes
    size: int
    unit: int
    function: int
    said: str

    @classmethod
    def of(cls, block: Block, unit: int) -> "Question":
        """Return the question for a block of registers or bits."""
        function = FUNCTIONS[block.table]
        data = (block.count + 7) // 8 if block.table in BIT_TABLES else 2 * block.count
        return cls(
            _REQUEST.pack(0, 6, unit, function, block.start, block.count),
            _ANSWER.pack(0, 3 + data, unit, function, data),
            _DATA + data,
            unit,
            function,
            f"{block.count} of {block.table} from {block.start}",
        )


class Waiter(Protocol):
    """Who waits for an answer: a future, or whatever is called just like one."""

    def done(self) -> bool:
        """Whether nothing is waited for any more."""
        ...

    def set_result(self, result: bytes, /) -> None:
        """Take the answer's data."""
        ...

    def set_exception(self, exception: DriverError, /) -> None:
        """Take what is wrong."""
        ...


class Client(asyncio.Protocol):
    """One connection. After any failure but `AnsweredError` it is closed: who wants to go on connects again."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline_s = 0.0
        self._waiter: Waiter | None = None
        self._question: Question | None = None
        self._head = b""
        self._rest = b""
        self._asked = 0
        self.connected = False

    def ask(self, question: Question) -> "asyncio.Future[bytes]":
        """Send a request; the future has the answer's data: registers as big-endian bytes, or bits from the lowest.

        Not before the one before is done. A cancelled future is an answer that is dropped when it comes.

        Its exceptions:
            UnreachableError: no answer within the time-out, or the connection was closed.
            ProtocolError: an answer to something else, or no Modbus.
            AnsweredError: an exception.
        """
        waiter: asyncio.Future[bytes] = self._loop.create_future()
        self.send(question, waiter)
        return waiter

    def send(self, question: Question, waiter: Waiter) -> None:
        """Send a request as `ask` does; its answer goes to `waiter`, which may send the next one at once."""
        transport = self._transport
        if transport is None:
            waiter.set_exception(UnreachableError("the connection is closed"))
            return
        self._asked = asked = self._asked + 1
        number = (asked & 0xFFFF).to_bytes(2, "big")
        self._question = question
        self._head = number + question.answer
        self._waiter = waiter
        transport.write(number + question.request)
        self._deadline_s = self._loop.time() + self._timeout_s
        if self._timer is None:
            self._arm()

    def close(self) -> None:
        """End the connection."""
        self._fail(UnreachableError("the connection was closed"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be ready to ask."""
        self._transport = cast("asyncio.Transport", transport)
        self.connected = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits for an answer."""
        self._fail(UnreachableError(f"the connection was lost: {exc}" if exc else "it hung up"))

    def data_received(self, data: bytes) -> None:
        """Take what came: mostly one whole good answer, which is recognised as such by two comparisons."""
        question, waiter = self._question, self._waiter
        if (
            question is not None
            and waiter is not None
            and len(data) == question.size
            and data.startswith(self._head)
            and not self._rest
            and not waiter.done()
        ):
            waiter.set_result(data[_DATA:])
        else:
            self._take_apart(data)

    def _take_apart(self, data: bytes) -> None:
        """Look at each message in what came; keep the beginning of one whose end is still to come."""
        data = self._rest + data
        at, size = 0, len(data)
        while size - at >= _HEADER.size and self.connected:
            transaction, protocol, length, unit = _HEADER.unpack_from(data, at)
            if protocol != 0 or not 2 <= length <= LENGTH_MAX:
                self._fail(ProtocolError(f"no Modbus: protocol {protocol}, length {length}"))
                break
            end = at + _LENGTH_END + length
            if end > size:
                break
            self._take(transaction, unit, data[at:end])
            at = end
        self._rest = data[at:] if self.connected else b""

    def _take(self, transaction: int, unit: int, message: bytes) -> None:
        """Look at one whole message of at least 8 bytes."""
        question, waiter = self._question, self._waiter
        back = self._asked - transaction & 0xFFFF
        if back or question is None or waiter is None or waiter.done():
            # A late or second answer to what was asked before on this connection means nothing; another is a fault.
            if back >= min(self._asked, EARLIER_MAX):
                asked = self._asked & 0xFFFF
                self._fail(ProtocolError(f"an answer to transaction {transaction}, asked was {asked}"))
        elif unit != question.unit:
            self._fail(ProtocolError(f"asked unit {question.unit}, unit {unit} answered"))
        elif message[7] == question.function | 0x80 and len(message) == _DATA:
            waiter.set_exception(AnsweredError(message[8]))
        elif message[7] != question.function:
            self._fail(ProtocolError(f"asked with function code {question.function}, answered with {message[7]}"))
        elif len(message) != question.size or not message.startswith(self._head):
            self._fail(ProtocolError(f"asked for {question.said}, got {max(len(message) - _DATA, 0)} bytes"))
        else:
            waiter.set_result(message[_DATA:])

    def _fail(self, error: DriverError) -> None:
        self.connected = False
        transport, self._transport, self._rest = self._transport, None, b""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
        if transport is not None:
            transport.abort()

    def _arm(self) -> None:
        due_s = math.ceil(self._deadline_s / TIMER_GRID_S) * TIMER_GRID_S
        self._timer = self._loop.call_at(due_s, self._look_at_time)

    def _look_at_time(self) -> None:
        """Fail when the time is out. One timer serves many requests: most were answered long before it is due."""
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        if self._loop.time() >= self._deadline_s:
            self._fail(UnreachableError("it is silent"))
        else:
            self._arm()


async def connect(host: str, port: int, timeout_s: float) -> Client:
    """Return a connection. Host: a name, an IPv4 or an IPv6 address.

    Raises:
        UnreachableError: says what was wrong.
    """
    try:
        async with asyncio.timeout(timeout_s):
            _, client = await asyncio.get_running_loop().create_connection(lambda: Client(timeout_s), host, port)
    except TimeoutError as error:
        raise UnreachableError(f"can't connect to {host}:{port} within {timeout_s:g} s") from error
    except (OSError, ValueError) as error:
        # ValueError: a host name that can't be one, such as a label of 64 characters.
        raise UnreachableError(f"can't connect to {host}:{port}: {error}") from error
    return client
