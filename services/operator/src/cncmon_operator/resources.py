"""Our resources as the API server has them: what can be read of them, and what is wrong with the rest. Pure; no I/O."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from cncmon_core import machine_faults
from cncmon_core.edge_documents import Edge
from cncmon_core.machine import API_VERSION, EdgeNode, Machine, MachineProfile
from cncmon_core.machine_rules import problems_of_signals, problems_of_spec
from cncmon_core.resource_status import ERRORS_MAX, TEXT_CHARS_MAX, ResourceFault

Document = Machine | MachineProfile | EdgeNode

KINDS: Final[dict[str, type[Document]]] = {kind.__name__: kind for kind in (Machine, MachineProfile, EdgeNode)}

FINALIZER: Final = "cncmon.dev/edge-configuration"
"""On a Machine as long as its edge's document may have it."""


class Resource(NamedTuple):
    """A resource. document: None where it can't be read; faults say why, or what is wrong with it.

    edge: the edge that it is of, as far as that can be made out.
    """

    kind: str
    name: str
    uid: str
    generation: int
    deleting: bool
    finalizers: tuple[str, ...]
    edge: Edge | None
    document: Document | None
    faults: tuple[ResourceFault, ...]
    status: Mapping[str, Any]

    @property
    def says(self) -> tuple[Any, ...]:
        """What of it matters to others: not its status, which is ours to write."""
        return self.uid, self.generation, self.deleting, self.finalizers


def read(raw: Mapping[str, Any]) -> Resource:
    """Return what an object of the API server is. Nothing raises but for an object without kind or name."""
    metadata, kind = raw["metadata"], str(raw["kind"])
    document, faults = _decode(raw, KINDS[kind])
    return Resource(
        kind=kind,
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        generation=metadata.get("generation", 0),
        deleting="deletionTimestamp" in metadata,
        finalizers=tuple(metadata.get("finalizers", ())),
        edge=_edge(raw.get("spec")) if kind != "MachineProfile" else None,
        document=document,
        faults=tuple(faults[:ERRORS_MAX]),
        status=raw.get("status") or {},
    )


def fault(path: str, problem: str) -> ResourceFault:
    """Return a fault, as long as one may be."""
    return ResourceFault(path=path[:TEXT_CHARS_MAX], problem=problem[:TEXT_CHARS_MAX])


def _decode(raw: Mapping[str, Any], kind: type[Document]) -> tuple[Document | None, list[ResourceFault]]:
    metadata = raw["metadata"]
    plain = {
        "apiVersion": API_VERSION,
        "kind": kind.__name__,
        "metadata": {"name": metadata["name"], "labels": metadata.get("labels") or {}},
        "spec": raw.get("spec"),
    }
    try:
        document = msgspec.convert(plain, kind)
    except msgspec.ValidationError as error:
        return None, [fault(*machine_faults.of_validation(error, kind))]
    problems: list[tuple[str, str]] = []
    if isinstance(document, Machine):
        problems = problems_of_spec(document.spec)
    elif isinstance(document, MachineProfile):
        problems = problems_of_signals(document.spec.signals)
    return document, [fault(*problem) for problem in problems]


def _edge(spec: Any) -> Edge | None:
    if not isinstance(spec, Mapping):
        return None
    site, edge = spec.get("site", "default"), spec.get("edge", "edge")
    return (site, edge) if isinstance(site, str) and isinstance(edge, str) else None
