"""What the types of a Machine document can't state: the rules between fields of one, and between signals."""

import math
import re
from typing import Final

import msgspec
from msgspec import UNSET

from cncmon_core.machine import (
    MODBUS_REGISTERS_MAX,
    SAMPLE_SIGNALS,
    SIGNALS_MAX,
    MachineProfileSpec,
    MachineSpec,
    Signal,
)
from cncmon_core.sample import CORE_FIELDS, STATES

WHOLE_NUMBER: Final = r"-?[0-9]{1,20}"
"""What a key of an enumeration looks like."""

RESERVED_SIGNALS: Final = ("machine_id", "timestamp", "extras")
"""Names that a signal can't have."""

BIT_TYPES: Final = ("uint16", "bool")
"""Types of a signal that is one bit of a register."""

NO_WORD_TYPES: Final = ("float32", "float64", "string")
"""Types that an enumeration can't translate."""

NUMERIC_SIGNALS: Final = frozenset({*CORE_FIELDS, "part_count", "tool_number"} & SAMPLE_SIGNALS - {"machine_state"})
"""Signals that are numbers in a sample, so that words are no use there."""

_WHOLE_NUMBER = re.compile(WHOLE_NUMBER)


def with_profile(spec: MachineSpec, profile: MachineProfileSpec) -> MachineSpec:
    """Return a machine's spec with its profile's signals, its own in place of those of the same name."""
    signals = {signal.name: signal for signal in (*profile.signals, *spec.signals)}
    return msgspec.structs.replace(spec, signals=list(signals.values()))


def problems_of_spec(spec: MachineSpec) -> list[tuple[str, str]]:
    """Return (path, problem) for each rule between fields that the types can't state."""
    problems = []
    if not spec.connection.driver():
        problems.append(("$.spec.connection", "needs exactly one member, for example modbus"))
    if not spec.signals and spec.profile_ref is None:
        problems.append(("$.spec", "needs signals, or profileRef that names a MachineProfile"))
    if len(spec.signals) > SIGNALS_MAX:
        problems.append(("$.spec.signals", f"{len(spec.signals)} with the profile's; at most {SIGNALS_MAX}"))
    if spec.ideal_cycle_time_s is not None and not math.isfinite(spec.ideal_cycle_time_s):
        problems.append(("$.spec.idealCycleTimeS", f"{spec.ideal_cycle_time_s} is no finite number"))
    modbus = spec.connection.modbus
    limit = MODBUS_REGISTERS_MAX if modbus is UNSET else modbus.registers_max
    for index, signal in enumerate(spec.signals):
        if signal.registers() > limit:
            said = f"takes {signal.registers()} registers, the device answers {limit} at once (registersMax)"
            problems.append((f"$.spec.signals[{index}]", said))
    return problems + problems_of_signals(spec.signals)


def problems_of_signals(signals: list[Signal]) -> list[tuple[str, str]]:
    """Return (path, problem) for each rule between the fields of a signal, and between signals."""
    problems: list[tuple[str, str]] = []
    seen: set[str] = set()
    for index, signal in enumerate(signals):
        path = f"$.spec.signals[{index}]"
        if signal.name in seen:
            problems.append((f"{path}.name", f"{signal.name!r} is given twice"))
        seen.add(signal.name)
        if signal.name in RESERVED_SIGNALS:
            problems.append((f"{path}.name", f"{signal.name!r} is set by the agent, not read from a register"))
        if signal.register + signal.registers() > 65536:
            problems.append((f"{path}.register", f"{signal.register} + {signal.registers()} registers go past 65535"))
        for name, value in (("scale", signal.scale), ("offset", signal.offset)):
            if not math.isfinite(value):
                problems.append((f"{path}.{name}", f"{value} is no finite number"))
        if signal.bit is not None and signal.type not in BIT_TYPES:
            problems.append((f"{path}.bit", "a bit is taken from one register: type must be uint16 or bool"))
        if signal.enumeration is not None:
            problems += _problems_of_enumeration(path, signal)
        elif signal.name == "machine_state":
            problems.append((path, f"machine_state needs an enumeration to {', '.join(sorted(STATES))}"))
    return problems


def _problems_of_enumeration(path: str, signal: Signal) -> list[tuple[str, str]]:
    problems = []
    for raw, word in (signal.enumeration or {}).items():
        if not _WHOLE_NUMBER.fullmatch(raw):
            problems.append((f"{path}.enumeration", f"{raw!r} must be a whole number"))
        if signal.name == "machine_state" and word not in STATES:
            problems.append(
                (f"{path}.enumeration", f"{word!r} is no machine state; known are {', '.join(sorted(STATES))}")
            )
    if signal.name in NUMERIC_SIGNALS:
        problems.append((f"{path}.enumeration", f"{signal.name} is a number; an enumeration gives words"))
    if signal.type in NO_WORD_TYPES:
        problems.append((f"{path}.enumeration", f"needs a whole-number type, not {signal.type}"))
    return problems
