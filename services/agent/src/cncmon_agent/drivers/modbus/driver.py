"""Reads one machine over Modbus TCP: a connection of its own, one request at a time."""

import time
from collections.abc import Sequence
from struct import Struct
from typing import Any, Final, NamedTuple

from msgspec import UnsetType

from cncmon_agent.drivers import Reading, Told
from cncmon_agent.drivers.modbus.client import AnsweredError, Client, Question, connect
from cncmon_agent.drivers.modbus.gather import Gather
from cncmon_agent.drivers.modbus.plan import BIT_TABLES, Block, plan, split
from cncmon_agent.drivers.modbus.values import Decode, decoder
from cncmon_agent.errors import DriverError, ProtocolError, UnreachableError
from cncmon_core import logs
from cncmon_core.machine import Machine

log = logs.get(__name__)

RETRY_REFUSED_S: Final = 60.0
"""How often a signal that the device refuses is asked for again: a program change may have brought its register."""

_REFUSED: Final = (1, 2, 3, 4)
"""Codes that speak of these registers; 10 and 11 speak of the whole device, 5 and 6 of this moment."""


class _Request(NamedTuple):
    block: Block
    question: Question


class ModbusDriver:
    """Reads by plan. A request that the device refuses is split until the signals it has no registers for stand alone;
    those are reported, and the others are read.
    """

    def __init__(self, machine: Machine) -> None:
        connection = machine.spec.connection.modbus
        if isinstance(connection, UnsetType):
            raise TypeError(f"machine {machine.metadata.name} has no Modbus connection")
        self._connection = connection
        blocks = plan(machine.spec.signals, connection)
        self._decoders: dict[str, Decode] = {signal.name: decoder(signal) for signal in machine.spec.signals}
        self._refused: dict[str, str] = {}
        self._registers = {signal.name: signal.register for block in blocks for signal in block.signals}
        self._requests = [self._request(block) for block in blocks]
        self._planned = self._requests
        self._gather = Gather(blocks)
        self._gathered = blocks
        self._retry_refused_s = 0.0
        self._client: Client | None = None
        self._answers = _Answers(self)

    @property
    def requests(self) -> int:
        """Requests that one poll takes now."""
        return len(self._planned)

    def ask(self, told: Told) -> bool:
        """Read every signal once and tell the outcome; False where that takes more than asking what is planned."""
        client = self._client
        if client is None or not client.connected or not self._planned:
            return False
        if self._refused and time.monotonic() >= self._retry_refused_s:
            return False
        self._answers.ask(client, self._planned, told)
        return True

    async def read(self) -> Reading:
        """Read every signal once.

        Raises:
            UnreachableError, ProtocolError: nothing could be read.
        """
        if self._refused and time.monotonic() >= self._retry_refused_s:
            self._refused, self._planned = {}, self._requests
        client = self._client
        if client is None or not client.connected:
            client = await self._connect()
        errors: dict[str, str] = {}
        planned: list[_Request] = []
        answered: list[Block] = []
        answers: list[bytes] = []
        todo = self._planned[::-1]
        failure: DriverError | None = None
        while todo:
            request = todo.pop()
            block = request.block
            try:
                answer = await client.ask(request.question)
            except UnreachableError as error:
                raise self._unreachable(error) from error
            except AnsweredError as said:
                if said.code not in _REFUSED:
                    failure = said
                    planned.append(request)
                    errors |= {signal.name: str(said) for signal in block.signals}
                elif len(block.signals) > 1:
                    todo += [self._request(half) for half in reversed(split(block))]
                else:
                    self._refuse(block.signals[0].name, str(said))
                continue
            planned.append(request)
            answered.append(block)
            answers.append(answer)
        self._planned = planned
        return self._reading(answered, answers, errors, failure)

    def _reading(
        self, answered: list[Block], answers: list[bytes], errors: dict[str, str], failure: DriverError | None = None
    ) -> Reading:
        """Return what the answers say; ProtocolError, or `failure`, where that is nothing."""
        values = self._values(answered, answers, errors)
        if self._refused:
            errors |= self._refused
        if not values and errors:
            # Refused as a whole: the device's state rather than its register map. The poller spaces the tries.
            self._refused, self._planned = {}, self._requests
            name, said = next(iter(errors.items()))
            raise failure or ProtocolError(f"no signal can be read; {name} (register {self._registers[name]}): {said}")
        return Reading(values, errors)

    async def close(self) -> None:
        """Let go of the connection."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    async def _connect(self) -> Client:
        await self.close()
        target = self._connection
        self._client = await connect(target.host, target.port, target.timeout_ms / 1000)
        return self._client

    def _request(self, block: Block) -> _Request:
        return _Request(block, Question.of(block, self._connection.unit_id))

    def _unreachable(self, error: UnreachableError) -> UnreachableError:
        target = self._connection
        return UnreachableError(
            f"{target.host}:{target.port} unit {target.unit_id} gave no right answer within {target.timeout_ms} ms: "
            f"{error}"
        )

    def _values(self, blocks: list[Block], answers: list[bytes], errors: dict[str, str]) -> dict[str, Any]:
        """Return the values of all signals in these blocks; say in `errors` of each that has none why."""
        if blocks != self._gathered:
            self._gather, self._gathered = Gather(blocks), blocks
        values = self._gather.values(answers)
        if values is not None:
            return values
        values = {}
        for block, answer in zip(blocks, answers, strict=True):
            registers = _registers(block, answer)
            for signal in block.signals:
                try:
                    values[signal.name] = self._decoders[signal.name](registers, signal.register - block.start)
                except (ValueError, OverflowError) as error:
                    errors[signal.name] = str(error)
        return values

    def _refuse(self, name: str, error: str) -> None:
        if name not in self._refused:
            log.warning("signal refused by the device", signal=name, host=self._connection.host, error=error)
        self._refused[name] = error
        self._retry_refused_s = time.monotonic() + RETRY_REFUSED_S


class _Answers:
    """The answers of one poll by `ask`, as they come: what its client takes for a future."""

    def __init__(self, driver: ModbusDriver) -> None:
        self._driver = driver
        self._requests: list[_Request] = []
        self._blocks: list[Block] = []
        self._answers: list[bytes] = []
        self._client: Client | None = None
        self._told: Told | None = None

    def ask(self, client: Client, requests: list[_Request], told: Told) -> None:
        if requests is not self._requests:
            self._requests, self._blocks = requests, [request.block for request in requests]
        self._client, self._answers, self._told = client, [], told
        client.send(requests[0].question, self)

    def done(self) -> bool:
        return self._told is None

    def set_result(self, result: bytes) -> None:
        answers, client = self._answers, self._client
        answers.append(result)
        if len(answers) < len(self._requests) and client is not None:
            client.send(self._requests[len(answers)].question, self)
            return
        try:
            outcome: Reading | DriverError = self._driver._reading(self._blocks, answers, {})
        except DriverError as error:
            outcome = error
        self._tell(outcome)

    def set_exception(self, exception: DriverError) -> None:
        self._tell(self._driver._unreachable(exception) if isinstance(exception, UnreachableError) else None)

    def _tell(self, outcome: Reading | DriverError | None) -> None:
        told, self._told = self._told, None
        if told is not None:
            told(outcome)


def _registers(block: Block, answer: bytes) -> Sequence[int]:
    """Return the numbers of a block's registers, or of its bits from the lowest of the first byte on."""
    if block.table in BIT_TABLES:
        return [answer[at // 8] >> at % 8 & 1 for at in range(block.count)]
    return Struct(f">{block.count}H").unpack(answer)
