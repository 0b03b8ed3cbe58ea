"""Which document an edge should have, given its Machines and their profiles. Pure; no I/O."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from cncmon_core import edge_config
from cncmon_core.edge_config import EdgeConfig
from cncmon_core.edge_documents import Edge, Stored
from cncmon_core.machine import Machine, MachineProfile
from cncmon_core.machine_rules import problems_of_spec, with_profile
from cncmon_core.resource_status import ResourceFault
from cncmon_operator.errors import ForeignError
from cncmon_operator.resources import Resource, fault


class Wanted(NamedTuple):
    """What an edge's Machines ask for. machines: with their signals resolved. faults: of those that can't be used.

    known: names of all Machines of this edge, those included that are being deleted.
    """

    machines: dict[str, Machine]
    faults: dict[str, list[ResourceFault]]
    known: frozenset[str]


def of(machines: Iterable[Resource], profiles: Mapping[str, Resource]) -> Wanted:
    """Return what an edge's machines ask for."""
    machines = list(machines)
    wanted = Wanted({}, {}, frozenset(resource.name for resource in machines))
    for resource in machines:
        if resource.deleting:
            continue
        machine, faults = _resolved(resource, profiles)
        if faults or machine is None:
            wanted.faults[resource.name] = faults
        else:
            wanted.machines[resource.name] = machine
    return wanted


def _resolved(resource: Resource, profiles: Mapping[str, Resource]) -> tuple[Machine | None, list[ResourceFault]]:
    machine = resource.document
    if resource.faults or not isinstance(machine, Machine):
        return None, list(resource.faults)
    if machine.spec.profile_ref is None:
        return machine, []
    name = machine.spec.profile_ref.name
    profile = profiles.get(name)
    if profile is None:
        return None, [fault("$.spec.profileRef.name", f"there is no MachineProfile {name!r}")]
    if profile.faults or not isinstance(profile.document, MachineProfile):
        said = profile.faults[0].problem if profile.faults else "it can't be read"
        return None, [fault("$.spec.profileRef.name", f"MachineProfile {name!r} can't be used: {said}")]
    spec = with_profile(machine.spec, profile.document.spec)
    problems = problems_of_spec(spec)
    return msgspec.structs.replace(machine, spec=spec), [fault(*problem) for problem in problems]


def document(edge: Edge, wanted: Wanted, stored: Stored, writer: str) -> EdgeConfig | None:
    """Return the document to be written over what is stored, or None where that says the same already.

    A machine that can't be used keeps the form that the edge has of it: a slip of the pen stops no machine.

    Raises:
        ForeignError: who is not `writer` wrote what is stored, and it has machines that no resource names.
    """
    there = stored.config.by_name if stored.config is not None else {}
    kept = {name: there[name] for name in wanted.faults if name in there}
    machines = wanted.machines | kept
    strange = sorted(there.keys() - wanted.known)
    if strange and stored.writer != writer:
        if not wanted.known:
            return None  # an edge that nobody here speaks of
        named = ", ".join(strange[:5]) + (f" and {len(strange) - 5} more" if len(strange) > 5 else "")
        raise ForeignError(
            f"the configuration of {'/'.join(edge)} was written by {stored.writer or 'somebody else'}, and has machines"
            f" without a Machine resource: {named}. Make these, or remove them there (cncmon delete machine)"
        )
    if not machines and stored.config is None and not stored.fault:
        return None
    new = edge_config.make(*edge, stored.revision + 1, machines.values())
    same = stored.config is not None and stored.config.sha256 == new.sha256
    # What somebody else wrote becomes ours by writing it, though it says the same.
    return None if same and stored.writer == writer else new
