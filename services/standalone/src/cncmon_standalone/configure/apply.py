"""Puts machines into the documents of their edges: the part that `cncmon apply`, `up` and `demo` have in common."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from nats.aio.client import Client

from cncmon_core.edge_documents import Edge, EdgeDocuments, Stored
from cncmon_core.machine import Machine
from cncmon_standalone.configure import documents
from cncmon_standalone.configure.change import EdgeChange, MachineChange, Verb, merge
from cncmon_standalone.errors import UnusableError


async def apply(
    client: Client, machines: Mapping[str, Machine], *, prune: bool = False, dry_run: bool = False
) -> list[EdgeChange]:
    """Give machines to their edges, and return what that changed at each edge it concerns.

    A machine that another edge had is taken from that one first: it is never read twice. prune: the edges of these
    machines keep no others. dry_run: only say it.

    Raises:
        UnusableError: a document there, or that would come of it, can't be used.
        EdgeDocumentError: there is no bucket, or others always write first.
    """
    there = EdgeDocuments(client)
    wanted: dict[Edge, dict[str, Machine]] = defaultdict(dict)
    for name, machine in machines.items():
        wanted[machine.spec.site, machine.spec.edge][name] = machine
    changes = []
    # All let go before anyone takes, as where two edges swap machines.
    for key in await there.edges():
        moved = _elsewhere(machines, key)
        stored = await there.read(*key)
        if stored.config is not None and stored.config.by_name.keys() & moved.keys():
            changes.append(await _change(there, key, {}, gone=moved, dry_run=dry_run))
    for key, given in sorted(wanted.items()):
        moved = _elsewhere(machines, key)
        changes.append(await _change(there, key, given, gone=moved, prune=prune, dry_run=dry_run))
    return _joined(changes)


def _elsewhere(machines: Mapping[str, Machine], key: Edge) -> dict[str, Verb]:
    return {name: "moved" for name, machine in machines.items() if (machine.spec.site, machine.spec.edge) != key}


async def delete(client: Client, names: Iterable[str], *, dry_run: bool = False) -> list[EdgeChange]:
    """Take machines from the edges that have them, and return what that changed.

    Raises:
        UnusableError: no edge has one of them, or a document can't be used.
        EdgeDocumentError: there is no bucket, or others always write first.
    """
    there = EdgeDocuments(client)
    gone: dict[str, Verb] = dict.fromkeys(names, "removed")
    stored = [(key, (await there.read(*key)).config) for key in await there.edges()]
    having = [key for key, config in stored if config is not None and config.by_name.keys() & gone.keys()]
    known = {name for _, config in stored if config is not None for name in config.by_name}
    if missing := sorted(gone.keys() - known):
        raise UnusableError(f"no edge has {', '.join(missing)}")
    return [await _change(there, key, {}, gone=gone, dry_run=dry_run) for key in having]


async def _change(
    there: EdgeDocuments,
    key: Edge,
    given: Mapping[str, Machine],
    *,
    gone: Mapping[str, Verb],
    prune: bool = False,
    dry_run: bool,
) -> EdgeChange:
    def to(stored: Stored) -> EdgeChange:
        if stored.fault and not prune:
            raise UnusableError(
                f"the configuration of {'/'.join(key)} that is there can't be used, and so not changed: "
                f"{stored.fault}. Replace it as a whole: cncmon apply --prune -f ALL_ITS_MACHINES"
            )
        return merge(*key, stored.config, given, gone=gone, prune=prune, revision=stored.revision + 1)

    return await documents.change(there, *key, to, dry_run=dry_run)


def _joined(changes: Iterable[EdgeChange]) -> list[EdgeChange]:
    """Return one change an edge: what it gave away and what it got; the later document stands."""
    joined: dict[Edge, EdgeChange] = {}
    for change in changes:
        key = (change.site, change.edge)
        before = joined[key].machines if key in joined else []
        names = {machine.machine for machine in change.machines}
        kept = [machine for machine in before if machine.machine not in names]
        machines = sorted([*kept, *change.machines], key=lambda machine: machine.machine)
        joined[key] = EdgeChange(change.site, change.edge, machines, change.wanted)
    return list(joined.values())


def changed(changes: Iterable[EdgeChange]) -> list[MachineChange]:
    """Return what changed, of all edges."""
    return [machine for change in changes for machine in change.machines if machine.changes]
