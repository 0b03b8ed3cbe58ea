"""A reader of its own for what the simulator serves: pymodbus's client and pymodbus's conversions."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest
from pymodbus.client import AsyncModbusTcpClient

from cncmon_core.machine import Signal
from cncmon_simulator import Settings, Simulator
from cncmon_simulator.register_map import Read

Reader = Callable[[Simulator, str], AbstractAsyncContextManager[AsyncModbusTcpClient]]


def settings(**values: Any) -> Settings:
    defaults: dict[str, Any] = {"machines": 1, "port_base": 0, "control_port": -1, "behaviour": "reference"}
    return Settings(**(defaults | values))


@asynccontextmanager
async def connected(simulator: Simulator, name: str) -> AsyncIterator[AsyncModbusTcpClient]:
    host, port, _ = simulator.fleet.address(name)
    client = AsyncModbusTcpClient(host, port=port, timeout=1, retries=0, reconnect_delay=0)
    assert await client.connect()
    try:
        yield client
    finally:
        client.close()


def decode(signals: list[Signal], first: int, registers: list[int]) -> dict[str, Read]:
    """Return the values as the documentation of a signal says, by pymodbus's conversions."""
    values: dict[str, Read] = {}
    for signal in signals:
        at = signal.register - first
        words = registers[at : at + signal.registers()]
        if signal.bit is not None:
            values[signal.name] = bool(words[0] >> signal.bit & 1)
            continue
        kind = AsyncModbusTcpClient.DATATYPE[signal.type.upper()]
        raw: Any = AsyncModbusTcpClient.convert_from_registers(words, kind, word_order=signal.word_order)
        if signal.type == "string":
            values[signal.name] = raw.rstrip("\0")
        elif signal.enumeration is not None:
            values[signal.name] = signal.enumeration.get(str(raw))
        else:
            values[signal.name] = scaled(raw, signal) if abs(raw) < float("inf") else None
    return values


def scaled(raw: float, signal: Signal) -> float:
    """Return the float nearest to raw * scale, by decimal arithmetic, plus offset."""
    if (signal.scale, signal.offset) == (1, 0):
        return raw
    return float(Decimal(raw) * Decimal(str(signal.scale))) + signal.offset


class Manual:
    """A clock that stands until it is told to move."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Manual:
    return Manual()


@pytest.fixture(name="settings")
def _settings() -> Callable[..., Settings]:
    return settings


@pytest.fixture(name="connected")
def _connected() -> Reader:
    return connected


@pytest.fixture(name="decode")
def _decode() -> Callable[[list[Signal], int, list[int]], dict[str, Read]]:
    return decode
