"""What a set of Machine documents changes in the document of an edge, machine by machine. Pure; no I/O."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from cncmon_core import edge_config
from cncmon_core.edge_config import EdgeConfig
from cncmon_core.machine import Machine

Verb = Literal["created", "configured", "unchanged", "removed", "moved"]

FIELDS_SHOWN_MAX = 6


class MachineChange(msgspec.Struct, frozen=True):
    """What becomes of one machine; `fields` says what differs, as `spec.pollIntervalMs: 1000 -> 500`."""

    machine: str
    verb: Verb
    fields: list[str] = []

    @property
    def changes(self) -> bool:
        """Whether there is anything to be written."""
        return self.verb != "unchanged"


class EdgeChange(msgspec.Struct, frozen=True):
    """What becomes of one edge's document."""

    site: str
    edge: str
    machines: list[MachineChange]
    wanted: EdgeConfig

    @property
    def changes(self) -> bool:
        """Whether there is anything to be written."""
        return any(machine.changes for machine in self.machines)


def merge(
    site: str,
    edge: str,
    current: EdgeConfig | None,
    given: Mapping[str, Machine],
    *,
    gone: Mapping[str, Verb] = MappingProxyType({}),
    prune: bool = False,
    revision: int | None = None,
) -> EdgeChange:
    """Return what `given` makes of an edge's document: its machines are put in; what it does not name stays.

    gone: machines to be taken out, and how that is called. prune: take out all that are not given. revision: of the new
    document; one more than the current one's where it is not said.
    """
    had = current.by_name if current is not None else {}
    bare = edge_config.make(site, edge, 1, given.values()).by_name
    wanted = dict(bare) if prune else had | bare
    changes = []
    for name in sorted(had.keys() | bare.keys()):
        if name not in bare and name in gone:
            wanted.pop(name, None)
            changes.append(MachineChange(name, gone[name]))
        elif name not in wanted:
            changes.append(MachineChange(name, "removed"))
        elif name in bare and name not in had:
            changes.append(MachineChange(name, "created"))
        elif name in bare and bare[name] != had[name]:
            changes.append(MachineChange(name, "configured", difference(had[name], bare[name])))
        elif name in bare:
            changes.append(MachineChange(name, "unchanged"))
    if revision is None:
        revision = current.revision + 1 if current is not None else 1
    return EdgeChange(site, edge, changes, edge_config.make(site, edge, revision, wanted.values()))


def difference(old: Machine, new: Machine) -> list[str]:
    """Return the fields in which two documents of a machine differ, a signal as a whole by its name."""
    before, after = _flat(old), _flat(new)
    found = [
        f"{path}: {_shown(path, before)} -> {_shown(path, after)}"
        for path in [*before, *(path for path in after if path not in before)]
        if before.get(path) != after.get(path)
    ]
    more = len(found) - FIELDS_SHOWN_MAX
    return found if more <= 0 else [*found[:FIELDS_SHOWN_MAX], f"and {more} more"]


def _flat(machine: Machine) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    value = msgspec.to_builtins(machine)
    for signal in value["spec"].pop("signals", []):
        flat[f"signal {signal['name']}"] = {key: part for key, part in signal.items() if key != "name"}

    def add(path: str, part: Any) -> None:
        if isinstance(part, dict) and part:
            for key, inner in part.items():
                add(f"{path}.{key}" if path else key, inner)
        else:
            flat[path] = part

    add("", value)
    return flat


def _shown(path: str, flat: dict[str, Any]) -> str:
    if path in flat:
        return msgspec.json.encode(flat[path]).decode()
    # What has its default is not written into a document.
    return "default" if path.startswith("spec.") else "none"
