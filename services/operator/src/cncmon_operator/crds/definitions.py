"""The three CustomResourceDefinitions (apiextensions.k8s.io/v1)."""

from typing import Any, Final, NamedTuple

import msgspec

from cncmon_core.machine import API_VERSION, EdgeNodeSpec, MachineProfileSpec, MachineSpec
from cncmon_core.names import NAME_CHARS_MAX, NAME_PATTERN
from cncmon_core.resource_status import EdgeNodeStatus, MachineProfileStatus, MachineStatus
from cncmon_operator.crds import schema

GROUP, VERSION = API_VERSION.split("/")


class Column(NamedTuple):
    """A column of `kubectl get`. wide: shown by `-o wide` alone."""

    name: str
    path: str
    type: str = "string"
    wide: bool = False


class Resource(NamedTuple):
    """One kind of resource."""

    kind: str
    plural: str
    short: str
    description: str
    spec: type[msgspec.Struct]
    status: type[msgspec.Struct]
    columns: tuple[Column, ...]


def _condition(name: str) -> str:
    return f'.status.conditions[?(@.type=="{name}")].status'


_AGE: Final = Column("Age", ".metadata.creationTimestamp", "date")

RESOURCES: Final = (
    Resource(
        "Machine",
        "machines",
        "mc",
        "A machine: which edge reads it, from where, how often, and what. Its name is machine_id in every sample.",
        MachineSpec,
        MachineStatus,
        (
            Column("State", ".status.state"),
            Column("Edge", ".spec.edge"),
            Column("Protocol", ".status.protocol"),
            Column("Ready", _condition("Ready")),
            Column("Last-Seen", ".status.lastValueTime", "date"),
            _AGE,
            Column("Site", ".spec.site", wide=True),
            Column("Profile", ".spec.profileRef.name", wide=True),
            Column("Poll-Ms", ".spec.pollIntervalMs", "integer", wide=True),
        ),
    ),
    Resource(
        "MachineProfile",
        "machineprofiles",
        "mcp",
        "A register map that many machines share: a Machine names it in profileRef.",
        MachineProfileSpec,
        MachineProfileStatus,
        (
            Column("Version", ".spec.version"),
            Column("Machines", ".status.machines", "integer"),
            Column("Rollout", ".status.rollout.phase"),
            _AGE,
        ),
    ),
    Resource(
        "EdgeNode",
        "edgenodes",
        "edge",
        "An edge agent: made by hand, with what it needs to join, or from its first heartbeat.",
        EdgeNodeSpec,
        EdgeNodeStatus,
        (
            Column("Site", ".spec.site"),
            Column("Edge", ".spec.edge"),
            Column("Ready", _condition("Ready")),
            Column("Machines", ".status.machines", "integer"),
            Column("Connected", ".status.machinesConnected", "integer"),
            Column("Buffer-Hours", ".status.bufferHoursLeft", "number"),
            Column("Last-Seen", ".status.lastSeen", "date"),
            _AGE,
            Column("Version", ".status.version", wide=True),
        ),
    ),
)


def definition(resource: Resource) -> dict[str, Any]:
    """Return the CustomResourceDefinition of a resource."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{resource.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": resource.kind,
                "listKind": f"{resource.kind}List",
                "plural": resource.plural,
                "singular": resource.kind.lower(),
                "shortNames": [resource.short],
                "categories": ["cncmon"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [_column(column) for column in resource.columns],
                    "schema": {"openAPIV3Schema": _object(resource)},
                }
            ],
        },
    }


def _object(resource: Resource) -> dict[str, Any]:
    # A name is a topic's token and a key in the database too: shorter than Kubernetes would have it, and without dots.
    name = {"type": "string", "maxLength": NAME_CHARS_MAX, "pattern": NAME_PATTERN}
    return {
        "type": "object",
        "description": resource.description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object", "properties": {"name": name}},
            "spec": schema.of(resource.spec),
            "status": schema.of(resource.status, defaults=False),
        },
    }


def _column(column: Column) -> dict[str, Any]:
    said: dict[str, Any] = {"name": column.name, "type": column.type, "jsonPath": column.path}
    return said | ({"priority": 1} if column.wide else {})
