"""One simulated machine: its registers at the moment of a poll, its counter, its faults."""

import math
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from cncmon_core.machine import Signal
from cncmon_simulator.behaviour import Behaviour
from cncmon_simulator.faults import Fault, FaultSet, Kind
from cncmon_simulator.poll_log import PollLog, Record
from cncmon_simulator.register_map import COUNTER, Read, RegisterMap, Value, patch, read_of

ILLEGAL_DATA_ADDRESS: Final = 2
COUNTER_MAX: Final = (1 << 32) - 1
UNKNOWN_WORD: Final = 99
_ABSURD: Final = (math.nan, math.inf, -math.inf, 3.0e38)

NO_FAULTS: Final[dict[Kind, Fault]] = {}


class Answer(NamedTuple):
    """What a read gets: the registers, or an exception code (0: none); and the faults that the connection acts out."""

    exception: int
    registers: bytes
    faults: dict[Kind, Fault]


class Machine:
    """Computes nothing until it is asked: a poll (a read that holds all of poll_counter) takes a new snapshot.

    Every other read is answered from the last snapshot, so a poll of several requests is of one moment. Faults with a
    probability are decided once a poll.
    """

    def __init__(
        self, name: str, behaviour: Behaviour, registers: RegisterMap, clock: Callable[[], float], seed: int
    ) -> None:
        self.name = name
        self.behaviour = behaviour
        self.counter = 0
        self.faults = FaultSet(f"{seed}/{name}/faults")
        self.log: PollLog | None = None
        self._registers = registers
        self._clock = clock
        self._first = registers.first
        self._last = registers.first + registers.count
        self._counter_at = next(s.register for s in registers.signals if s.name == COUNTER)
        self._hit: dict[Kind, Fault] | None = NO_FAULTS
        self._frozen: dict[str, Value] | None = None
        self._block, _ = registers.encode(self._values())

    @property
    def is_off(self) -> bool:
        """Whether the machine is switched off by a fault."""
        return bool(self.faults) and "off" in self.faults.active()

    def state(self) -> str:
        """Return the word of machine_state now, without a poll."""
        return str((self._frozen or self.behaviour.at(self._clock()))["machine_state"])

    def set_fault(self, fault: Fault) -> None:
        """Set a fault, from the next read on."""
        self.faults.set(fault)
        self._hit = None

    def clear_faults(self, kind: Kind | None = None) -> None:
        """Clear the faults of a kind, or all, from the next read on."""
        self.faults.clear(kind)
        self._hit = None

    def read(self, address: int, count: int) -> Answer:
        """Answer a read of `count` holding registers from `address`."""
        if address < self._first or address + count > self._last:
            return Answer(ILLEGAL_DATA_ADDRESS, b"", NO_FAULTS)
        if address <= self._counter_at and self._counter_at + 2 <= address + count:
            self._poll()
        elif self._hit is None:
            self._hit = self.faults.throw()
        hit = self._hit or NO_FAULTS
        if "exception" in hit and hit["exception"].touches(address, count):
            return Answer(hit["exception"].code, b"", hit)
        start = 2 * (address - self._first)
        return Answer(0, self._block[start : start + 2 * count], hit)

    def _values(self) -> dict[str, Value]:
        values = self.behaviour.at(self._clock())
        values[COUNTER] = self.counter
        return values

    def _poll(self) -> None:
        self.counter = (self.counter + 1) & COUNTER_MAX
        self._hit = hit = self.faults.throw() if self.faults else NO_FAULTS
        values = self._values()
        if "frozen" in hit:
            self._frozen = self._frozen or values
            values = {**self._frozen, COUNTER: self.counter}
        else:
            self._frozen = None
        self._block, reads = self._registers.encode(values)
        if "out_of_range" in hit:
            self._spoil(reads)
        if self.log is not None:
            self.log.append(Record(self.name, self.counter, time.time_ns(), reads, "+".join(hit) or None))

    def _spoil(self, reads: dict[str, Read]) -> None:
        for index, signal in enumerate(self._registers.signals):
            if signal.name == COUNTER or signal.type in ("string", "bool") or signal.bit is not None:
                continue
            raw = _absurd(signal, self.counter + index)
            self._block = patch(self._block, self._first, signal, raw)
            usable = signal.enumeration is None and math.isfinite(raw)
            if not usable:
                reads[signal.name] = None
            else:
                reads[signal.name] = read_of(signal, raw)


def _absurd(signal: Signal, turn: int) -> float:
    """Return a raw number that no machine has; which one, changes from poll to poll."""
    if signal.enumeration is not None:
        return UNKNOWN_WORD
    if signal.type.startswith("float"):
        return _ABSURD[turn % len(_ABSURD)]
    bits = 16 * signal.registers()
    if signal.type.startswith("u"):
        return (1 << bits) - 1
    return (1 << bits - 1) - 1 if turn % 2 else -(1 << bits - 1)
