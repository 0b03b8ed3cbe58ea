"""The Machine and MachineProfile documents: one schema for YAML files, edge configuration and Kubernetes resources.

Field names on the wire are camelCase as everywhere in Kubernetes; in Python they are snake_case.
"""

import math
import re
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from cncmon_core.names import NAME_CHARS_MAX, NAME_PATTERN
from cncmon_core.sample import CORE_FIELDS, FIELDS, STATES

API_VERSION: Final = "cncmon.dev/v1alpha1"

_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,20}")


def _check_ends(*names: str) -> None:
    """Refuse a line break at the end of a name: Python's `$` lets one follow, JSON Schema's doesn't."""
    if any(name.endswith("\n") for name in names):
        raise ValueError("a name can't end in a line break")


Name = Annotated[str, Meta(pattern=NAME_PATTERN, max_length=NAME_CHARS_MAX)]
SIGNALS_MAX: Final = 1000
MODBUS_REGISTERS_MAX: Final = 125
"""Registers in one answer (Modbus Application Protocol 1.1b3, section 6.3: 0x7D)."""

SAMPLE_SIGNALS: Final = frozenset(FIELDS) - {"machine_id", "timestamp", "extras", "anomaly_score"}
"""Signal names that fill a field of the sample; any other name goes to `extras`."""

NUMBER_TYPES: Final = ("int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")


class _Document(
    msgspec.Struct, forbid_unknown_fields=True, rename="camel", omit_defaults=True, frozen=True, kw_only=True
):
    """What all documents have in common: a misspelt field is an error, not silence."""


class Signal(_Document, frozen=True, kw_only=True):
    """One value of a machine and where its controller keeps it.

    Value = raw * scale + offset (raw / 10 for a scale of 0.1, which is exact), or `enumeration`'s word.
    Register addresses are the protocol's own, from 0 (not 40001).
    """

    name: Annotated[
        str,
        Meta(
            pattern=r"^[a-z][a-z0-9_]*$",
            max_length=64,
            description="A sample field such as temperature, or a name of your own: that goes to extras.",
        ),
    ]
    register: Annotated[int, Meta(ge=0, le=65535, description="First register (or coil), counted from 0.")]
    table: Annotated[
        Literal["holding", "input", "coil", "discrete"],
        Meta(
            description="Modbus table: holding or input registers, coils or discrete inputs (function code 3, 4, 1, 2)."
        ),
    ] = "holding"
    type: Annotated[
        Literal["int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64", "bool", "string"],
        Meta(description="How the registers are read; coil and discrete are always bool."),
    ] = "uint16"
    word_order: Annotated[
        Literal["big", "little"],
        Meta(description="Order of the registers of a 32- or 64-bit value: big = high word first."),
    ] = "big"
    length: Annotated[int, Meta(ge=1, le=64, description="Registers of a string, two characters each, NUL-padded.")] = 8
    scale: Annotated[float, Meta(description="Factor on the raw number.")] = 1.0
    offset: Annotated[float, Meta(description="Added after the factor.")] = 0.0
    bit: Annotated[int, Meta(ge=0, le=15, description="Use one bit of the register: 0 is the lowest.")] | None = None
    enumeration: (
        Annotated[
            dict[str, str],
            Meta(
                min_length=1,
                max_length=256,
                description="Raw whole number (as text) to word, for example '1': running.",
            ),
        ]
        | None
    ) = None

    def __post_init__(self) -> None:
        _check_ends(self.name)

    def registers(self) -> int:
        """Return how many registers (or coils) the signal covers."""
        if self.type == "string":
            return self.length
        return {"32": 2, "64": 4}.get(self.type[-2:], 1)


class ModbusConnection(_Document, frozen=True, kw_only=True):
    """A Modbus TCP controller."""

    host: Annotated[str, Meta(min_length=1, max_length=253, description="Host name or address.")]
    port: Annotated[int, Meta(ge=1, le=65535, description="TCP port.")] = 502
    unit_id: Annotated[int, Meta(ge=0, le=255, description="Unit id, the device behind a gateway.")] = 1
    timeout_ms: Annotated[int, Meta(ge=10, le=60_000, description="How long one request may take.")] = 1000
    registers_max: Annotated[
        int, Meta(ge=1, le=125, description="Most registers the device answers at once (the protocol allows 125).")
    ] = 125
    gap_max: Annotated[
        int,
        Meta(
            ge=0,
            le=125,
            description="Unused registers that may be read along to save a request; 0 reads only what is named.",
        ),
    ] = 16


