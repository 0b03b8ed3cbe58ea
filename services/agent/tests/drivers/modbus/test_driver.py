"""The driver against real servers: pymodbus's, with limits and holes, and one that answers whatever it is told to."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from cncmon_agent import drivers
from cncmon_agent.drivers.modbus import driver as module
from cncmon_agent.drivers.modbus.driver import ModbusDriver
from cncmon_agent.errors import DriverError, ProtocolError, UnreachableError
from cncmon_core.machine import Signal

pytestmark = pytest.mark.virtual_time


class Device:
    """A pymodbus server whose register n holds n; it refuses what a real one might refuse."""

    def __init__(self) -> None:
        self.registers_max = 125
        self.holes: set[int] = set()
        self.code = ExcCodes.ILLEGAL_ADDRESS
        self.all_codes: ExcCodes | None = None
        self.requests: list[tuple[int, int, int]] = []
        self.port = 0

    async def action(
        self, function: int, _start: int, address: int, count: int, _registers: list[int], _values: Any
    ) -> ExcCodes | None:
        self.requests.append((function, address, count))
        if self.all_codes is not None:
            return self.all_codes
        if function in (3, 4) and count > self.registers_max:
            return ExcCodes.ILLEGAL_VALUE
        return self.code if self.holes & set(range(address, address + count)) else None


@contextlib.asynccontextmanager
async def serving(device: Device) -> AsyncIterator[None]:
    numbers = SimData(0, values=list(range(1000)), datatype=DataType.REGISTERS)
    bits = SimData(0, values=[number % 3 == 0 for number in range(1008)], datatype=DataType.BITS)
    context = SimDevice(1, ([bits], [bits], [numbers], [numbers]), action=device.action)
    server = ModbusTcpServer(context, address=("127.0.0.1", device.port))
    await server.serve_forever(background=True)
    assert server.transport is not None
    device.port = server.transport.sockets[0].getsockname()[1]
    try:
        yield
    finally:
        await server.shutdown()


@pytest.fixture
async def device() -> AsyncIterator[Device]:
    made = Device()
    async with serving(made):
        yield made


@pytest.fixture
async def driver_of(machine_of) -> AsyncIterator[Callable[..., ModbusDriver]]:
    made: list[ModbusDriver] = []

    def of(signals: list[Signal], port: int, **connection: Any) -> ModbusDriver:
        driver = drivers.make(machine_of(signals, port, **connection))
        assert isinstance(driver, ModbusDriver)
        made.append(driver)
        return driver

    yield of
    for driver in made:
        await driver.close()


def at(*registers: int, **fields: Any) -> list[Signal]:
    return [Signal(name=f"r{register}", register=register, **fields) for register in registers]


async def test_all_four_tables_in_as_many_requests(device: Device, driver_of) -> None:
    signals = [
        *at(10, 11, 20),
        Signal(name="i5", register=5, table="input", type="uint32"),
        *(Signal(name=f"c{n}", register=n, table="coil") for n in (3, 4, 21)),
        *(Signal(name=f"d{n}", register=n, table="discrete") for n in (6, 7)),
    ]
    driver = driver_of(signals, device.port)
    reading = await driver.read()
    assert reading.errors == {}
    assert reading.values == {
        "r10": 10,
        "r11": 11,
        "r20": 20,
        "i5": 5 << 16 | 6,
        "c3": True,
        "c4": False,
        "c21": True,
        "d6": True,
        "d7": False,
    }
    # It tells the count of bits in the registers that hold them: 19 and 2.
    assert device.requests == [(3, 10, 11), (4, 5, 2), (1, 3, 2), (2, 6, 1)]
    assert driver.requests == 4


async def test_a_device_that_answers_less_at_once_is_learned_by_splitting(device: Device, driver_of) -> None:
    device.registers_max = 20
    driver = driver_of(at(*range(100, 200)), device.port)
    reading = await driver.read()
    assert reading.errors == {}
    assert reading.values == {f"r{n}": n for n in range(100, 200)}
    learned = driver.requests
    assert learned <= 10
    device.requests.clear()
    assert (await driver.read()).errors == {}
    assert len(device.requests) == learned
    assert max(count for _, _, count in device.requests) <= 20


async def test_holes_are_reported_and_everything_else_is_read(device: Device, driver_of) -> None:
    device.holes = {103, 150}
    signals = [*at(*range(100, 130)), *at(149, 151, type="uint16"), Signal(name="wide", register=149, type="float64")]
    driver = driver_of(signals, device.port)
    reading = await driver.read()
    assert reading.errors.keys() == {"r103", "wide"}
    assert all(text == "Modbus exception 2 (illegal data address)" for text in reading.errors.values())
    assert reading.values == {f"r{n}": n for n in [*range(100, 103), *range(104, 130), 149, 151]}
    device.requests.clear()
    again = await driver.read()
    assert (again.values, again.errors.keys()) == (reading.values, reading.errors.keys())
    assert all(not device.holes & set(range(a, a + count)) for _, a, count in device.requests)


async def test_a_hole_in_the_gap_between_signals_costs_a_request_and_no_signal(device: Device, driver_of) -> None:
    device.holes = {105}
    driver = driver_of(at(100, 110), device.port)
    reading = await driver.read()
    assert (reading.values, reading.errors) == ({"r100": 100, "r110": 110}, {})
    assert driver.requests == 2


async def test_what_was_refused_is_asked_for_again_after_a_while(
    device: Device, driver_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_REFUSED_S", 0.2)
    device.holes = {101}
    driver = driver_of(at(100, 101, 102), device.port)
    assert (await driver.read()).errors.keys() == {"r101"}
    device.holes = set()
    assert (await driver.read()).errors.keys() == {"r101"}
    await asyncio.sleep(0.25)
    assert await driver.read() == ({"r100": 100, "r101": 101, "r102": 102}, {})
    assert driver.requests == 1


async def test_busy_is_of_this_moment_and_splits_nothing(device: Device, driver_of) -> None:
    driver = driver_of([*at(100), Signal(name="c3", register=3, table="coil")], device.port)
    device.holes, device.code = {100}, ExcCodes.DEVICE_BUSY
    reading = await driver.read()
    assert reading.values == {"c3": True}
    assert reading.errors == {"r100": "Modbus exception 6 (server device busy)"}
    device.holes = set()
    assert (await driver.read()).values == {"r100": 100, "c3": True}


@pytest.mark.parametrize("code", list(ExcCodes), ids=lambda code: code.name)
async def test_a_device_that_refuses_everything_is_asked_again_at_the_next_poll(
    device: Device, driver_of, code: ExcCodes
) -> None:
    driver = driver_of(at(100, 101, 150), device.port)
    device.all_codes = code
    for _ in range(2):
        with pytest.raises(DriverError, match=f"Modbus exception {code.value} "):
            await driver.read()
    device.all_codes = None
    assert (await driver.read()).values == {"r100": 100, "r101": 101, "r150": 150}
    assert driver.requests == 2


async def test_a_value_that_means_nothing_spoils_no_other(device: Device, driver_of) -> None:
    signals = [*at(5), Signal(name="state", register=6, enumeration={"0": "idle"})]
    reading = await driver_of(signals, device.port).read()
    assert reading.values == {"r5": 5}
    assert reading.errors == {"state": "the controller sent 6, which the enumeration does not have"}


async def test_the_connection_is_opened_again_when_it_was_lost(machine_of, driver_of) -> None:
    device = Device()
    async with serving(device):
        driver = driver_of(at(7), device.port)
        assert (await driver.read()).values == {"r7": 7}
    for _ in range(2):
        with pytest.raises(UnreachableError, match=f"127.0.0.1:{device.port}"):
            await driver.read()
    async with serving(device):
        assert (await driver.read()).values == {"r7": 7}
        await driver.close()
        assert (await driver.read()).values == {"r7": 7}


@pytest.mark.parametrize("host", ["a" * 64 + ".local", "..", "no.such.host.invalid", "", "\0"], ids=ascii)
async def test_a_host_that_can_not_be_reached_is_that_machine_s_trouble_alone(driver_of, host: str) -> None:
    with pytest.raises(UnreachableError, match="can't connect to"):
        await driver_of(at(1), 502, host=host).read()


@contextlib.asynccontextmanager
async def answering(answer: Callable[[int, bytes], bytes | None]) -> AsyncIterator[int]:
    """A server that sends what `answer(transaction, request)` returns; None: it hangs up."""

    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                transaction, _, length = struct.unpack(">HHH", await reader.readexactly(6))
                said = answer(transaction, await reader.readexactly(length))
                if said is None:
                    break
                writer.write(said)
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            # The server waits for its connections, and the driver keeps the last one.
            for writer in writers:
                writer.close()


def message(transaction: int, body: bytes, protocol: int = 0, length: int | None = None) -> bytes:
    return struct.pack(">HHH", transaction & 0xFFFF, protocol, len(body) if length is None else length) + body


GOOD_BODY = bytes((1, 3, 4, 0, 7, 0, 8))
BAD_ANSWERS: dict[str, Callable[[int, bytes], bytes | None]] = {
    "hangs up": lambda t, _: None,
    "says nothing": lambda t, _: b"",
    "another transaction id": lambda t, _: message(t + 1, GOOD_BODY),
    "the transaction id before": lambda t, _: message(t - 1, GOOD_BODY),
    "another unit id": lambda t, _: message(t, bytes((9, 3, 4, 0, 7, 0, 8))),
    "another protocol": lambda t, _: message(t, GOOD_BODY, protocol=1),
    "fewer registers": lambda t, _: message(t, bytes((1, 3, 2, 0, 7))),
    "no registers": lambda t, _: message(t, bytes((1, 3, 0))),
    "a byte count beyond the message": lambda t, _: message(t, bytes((1, 3, 200, 0, 7))),
    "an odd byte count": lambda t, _: message(t, bytes((1, 3, 3, 0, 7, 0))),
    "another function": lambda t, _: message(t, bytes((1, 4, 4, 0, 7, 0, 8))),
    "coils": lambda t, _: message(t, bytes((1, 1, 1, 0xFF))),
    "an unknown function": lambda t, _: message(t, bytes((1, 0x55, 1, 2, 3))),
    "half a message": lambda t, _: message(t, GOOD_BODY)[:8],
    "a length of nothing": lambda t, _: message(t, GOOD_BODY, length=0),
    "a length of 65535": lambda t, _: message(t, GOOD_BODY, length=65535),
    "HTTP": lambda t, _: b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "zeros": lambda t, _: bytes(300),
    "an unknown exception": lambda t, _: message(t, bytes((1, 0x83, 99))),
    "an exception without its code": lambda t, _: message(t, bytes((1, 0x83))),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
async def test_a_wrong_answer_is_a_failed_poll_and_never_a_value(driver_of, name: str) -> None:
    wrong = True

    def answer(transaction: int, request: bytes) -> bytes | None:
        return BAD_ANSWERS[name](transaction, request) if wrong else message(transaction, GOOD_BODY)

    async with answering(answer) as port:
        driver = driver_of(at(0, 1), port, timeout_ms=100)
        for _ in range(2):
            with pytest.raises(DriverError):
                await driver.read()
        wrong = False
        assert (await driver.read()).values == {"r0": 7, "r1": 8}


async def test_a_connection_that_comes_and_goes_leaks_nothing(driver_of) -> None:
    left = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal left
        with contextlib.suppress(ConnectionError):
            while await reader.read(100):
                pass
        left += 1
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        driver = driver_of(at(0), server.sockets[0].getsockname()[1], timeout_ms=30)
        for _ in range(5):
            with pytest.raises(UnreachableError, match="no right answer within 30 ms"):
                await driver.read()
        async with asyncio.timeout(2):
            while left < 5:
                await asyncio.sleep(0.01)


def test_errors_are_one_family() -> None:
    assert issubclass(UnreachableError, DriverError)
    assert issubclass(ProtocolError, DriverError)
