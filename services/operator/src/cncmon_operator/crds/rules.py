"""The rules between fields, in CEL: those of `cncmon_core.machine_rules`, and what may never change.

Kubernetes estimates what a rule may cost from the bounds of the schema, and refuses a definition that may cost too
much (Kubernetes documentation, "Resource use by validation functions"). So what looks into a signal's enumeration, of
whose keys no bound can be stated, is left to `admission`.
"""

from typing import Final, NamedTuple

from cncmon_core.machine import NUMBER_TYPES
from cncmon_core.machine_rules import BIT_TYPES, NO_WORD_TYPES, NUMERIC_SIGNALS, RESERVED_SIGNALS


class Rule(NamedTuple):
    """A CEL expression that must be true, and what is said where it is not. path: the field that is to blame."""

    expression: str
    message: str
    path: str = ""


def words(values: "frozenset[str] | tuple[str, ...]") -> str:
    """Return a list of strings in CEL."""
    return "[" + ", ".join(f"'{value}'" for value in sorted(values)) + "]"


def registers_of(signal: str) -> str:
    """Return a CEL expression for the registers that a signal takes, as `Signal.registers` counts them."""
    of_32 = words(tuple(name for name in NUMBER_TYPES if name.endswith("32")))
    of_64 = words(tuple(name for name in NUMBER_TYPES if name.endswith("64")))
    return (
        f"({signal}.type == 'string' ? {signal}.length : "
        f"{signal}.type in {of_32} ? 2 : {signal}.type in {of_64} ? 4 : 1)"
    )


def _never(field: str) -> Rule:
    return Rule("self == oldSelf", f"{field} can't be changed: delete the resource and make it again")


OF_STRUCT: Final = {
    "Signal": (
        Rule(
            f"!(self.name in {words(RESERVED_SIGNALS)})",
            "machine_id, timestamp and extras are set by the agent, not read from a register",
            ".name",
        ),
        Rule(
            f"self.register + {registers_of('self')} <= 65536",
            "register and the registers that the type takes go past 65535",
            ".register",
        ),
        Rule(
            f"!has(self.bit) || self.type in {words(BIT_TYPES)}",
            "a bit is taken from one register: type must be uint16 or bool",
            ".bit",
        ),
        Rule(
            "self.name != 'machine_state' || has(self.enumeration)",
            "machine_state needs an enumeration to alarm, hold, idle, offline, running",
        ),
        Rule(
            f"!has(self.enumeration) || !(self.type in {words(NO_WORD_TYPES)})",
            "an enumeration needs a whole-number type, not float32, float64 or string",
            ".enumeration",
        ),
        Rule(
            f"!has(self.enumeration) || !(self.name in {words(NUMERIC_SIGNALS)})",
            "this sample field is a number; an enumeration gives words",
            ".enumeration",
        ),
    ),
    "Connection": (Rule("[has(self.modbus)].filter(given, given).size() == 1", "needs exactly one member: modbus"),),
    "MachineSpec": (
        Rule(
            "has(self.profileRef) || (has(self.signals) && self.signals.size() > 0)",
            "needs signals, or profileRef that names a MachineProfile",
        ),
        Rule(
            "!has(self.signals) || !has(self.connection.modbus) || "
            f"self.signals.all(signal, {registers_of('signal')} <= self.connection.modbus.registersMax)",
            "a signal takes more registers than the device answers at once (registersMax)",
            ".signals",
        ),
    ),
}
"""By the struct whose object a rule looks at as `self`."""

OF_FIELD: Final = {
    ("MachineSpec", "site"): (_never("site"),),
    ("EdgeNodeSpec", "site"): (_never("site"),),
    ("EdgeNodeSpec", "edge"): (_never("edge"),),
}
"""By struct and field."""

LIST_KEYS: Final = {"signals": "name", "conditions": "type"}
"""Lists whose items have a key: no two of one key, and each may be applied by somebody else."""