class Connection(_Document, frozen=True, kw_only=True):
    """How the machine is reached: exactly one member, named after its driver."""

    modbus: ModbusConnection | UnsetType = UNSET

    def driver(self) -> str:
        """Return the name of the one driver that is set, or an empty string."""
        found = [name for name in self.__struct_fields__ if getattr(self, name) is not UNSET]
        return found[0] if len(found) == 1 else ""

    @property
    def timeout_s(self) -> float:
        """How long one request may take, in seconds; 0 where no driver is set."""
        return 0.0 if self.modbus is UNSET else self.modbus.timeout_ms / 1000


class ProfileRef(_Document, frozen=True, kw_only=True):
    """Names a MachineProfile."""

    name: Name

    def __post_init__(self) -> None:
        _check_ends(self.name)


class MachineSpec(_Document, frozen=True, kw_only=True):
    """What is to be read of a machine, from where, and how often."""

    site: Annotated[Name, Meta(description="The plant. Can't be changed later.")] = "default"
    edge: Annotated[Name, Meta(description="The edge agent that reads the machine.")] = "edge"
    connection: Connection
    poll_interval_ms: Annotated[int, Meta(ge=10, le=3_600_000, description="Time between two polls.")] = 1000
    signals: Annotated[list[Signal], Meta(max_length=SIGNALS_MAX)] = []
    profile_ref: ProfileRef | None = None
    ideal_cycle_time_s: (
        Annotated[float, Meta(gt=0, description="Ideal time of one part, for OEE (ISO 22400-2: PRI).")] | None
    ) = None
    display_name: Annotated[str, Meta(max_length=128)] = ""

    def __post_init__(self) -> None:
        _check_ends(self.site, self.edge)


class MachineProfileSpec(_Document, frozen=True, kw_only=True):
    """A register map that many machines share."""

    signals: Annotated[list[Signal], Meta(min_length=1, max_length=SIGNALS_MAX)]
    description: Annotated[str, Meta(max_length=1024)] = ""


class Metadata(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Kubernetes object metadata, as far as we look at it; the API server's own additions are ignored."""

    name: Name
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}

    def __post_init__(self) -> None:
        _check_ends(self.name)


class Machine(_Document, frozen=True, kw_only=True, tag_field="kind", tag="Machine"):
    """One machine."""

    api_version: Literal["cncmon.dev/v1alpha1"]
    metadata: Metadata
    spec: MachineSpec
    status: dict[str, Any] = {}


class MachineProfile(_Document, frozen=True, kw_only=True, tag_field="kind", tag="MachineProfile"):
    """A shared register map."""

    api_version: Literal["cncmon.dev/v1alpha1"]
    metadata: Metadata
    spec: MachineProfileSpec
    status: dict[str, Any] = {}


Document = Machine | MachineProfile


def problems_of_spec(spec: MachineSpec) -> list[tuple[str, str]]:
    """Return (path, problem) for each rule between fields that the types can't state."""
    problems = []
    if not spec.connection.driver():
        problems.append(("$.spec.connection", "needs exactly one member, for example modbus"))
    if not spec.signals and spec.profile_ref is None:
        problems.append(("$.spec", "needs signals, or profileRef that names a MachineProfile"))
    if len(spec.signals) > SIGNALS_MAX:
        problems.append(("$.spec.signals", f"{len(spec.signals)} with the profile's; at most {SIGNALS_MAX}"))
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
        if signal.name in ("machine_id", "timestamp", "extras"):
            problems.append((f"{path}.name", f"{signal.name!r} is set by the agent, not read from a register"))
        if signal.register + signal.registers() > 65536:
            problems.append((f"{path}.register", f"{signal.register} + {signal.registers()} registers go past 65535"))
        for name, value in (("scale", signal.scale), ("offset", signal.offset)):
            if not math.isfinite(value):
                problems.append((f"{path}.{name}", f"{value} is no finite number"))
        if signal.bit is not None and signal.type not in ("uint16", "bool"):
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
    numeric = {*CORE_FIELDS, "part_count", "tool_number"} & SAMPLE_SIGNALS - {"machine_state"}
    if signal.name in numeric:
        problems.append((f"{path}.enumeration", f"{signal.name} is a number; an enumeration gives words"))
    if signal.type in ("float32", "float64", "string"):
        problems.append((f"{path}.enumeration", f"needs a whole-number type, not {signal.type}"))
    return problems
