"""The Machine, MachineProfile and EdgeNode documents: one schema for YAML files, edge configuration and Kubernetes.

Field names on the wire are camelCase as everywhere in Kubernetes; in Python they are snake_case.
"""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from cncmon_core.names import NAME_CHARS_MAX, NAME_PATTERN
from cncmon_core.sample import FIELDS

API_VERSION: Final = "cncmon.dev/v1alpha1"


def _check_ends(*names: str) -> None:
    """Refuse a line break at the end of a name: Python's `$` lets one follow, JSON Schema's doesn't."""
    if any(name.endswith("\n") for name in names):
        raise ValueError("a name can't end in a line break")


Name = Annotated[str, Meta(pattern=NAME_PATTERN, max_length=NAME_CHARS_MAX)]
SIGNALS_MAX: Final = 1000
WORD_CHARS_MAX: Final = 128
"""Of a word that an enumeration gives."""
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
            dict[str, Annotated[str, Meta(max_length=WORD_CHARS_MAX)]],
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

    name: Annotated[Name, Meta(description="The MachineProfile's name, in the same namespace.")]

    def __post_init__(self) -> None:
        _check_ends(self.name)


class ShiftCalendarRef(_Document, frozen=True, kw_only=True):
    """Names a shift calendar."""

    name: Annotated[Name, Meta(description="The shift calendar's name.")]

    def __post_init__(self) -> None:
        _check_ends(self.name)


class MachineSpec(_Document, frozen=True, kw_only=True):
    """What is to be read of a machine, from where, and how often."""

    site: Annotated[Name, Meta(description="The plant. Can't be changed later.")] = "default"
    edge: Annotated[Name, Meta(description="The edge agent that reads the machine.")] = "edge"
    connection: Annotated[Connection, Meta(description="How the machine is reached: exactly one member.")]
    poll_interval_ms: Annotated[int, Meta(ge=10, le=3_600_000, description="Time between two polls.")] = 1000
    signals: Annotated[
        list[Signal],
        Meta(max_length=SIGNALS_MAX, description="What is read; takes the place of the profile's of the same name."),
    ] = []
    profile_ref: Annotated[ProfileRef, Meta(description="A MachineProfile whose signals are read too.")] | None = None
    ideal_cycle_time_s: (
        Annotated[float, Meta(gt=0, description="Ideal time of one part, for OEE (ISO 22400-2: PRI).")] | None
    ) = None
    shift_calendar_ref: (
        Annotated[ShiftCalendarRef, Meta(description="When the machine is planned to run, for OEE.")] | None
    ) = None
    display_name: Annotated[str, Meta(max_length=128, description="What people call the machine.")] = ""

    def __post_init__(self) -> None:
        _check_ends(self.site, self.edge)


class Rollout(_Document, frozen=True, kw_only=True):
    """How a change of a profile reaches the edges: some at a time, each watched before the next."""

    edges_at_once: Annotated[int, Meta(ge=1, le=1000, description="Edges that take the change at the same time.")] = 1
    soak_seconds: Annotated[
        int, Meta(ge=0, le=86_400, description="How long an edge must be well with it before the next ones follow.")
    ] = 30
    timeout_seconds: Annotated[
        int, Meta(ge=1, le=86_400, description="How long an edge may take to run it before it counts as failed.")
    ] = 300
    on_failure: Annotated[
        Literal["RollBack", "Stop"],
        Meta(description="RollBack: all edges get the last good signals again. Stop: they stay as they are."),
    ] = "RollBack"


class MachineProfileSpec(_Document, frozen=True, kw_only=True):
    """A register map that many machines share."""

    signals: Annotated[
        list[Signal], Meta(min_length=1, max_length=SIGNALS_MAX, description="What is read of each of the machines.")
    ]
    description: Annotated[str, Meta(max_length=1024, description="For which machines it is meant.")] = ""
    version: Annotated[str, Meta(max_length=63, description="What people call this state of it, such as 1.2.")] = ""
    rollout: (
        Annotated[Rollout, Meta(description="How a change reaches the edges; without it, all of them at once.")] | None
    ) = None


class SecretRef(_Document, frozen=True, kw_only=True):
    """Names a Kubernetes Secret."""

    name: Annotated[Name, Meta(description="The Secret's name, in the same namespace.")]

    def __post_init__(self) -> None:
        _check_ends(self.name)


class Join(_Document, frozen=True, kw_only=True):
    """What an edge needs to join."""

    nats_url: Annotated[str, Meta(max_length=253, description="Where the edge finds NATS, as nats://host:4222.")] = ""
    credentials_secret_ref: (
        Annotated[SecretRef, Meta(description="The Secret that holds its NATS credentials.")] | None
    ) = None


class EdgeNodeSpec(_Document, frozen=True, kw_only=True):
    """One edge agent."""

    site: Annotated[Name, Meta(description="The plant. Can't be changed later.")]
    edge: Annotated[Name, Meta(description="The edge's name within the plant. Can't be changed later.")]
    display_name: Annotated[str, Meta(max_length=128, description="What people call the edge.")] = ""
    join: Annotated[Join, Meta(description="What the edge needs to join; empty where it is set up by hand.")] | None = (
        None
    )

    def __post_init__(self) -> None:
        _check_ends(self.site, self.edge)


class Metadata(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Kubernetes object metadata, as far as we look at it; the API server's own additions are ignored."""

    name: Annotated[Name, Meta(description="Its name.")]
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


class EdgeNode(_Document, frozen=True, kw_only=True, tag_field="kind", tag="EdgeNode"):
    """One edge agent, as the fleet knows it."""

    api_version: Literal["cncmon.dev/v1alpha1"]
    metadata: Metadata
    spec: EdgeNodeSpec
    status: dict[str, Any] = {}


Document = Machine | MachineProfile | EdgeNode
