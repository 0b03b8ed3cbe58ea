"""Faults on command: what may be asked for, and which of them hit a poll."""

import random
import time
from typing import Annotated, Any, Final, Literal, get_args

import msgspec
from msgspec import Meta

from cncmon_simulator.errors import FaultError

Kind = Literal["late", "drop", "exception", "wrong_transaction_id", "frozen", "out_of_range", "off"]
KINDS: Final = get_args(Kind)

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
"""Modbus Application Protocol V1.1b3, section 7."""

_PARAMETERS: Final = {
    "delay_ms": ("late",),
    "code": ("exception",),
    "registers": ("exception",),
    "probability": ("late", "drop", "exception", "wrong_transaction_id", "out_of_range"),
}
"""Which faults a parameter is for; `for_s` is for all."""


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One fault of one machine, as asked for.

    * late: the answer leaves `delay_ms` later
    * drop: the connection is reset instead of an answer
    * exception: a Modbus exception with `code`, only for reads that touch `registers` ([first, last]) where given
    * wrong_transaction_id: the answer carries the request's transaction id + 1
    * frozen: all values but poll_counter stay as they are
    * out_of_range: floats are NaN, infinite or absurd, whole numbers their type's extremes, enumerations an unknown 99
    * off: nothing listens, open connections are reset; behind a shared port: exception 11
    """

    fault: Kind
    delay_ms: Annotated[int, Meta(ge=1, le=60_000)] = 1500
    code: Annotated[int, Meta(ge=1, le=255)] = 4
    registers: tuple[Annotated[int, Meta(ge=0, le=65535)], Annotated[int, Meta(ge=0, le=65535)]] | None = None
    for_s: Annotated[float, Meta(gt=0, le=86_400)] | None = None
    probability: Annotated[float, Meta(gt=0, le=1)] = 1.0

    def touches(self, address: int, count: int) -> bool:
        """Return whether an exception applies to a read of `count` registers from `address`."""
        return self.registers is None or (address <= self.registers[1] and self.registers[0] < address + count)


def parse(asked: Any) -> Fault:
    """Return the fault of a decoded JSON object.

    Raises:
        FaultError: says what is wrong and what is allowed.
    """
    try:
        fault = msgspec.convert(asked, Fault)
    except msgspec.ValidationError as error:
        raise FaultError(f"{error}; a fault is one of {', '.join(KINDS)}, with {_usage()}") from error
    for name, kinds in _PARAMETERS.items():
        if name in asked and fault.fault not in kinds:
            raise FaultError(f"{name} is not for {fault.fault}, only for {', '.join(kinds)}")
    if fault.registers is not None and fault.registers[0] > fault.registers[1]:
        raise FaultError(f"registers {list(fault.registers)}: give [first, last], first no greater than last")
    if fault.fault == "exception" and fault.code not in EXCEPTIONS:
        known = ", ".join(f"{code} ({text})" for code, text in EXCEPTIONS.items())
        raise FaultError(f"code {fault.code} is no Modbus exception; known are {known}")
    return fault


def _usage() -> str:
    return (
        "delay_ms 1 to 60000 (late), code and registers [first, last] (exception), for_s up to 86400, "
        "probability above 0 to 1"
    )


class FaultSet:
    """The faults of one machine, one of each kind, and their dice, which the seed decides."""

    def __init__(self, seed: str) -> None:
        self._faults: dict[Kind, tuple[Fault, float | None]] = {}
        self._random = random.Random(seed)  # noqa: S311 a story, no secret

    def __bool__(self) -> bool:
        return bool(self._faults)

    def set(self, fault: Fault) -> None:
        """Set a fault, in place of one of its kind."""
        self._faults[fault.fault] = (fault, None if fault.for_s is None else time.monotonic() + fault.for_s)

    def clear(self, kind: Kind | None = None) -> None:
        """Clear the faults of a kind, or all."""
        if kind is None:
            self._faults.clear()
        else:
            self._faults.pop(kind, None)

    def active(self) -> dict[Kind, Fault]:
        """Return the faults whose time has not run out. Changes nothing: health and metrics ask from another thread."""
        now = time.monotonic()
        return {kind: fault for kind, (fault, until) in list(self._faults.items()) if until is None or now < until}

    def throw(self) -> dict[Kind, Fault]:
        """Return the faults that hit one poll, and forget those whose time has run out."""
        active = self.active()
        for kind in self._faults.keys() - active.keys():
            del self._faults[kind]
        return {
            kind: fault
            for kind, fault in active.items()
            if fault.probability >= 1 or self._random.random() < fault.probability
        }
