"""Reads one machine over Modbus TCP: a connection of its own, one request at a time."""

import time
from collections.abc import Sequence
from typing import Any, Final

from msgspec import UnsetType
from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ModbusException
from pymodbus.pdu import ModbusPDU

from cncmon_agent.drivers import Reading
from cncmon_agent.drivers.modbus.plan import Block, plan, split
from cncmon_agent.drivers.modbus.values import Decode, decoder
from cncmon_agent.errors import DriverError, ProtocolError, UnreachableError
from cncmon_core import logs
from cncmon_core.machine import Machine

log = logs.get(__name__)

RETRY_REFUSED_S: Final = 60.0
"""How often a signal that the device refuses is asked for again: a program change may have brought its register."""

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
"""Modbus Application Protocol 1.1b3, section 7."""

_REFUSED: Final = (1, 2, 3, 4)
"""Codes that speak of these registers; 10 and 11 speak of the whole device, 5 and 6 of this moment."""

_METHODS: Final = {
    "holding": ("read_holding_registers", 3),
    "input": ("read_input_registers", 4),
    "coil": ("read_coils", 1),
    "discrete": ("read_discrete_inputs", 2),
}
"""The client's method for a table, and its function code."""


class _AnsweredError(DriverError):
    def __init__(self, code: int) -> None:
        super().__init__(f"Modbus exception {code} ({EXCEPTIONS.get(code, 'unknown')})")
        self.code = code


class ModbusDriver:
    """Reads by plan. A request that the device refuses is split until the signals it has no registers for stand alone;
    those are reported, and the others are read.
    """

    def __init__(self, machine: Machine) -> None:
        connection = machine.spec.connection.modbus
        if isinstance(connection, UnsetType):
            raise TypeError(f"machine {machine.metadata.name} has no Modbus connection")
        self._connection = connection
        self._blocks = plan(machine.spec.signals, connection)
        self._decoders: dict[str, Decode] = {signal.name: decoder(signal) for signal in machine.spec.signals}
        self._refused: dict[str, str] = {}
        self._planned = list(self._blocks)
        self._retry_refused_s = 0.0
        self._client: AsyncModbusTcpClient | None = None

    @property
    def requests(self) -> int:
        """Requests that one poll takes now."""
        return len(self._planned)

    async def read(self) -> Reading:
        """Read every signal once.

        Raises:
            UnreachableError, ProtocolError: nothing could be read.
        """
        if self._refused and time.monotonic() >= self._retry_refused_s:
            self._refused, self._planned = {}, list(self._blocks)
        client = await self._connected()
        values: dict[str, Any] = {}
        errors: dict[str, str] = {}
        planned: list[Block] = []
        todo = list(reversed(self._planned))
        failure: DriverError | None = None
        while todo:
            block = todo.pop()
            try:
                registers = await self._request(client, block)
            except _AnsweredError as answer:
                if answer.code not in _REFUSED:
                    failure = answer
                    planned.append(block)
                    errors |= {signal.name: str(answer) for signal in block.signals}
                elif len(block.signals) > 1:
                    todo += reversed(split(block))
                else:
                    self._refuse(block.signals[0].name, str(answer))
                continue
            planned.append(block)
            self._decode(block, registers, values, errors)
        self._planned = planned
        errors |= self._refused
        if not values and errors:
            # Refused as a whole: the device's state rather than its register map. The poller spaces the tries.
            self._refused, self._planned = {}, list(self._blocks)
            raise failure or ProtocolError(f"no signal can be read: {next(iter(errors.values()))}")
        return Reading(values, errors)

    async def close(self) -> None:
        """Let go of the connection."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    async def _connected(self) -> AsyncModbusTcpClient:
        if self._client is not None and self._client.connected:
            return self._client
        await self.close()
        target = self._connection
        timeout_s = target.timeout_ms / 1000
        client = AsyncModbusTcpClient(
            # Retries within the library reuse the transaction id, so a late first answer would pass for the second's.
            *(target.host,),
            port=target.port,
            timeout=timeout_s,
            retries=0,
            reconnect_delay=0,
        )
        try:
            connected = await client.connect()
        except (OSError, ModbusException, TimeoutError, ValueError) as error:
            # ValueError: a host name that can't be one, such as a label of 64 characters.
            raise UnreachableError(f"can't connect to {target.host}:{target.port}: {error}") from error
        if not connected:
            client.close()
            raise UnreachableError(f"can't connect to {target.host}:{target.port} within {timeout_s:g} s")
        self._client = client
        return client

    async def _request(self, client: AsyncModbusTcpClient, block: Block) -> Sequence[int]:
        method, function_code = _METHODS[block.table]
        try:
            answer: ModbusPDU = await getattr(client, method)(
                block.start, count=block.count, device_id=self._connection.unit_id
            )
        except (TimeoutError, ModbusException, OSError) as error:
            # A late answer must not be taken for the next request's: begin with a fresh connection.
            await self.close()
            target = self._connection
            raise UnreachableError(
                f"{target.host}:{target.port} unit {target.unit_id} gave no right answer within {target.timeout_ms} ms"
            ) from error
        if answer.isError():
            raise _AnsweredError(answer.exception_code)
        if answer.function_code != function_code:
            # The client compares the transaction id only.
            await self.close()
            raise ProtocolError(f"asked with function code {function_code}, answered with {answer.function_code}")
        found: Sequence[int] = answer.bits if block.table in ("coil", "discrete") else answer.registers
        if len(found) < block.count or not answer.transaction_id:
            await self.close()
            raise ProtocolError(f"asked for {block.count} of {block.table} from {block.start}, got {len(found)}")
        return found

    def _decode(self, block: Block, registers: Sequence[int], values: dict[str, Any], errors: dict[str, str]) -> None:
        for signal in block.signals:
            try:
                values[signal.name] = self._decoders[signal.name](registers, signal.register - block.start)
            except (ValueError, OverflowError) as error:
                errors[signal.name] = str(error)

    def _refuse(self, name: str, error: str) -> None:
        if name not in self._refused:
            log.warning("signal refused by the device", signal=name, host=self._connection.host, error=error)
        self._refused[name] = error
        self._retry_refused_s = time.monotonic() + RETRY_REFUSED_S
