"""What the API server has of our resources, as far as we have heard. Pure; no I/O."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from cncmon_core.edge_documents import Edge
from cncmon_core.machine import Machine
from cncmon_operator.resources import KINDS, Resource


class Store:
    """All resources, by kind and name. Every change returns the edges that are to be looked at for it."""

    def __init__(self) -> None:
        self._by_kind: dict[str, dict[str, Resource]] = {kind: {} for kind in KINDS}
        self._of_edge: dict[Edge, set[str]] = defaultdict(set)

    @property
    def machines(self) -> dict[str, Resource]:
        """Machines by name."""
        return self._by_kind["Machine"]

    @property
    def profiles(self) -> dict[str, Resource]:
        """MachineProfiles by name."""
        return self._by_kind["MachineProfile"]

    @property
    def edges(self) -> dict[str, Resource]:
        """EdgeNodes by name."""
        return self._by_kind["EdgeNode"]

    def of_edge(self, edge: Edge) -> list[Resource]:
        """Return an edge's machines in order of their names, those that are being deleted included."""
        return [self.machines[name] for name in sorted(self._of_edge.get(edge, ()))]

    def node_of(self, edge: Edge) -> Resource | None:
        """Return the EdgeNode of an edge, the first by name where there are several."""
        return next((self.edges[name] for name in sorted(self.edges) if self.edges[name].edge == edge), None)

    def all_edges(self) -> set[Edge]:
        """Return every edge that a resource names."""
        nodes = {node.edge for node in self.edges.values() if node.edge is not None}
        return nodes | {edge for edge, names in self._of_edge.items() if names}

    def put(self, resource: Resource) -> set[Edge]:
        """Take a resource as it is now."""
        before = self._by_kind[resource.kind].get(resource.name)
        self._by_kind[resource.kind][resource.name] = resource
        if resource.kind == "Machine":
            self._index(before, resource)
        if before is not None and before.says == resource.says:
            return set()
        return self._concerned(before) | self._concerned(resource)

    def note_status(self, resource: Resource, status: Mapping[str, Any]) -> None:
        """Remember a status that was just written; of the resource itself there may be something newer here."""
        now = self._by_kind[resource.kind].get(resource.name)
        if now is not None and now.uid == resource.uid:
            self._by_kind[resource.kind][resource.name] = now._replace(status=status)

    @property
    def uids(self) -> set[str]:
        """The uids of all resources."""
        return {one.uid for named in self._by_kind.values() for one in named.values()}

    def remove(self, kind: str, name: str) -> set[Edge]:
        """Forget a resource that is no more."""
        before = self._by_kind[kind].pop(name, None)
        if kind == "Machine":
            self._index(before, None)
        return self._concerned(before)

    def replace(self, kind: str, listed: Iterable[Resource]) -> set[Edge]:
        """Take what a list shows: what it lacks is gone, though nobody said so."""
        now = {resource.name: resource for resource in listed}
        concerned: set[Edge] = set()
        for name in self._by_kind[kind].keys() - now.keys():
            concerned |= self.remove(kind, name)
        for resource in now.values():
            concerned |= self.put(resource)
        return concerned

    def _index(self, before: Resource | None, now: Resource | None) -> None:
        if before is not None and before.edge is not None:
            self._of_edge[before.edge].discard(before.name)
        if now is not None and now.edge is not None:
            self._of_edge[now.edge].add(now.name)

    def _concerned(self, resource: Resource | None) -> set[Edge]:
        if resource is None:
            return set()
        if resource.kind != "MachineProfile":
            return set() if resource.edge is None else {resource.edge}
        return {one.edge for one in self.machines.values() if one.edge and profile_of(one) == resource.name}


def profile_of(resource: Resource) -> str | None:
    """Return the name of a machine's profile, None where it has none."""
    machine = resource.document
    if not isinstance(machine, Machine) or machine.spec.profile_ref is None:
        return None
    return machine.spec.profile_ref.name
