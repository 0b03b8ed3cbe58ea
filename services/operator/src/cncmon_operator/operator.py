"""The reconciler: level-triggered, an edge at a time.

Whatever happens only names an edge to be looked at. Looking at one always does the same: read its Machines from the
store, write its document where that differs, let go of what was deleted, bring the statuses up to date.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from nats.aio.client import Client
from prometheus_client import Counter, Gauge, Histogram

from cncmon_core import logs
from cncmon_core.backoff import Backoff
from cncmon_core.edge_config import EdgeConfig
from cncmon_core.edge_documents import Edge, EdgeDocuments, Stored
from cncmon_core.errors import EdgeConfigError
from cncmon_operator import resources, status, wanted
from cncmon_operator.errors import ForeignError
from cncmon_operator.heartbeats import Heartbeats
from cncmon_operator.kube import Kube
from cncmon_operator.profiles import Profiles
from cncmon_operator.queue import EdgeQueue
from cncmon_operator.resources import FINALIZER, Resource
from cncmon_operator.settings import OperatorSettings
from cncmon_operator.status import Heard, Said, Written
from cncmon_operator.store import Store, profile_of
from cncmon_operator.tracing import TRACER

log = logs.get(__name__)

DOCUMENTS: Final = Counter("cncmon_operator_documents_written", "Edge documents written.")
STATUSES: Final = Counter("cncmon_operator_statuses_written", "Statuses written, by kind.", ["kind"])
ERRORS: Final = Counter("cncmon_operator_errors", "Looks at an edge that failed and are tried again.")
SECONDS: Final = Histogram("cncmon_operator_reconcile_seconds", "Time to look at one edge.")
BEHIND: Final = Gauge("cncmon_operator_edges_behind", "Edges that do not run their newest document.")


class Operator:
    """Looks after one namespace. `connected` while there is NATS, `lead` while this replica may write."""

    def __init__(self, kube: Kube, settings: OperatorSettings) -> None:
        self.store = Store()
        self.queue = EdgeQueue()
        self.heartbeats = Heartbeats(self._heard)
        self._kube = kube
        self._settings = settings
        self._writer = f"operator/{kube.namespace}"
        self._documents: EdgeDocuments | None = None
        self._leads = False
        self._complete = self._learned = False
        self._written: dict[Edge, Written] = {}
        self._holds: dict[str, Edge] = {}
        self._writing = asyncio.Lock()
        self._profiles = Profiles(kube, self.store, self._written, self.heartbeats.by_edge)
        self._patched_s: dict[str, float] = {}
        self._told: dict[str, tuple[str, str]] = {}
        self._backoffs: dict[Edge, Backoff] = {}
        self.trouble: str | None = "the resources have not been listed yet"

    # --- what happens -------------------------------------------------------------------------------------------

    def seen(self, kind: str, gone: bool, raw: dict[str, Any]) -> None:
        """Take an event of the API server."""
        if gone:
            self.queue.add(self.store.remove(kind, raw["metadata"]["name"]))
        else:
            self.queue.add(self.store.put(resources.read(raw)))

    def _heard(self, edge: Edge) -> None:
        self.queue.add({edge})

    async def listed(self) -> None:
        """List everything: what no event told is found so. Raises lightkube's and httpx's errors."""
        if not self._complete:
            await self._profiles.load()
        for kind in resources.KINDS:
            self.queue.add(self.store.replace(kind, await self._kube.listed(kind)))
        known = self.store.uids
        self._patched_s = {uid: at_s for uid, at_s in self._patched_s.items() if uid in known}
        self._told = {uid: told for uid, told in self._told.items() if uid in known}
        self.trouble = None
        self._complete = True
        self.queue.add(self.store.all_edges() | self._written.keys())

    def lead(self, leads: bool) -> None:
        """Begin to write, or stop."""
        self._leads, self._learned = leads, False
        self._look_at_all()

    async def connected(self, client: Client) -> None:
        """Use a connection to NATS until cancelled."""
        self._documents, self._learned = EdgeDocuments(client, self._writer), False
        try:
            self._look_at_all()
            await self.heartbeats.follow(client)
        finally:
            self._documents = None

    def _look_at_all(self) -> None:
        self.queue.add(self.store.all_edges() | self._written.keys())

    async def _learn(self, documents: EdgeDocuments) -> None:
        """Read which edge has which machine: another replica, or somebody else, may have written since."""
        async with self._writing:
            if not self._learned:
                for edge in await documents.edges():
                    self._note(edge, Written((await documents.read(*edge)).config))
                self._learned = True
                self._look_at_all()

    def _note(self, edge: Edge, written: Written) -> None:
        """Remember what an edge's key holds, and so which edge has which machine."""
        for name in [name for name, holder in self._holds.items() if holder == edge]:
            del self._holds[name]
        self._written[edge] = written
        if written.config is not None:
            self._holds |= dict.fromkeys(written.config.by_name, edge)

    # --- what is done -------------------------------------------------------------------------------------------

    async def work(self) -> None:
        """Look at edges as they are named, until cancelled. Several may work at once; none looks where another does."""
        while True:
            edge = await self.queue.take()
            try:
                # Without a whole list, a machine that was not heard of yet would be taken from its edge.
                if self._leads and self._complete and self._documents is not None:
                    await self._learn(self._documents)
                    where = {"cncmon.site": edge[0], "cncmon.edge": edge[1]}
                    with SECONDS.time(), TRACER.start_as_current_span("look at edge", attributes=where):
                        await self._look_at(edge, self._documents)
                self._backoffs.pop(edge, None)
            except Exception as error:  # one edge must never keep the others from being looked at
                ERRORS.inc()
                wait_s = self._backoffs.setdefault(edge, Backoff(0.5, 30.0)).next_s()
                text = str(error) or type(error).__name__
                log.warning("an edge could not be looked at", edge="/".join(edge), error=text, again_in_s=wait_s)
                self.queue.add({edge}, after_s=wait_s)
            finally:
                self.queue.done(edge)

    async def _look_at(self, edge: Edge, documents: EdgeDocuments) -> None:
        machines = self.store.of_edge(edge)
        held = await self._held(machines)
        async with self._writing:
            await self._roll_out(machines)
            asked = wanted.of(machines, self._profiles.of_edge(edge))
            # A machine is never read twice: its old edge lets go of it before the new one has it.
            for other in {self._holds[name] for name in asked.machines if self._holds.get(name, edge) != edge}:
                of_other = self.store.of_edge(other)
                held_there = {one.name for one in of_other if FINALIZER in one.finalizers}
                await self._write(other, self._free(other, of_other, held_there), documents)
            await self._write(edge, self._free(edge, machines, held), documents)
        await self._let_go(machines)
        await self._tell_statuses(edge, machines, asked)

    async def _roll_out(self, machines: list[Resource]) -> None:
        """Go on with the changes of these machines' profiles."""
        for name in {profile_of(machine) for machine in machines}:
            if name is not None:
                now, stale_s = datetime.now(UTC), self._settings.stale_after_s
                edges, again_s = await self._profiles.step(name, now, stale_s)
                self.queue.add(edges)
                if again_s is not None:
                    mine = {one.edge for one in machines if one.edge is not None and profile_of(one) == name}
                    self.queue.add(mine, after_s=again_s)

    async def _held(self, machines: list[Resource]) -> set[str]:
        """Put our finalizer on machines, and return those that have it: only they may be given to an edge."""
        held = {machine.name for machine in machines if FINALIZER in machine.finalizers}
        free = [machine for machine in machines if machine.name not in held and not machine.deleting]
        took = await asyncio.gather(*(self._kube.hold(machine) for machine in free))
        return held | {machine.name for machine, taken in zip(free, took, strict=True) if taken}

    def _free(self, edge: Edge, machines: list[Resource], held: set[str]) -> wanted.Wanted:
        """Return what an edge's machines ask for, less those that can't be given to it yet."""
        asked = wanted.of(machines, self._profiles.of_edge(edge))
        free = {
            name: machine
            for name, machine in asked.machines.items()
            if name in held and self._holds.get(name, edge) == edge
        }
        return asked._replace(machines=free)

    async def _write(self, edge: Edge, asked: wanted.Wanted, documents: EdgeDocuments) -> None:
        found: list[Stored] = []

        def to(stored: Stored) -> EdgeConfig | None:
            found[:] = [stored]
            return wanted.document(edge, asked, stored, self._writer)

        trouble = None
        try:
            with TRACER.start_as_current_span("write document") as span:
                written = await documents.write(*edge, to)
                span.set_attribute("cncmon.revision", written.revision if written is not None else found[0].revision)
            if written is not None:
                DOCUMENTS.inc()
                log.info("configuration written", edge="/".join(edge), revision=written.revision,
                         machines=len(written.machines))  # fmt: skip
            config = written or found[0].config
        except ForeignError as error:
            config, trouble = found[0].config, Said("False", "ForeignDocument", str(error)[:1024])
        except EdgeConfigError as error:
            # Trying again would not help: something has to change first, and that names the edge again.
            config, trouble = found[0].config, Said("False", "Refused", str(error)[:1024])
        if trouble is not None and (edge not in self._written or self._written[edge].trouble != trouble):
            log.error("configuration not written", edge="/".join(edge), reason=trouble.message)
        self._note(edge, Written(config, trouble))

    async def _let_go(self, machines: list[Resource]) -> None:
        """Let deleted machines go that no edge has any more."""
        for machine in machines:
            if machine.deleting and machine.name not in self._holds:
                await self._kube.let_go(machine)

    # --- what is told -------------------------------------------------------------------------------------------

    async def _tell_statuses(self, edge: Edge, machines: list[Resource], asked: wanted.Wanted) -> None:
        now = datetime.now(UTC)
        heard = Heard.at(self.heartbeats.by_edge.get(edge), now, self._settings.stale_after_s)
        written = self._written.get(edge, Written(None))
        there = [machine for machine in machines if not machine.deleting]
        made = [status.of_machine(one, asked.faults.get(one.name, ()), written, heard, now) for one in there]
        await asyncio.gather(*(self._tell(edge, *pair) for pair in zip(there, made, strict=True)))
        node = self.store.node_of(edge)
        if node is None and heard.fresh:
            await self._kube.make_edge(f"{edge[0]}-{edge[1]}"[:63].strip("-"), *edge)
        elif node is not None and not node.deleting:
            await self._tell(edge, node, status.of_edge(node, written, heard, len(machines), now))
        for name in {profile_of(machine) for machine in machines}:
            if name is not None and (profile := self.store.profiles.get(name)) is not None:
                users = sum(profile_of(one) == name for one in self.store.machines.values())
                rollout = self._profiles.status_of(name)
                ended = rollout is not None and rollout.phase != "Progressing"
                await self._tell(edge, profile, status.of_profile(profile, users, rollout, now), at_once=ended)
        self._count_behind()
        if heard.fresh:
            # Nobody tells that nobody told anything.
            self.queue.add({edge}, after_s=self._settings.stale_after_s)

    async def _tell(self, edge: Edge, resource: Resource, made: msgspec.Struct, *, at_once: bool = False) -> None:
        """at_once: what another leader would have to know."""
        changes = status.patch(resource, made)
        if not changes:
            return
        news = status.tells_news(changes)
        interval_s = self._settings.status_interval_s if news else self._settings.value_interval_s
        now_s = time.monotonic()
        wait_s = self._patched_s.get(resource.uid, -interval_s) + interval_s - now_s
        if wait_s > 0 and not at_once:
            self.queue.add({edge}, after_s=wait_s)
            return
        self._patched_s[resource.uid] = now_s
        if await self._kube.set_status(resource, changes):
            STATUSES.labels(resource.kind).inc()
            await self._tell_event(resource, made)
            # What the API server will tell of this is known already.
            self.store.note_status(resource, msgspec.to_builtins(made))

    async def _tell_event(self, resource: Resource, made: Any) -> None:
        """Record an event where a resource became ready, or ceased to be, or for another reason than before."""
        kind = "Ready" if resource.kind != "MachineProfile" else "RolledOut" if made.rollout is not None else "Accepted"
        condition = next(one for one in made.conditions if one.type == kind)
        now = condition.status, condition.reason
        before = next(
            ((one["status"], one["reason"]) for one in resource.status.get("conditions", ()) if one["type"] == kind),
            None,
        )
        if now == self._told.get(resource.uid, before):
            return
        self._told[resource.uid] = now
        if condition.status == "True":
            await self._kube.tell(resource, "Normal", condition.type, condition.message or f"it is {kind.lower()}")
        elif before is not None or condition.status == "False":
            kind = "Normal" if condition.reason in status.PASSING else "Warning"
            await self._kube.tell(resource, kind, condition.reason, condition.message)

    def _count_behind(self) -> None:
        behind = 0
        for edge, written in self._written.items():
            beat = self.heartbeats.by_edge.get(edge)
            behind += written.config is not None and (beat is None or beat.config.sha256 != written.config.sha256)
        BEHIND.set(behind)


async def for_ever(every_s: float, call: Callable[[], Awaitable[None]], failed: Callable[[Exception], None]) -> None:
    """Call something now and then again, until cancelled; what it raises is told and no reason to stop."""
    while True:
        try:
            await call()
        except Exception as error:
            failed(error)
            await asyncio.sleep(min(every_s, 2.0))
        else:
            await asyncio.sleep(every_s)
