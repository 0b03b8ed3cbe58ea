"""A plant to do harm to: machines, agents, NATS behind a proxy, ingest, a database; and the judgement at its end."""

import asyncio
import contextlib
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from nats.aio.client import Client

from cncmon_agent.agent import Agent
from cncmon_agent.settings import AgentSettings
from cncmon_core import names
from robustness.faults.namespace import Namespace
from robustness.faults.proxy import Proxy, running_proxy
from robustness.scenarios.size import SIZE
from robustness.traffic.local import LocalAgent, local_agent
from robustness.traffic.machines import Machines, running_machines
from robustness.traffic.services import SITE, AgentProcess, IngestProcess, common_settings, ingest_settings
from robustness.validate import recovery
from robustness.validate.finding import Finding, joined, judge
from robustness.validate.promised import Promised, newest
from robustness.validate.report import Result
from testkit import ingest
from testkit.agent import running_agent
from testkit.ingest import until
from testkit.servers import Server

LOCAL = "127.0.0.1"

STARTS_MAX = 10
"""How often an agent is started to deliver what it kept at a stop; one is enough, but for what that start declares."""


class Plant:
    """One scenario's system. `running` it, do harm, and `judge` it when it has ended.

    nats_folder: the configuration and store of `nats`. Agents reach NATS through `proxy`, ingest directly.
    """

    def __init__(
        self, name: str, folder: Path, nats: Server, dsn: str, seed: int, record: Callable[[str, object], None]
    ) -> None:
        self.folder = folder
        self.nats = nats
        self.nats_folder = folder / "nats"
        self.dsn = dsn
        self.seed = seed
        self.dice = random.Random(f"{seed}/{name}")
        self.faults: Counter[str] = Counter()
        self.agents: list[AgentProcess] = []
        self._reading: list[tuple[Machines, AgentProcess]] = []
        self.accepted: list[Path] = []
        self.lost: dict[int, int] = {}
        self.polls: list[Path] = []
        self.machines: list[Machines] = []
        self.notes: dict[str, str] = {}
        self.recovery_s: list[float] = []
        self._name = name
        self._record = record
        self._proxy: Proxy | None = None
        self.workers: list[IngestProcess] = []
        self._ended: list[tuple[AgentSettings, Agent]] = []
        self.ingest_settings = ingest_settings(dsn)

    @property
    def url(self) -> str:
        """NATS without a proxy."""
        return f"nats://{LOCAL}:{self.nats.port}"

    @property
    def proxy(self) -> Proxy:
        """What stands between the agents and NATS."""
        assert self._proxy is not None
        return self._proxy

    @property
    def ingest(self) -> IngestProcess:
        """The worker, or the first of them."""
        return self.workers[0]

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A NATS client of the test's own."""
        client = Client()
        await client.connect(self.url, allow_reconnect=False)
        try:
            yield client
        finally:
            await client.close()

    async def bootstrap(self) -> None:
        """Make stream, consumer and buckets, as an operator does."""
        async with self.client() as client:
            await ingest.prepare(client, self.ingest_settings)

    @contextlib.asynccontextmanager
    async def running(
        self,
        *,
        edges: int = 2,
        agents: bool = True,
        machines: int | None = None,
        network: Namespace | None = None,
        start: bool = True,
        workers: int = 1,
        stream: Proxy | None = None,
        agent: dict[str, Any] | None = None,
        ingest: dict[str, Any] | None = None,
        ingest_environ: dict[str, str] | None = None,
    ) -> AsyncIterator[None]:
        """Run everything until the block ends; then stop the agents and wait until what they promised has arrived.

        edges: how many have machines. agents: whether each has an agent as a process; start: whether it is started.
        network: where those run. workers: of ingest; stream: what they reach NATS through. agent, ingest: settings of
        theirs; ingest_environ: and what else its process finds.
        """
        self.ingest_settings = ingest_settings(self.dsn, **(ingest or {}))
        await self.bootstrap()
        async with AsyncExitStack() as stack:
            target = ("127.0.0.1", self.nats.port)
            self._proxy = await stack.enter_async_context(
                running_proxy(target, network.nats_host if network else LOCAL)
            )
            url = stream.url if stream else self.url
            self.workers = [
                IngestProcess(self.folder, url, self.ingest_settings, name, ingest_environ)
                for name in ("ingest", *(f"ingest-{number}" for number in range(2, workers + 1)))
            ]
            for each in self.workers:
                stack.push_async_callback(each.stop)
                each.start()
            self.machines = await stack.enter_async_context(
                running_machines(
                    self.folder,
                    [f"e{number}" for number in range(1, edges + 1)],
                    each=SIZE.machines if machines is None else machines,
                    poll_interval_ms=SIZE.poll_interval_ms,
                    seed=self.seed,
                    host=network.machines_host if network else LOCAL,
                )
            )
            self.polls += [machines.polls for machines in self.machines]
            for theirs in self.machines if agents else ():
                self.add_agent(theirs, prefix=network.prefix if network else (), **(agent or {}))
            stack.push_async_callback(self._stop_agents)
            for agent_process in self.agents if start else ():
                agent_process.start()
            yield
            await self.ended()

    def add_agent(self, machines: Machines, *, folder: Path | None = None, **changes: Any) -> AgentProcess:
        """Add an agent that reads these machines; it is not started."""
        where = folder or self.folder / machines.edge
        made = AgentProcess(where, self.proxy.url, edge=machines.edge, machines=machines.documents, **changes)
        self.agents.append(made)
        self._reading.append((machines, made))
        self.accepted.append(made.accepted)
        return made

    @contextlib.asynccontextmanager
    async def local_agent(
        self,
        edge: str,
        *,
        seed: int,
        generated: int,
        outage_s: float = 0.0,
        machines: Machines | None = None,
        **changes: Any,
    ) -> AsyncIterator[LocalAgent]:
        """Run an agent in this process until the block ends; what it accepts is judged as well."""
        folder = self.folder / edge
        async with local_agent(
            folder,
            self.proxy.url,
            edge=edge,
            seed=seed,
            generated=generated,
            outage_s=outage_s,
            machines=machines,
            **changes,
        ) as made:
            self.accepted.append(made.accepted)
            self.polls.append(folder / "polls-generated.jsonl")
            yield made
        settings = common_settings(folder, edge, None, **changes)
        if settings.spool != "off":
            self._ended.append((settings, made.agent))

    async def held(self) -> Counter[str]:
        """Return how often the stream holds each batch, by `Nats-Msg-Id`."""
        async with self.client() as client:
            js = client.jetstream()
            last = (await js.stream_info(names.STREAM)).state.last_seq
            subscription = await js.subscribe(names.SUBJECT_ALL, ordered_consumer=True)
            found: Counter[str] = Counter()
            while True:
                message = await subscription.next_msg(5)
                found[(message.headers or {}).get("Nats-Msg-Id", "")] += 1
                if message.metadata.sequence.stream >= last:
                    return found

    def note_fault(self, what: str) -> None:
        """Count a fault that is injected."""
        self.faults[what] += 1

    async def flow(self, seconds: float | None = None) -> None:
        """Let traffic flow, once every agent has accepted something."""
        await until(self._every_agent_accepts)
        await asyncio.sleep(SIZE.calm_s if seconds is None else seconds)

    async def _every_agent_accepts(self) -> bool:
        for each in self.agents:
            if not each.runs:
                raise AssertionError(f"{each.name} has ended: {each.tail()}")
        return all(newest(each.accepted) is not None for each in self.agents)

    def ends(self) -> dict[int, int]:
        """Return epoch → up to which seq everything is promised by now."""
        if self.killed():
            return self._all_ends()
        return dict(end for path in self.accepted if (end := newest(path)) is not None)

    def _all_ends(self) -> dict[int, int]:
        logs = Promised([path for path in self.accepted if path.exists()], self.killed(), self.lost)
        return {epoch: seq for epoch, seq in logs.ends().items() if seq}

    def killed(self) -> set[int]:
        """Return the epochs that a kill -9 ended."""
        return set[int]().union(*(each.killed for each in self.agents))

    async def lose_disk(self, agent: AgentProcess) -> None:
        """Remove a killed agent's data folder for good. What its last heartbeat told of must be accounted for."""
        async with self.client() as client:
            bucket = await client.jetstream().key_value(names.KV_STATUS)
            said = json.loads((await bucket.get(names.edge_key(SITE, agent.edge))).value or b"{}")
        for epoch in said["epochs"]:
            self.lost[epoch["epoch"]] = epoch["last_seq"]
        for epoch in agent.killed:
            self.lost.setdefault(epoch, 0)
        shutil.rmtree(agent.data)

    async def recovered(self) -> None:
        """The fault is undone: measure how long it takes until all that is promised by now is in the database."""
        began_s = time.monotonic()
        ends = await asyncio.to_thread(self.ends)
        self.recovery_s += await recovery.wait_for(self.dsn, ends, SIZE.recover_s_max, began_s=began_s)

    async def ended(self) -> None:
        """Stop the agents; wait until their promises are kept and the stream has nothing left."""
        await self._stop_agents()
        starts = 0
        while starts < STARTS_MAX and await self._deliver_kept():
            starts += 1
        ends = await asyncio.to_thread(self._all_ends if starts else self.ends)
        await recovery.wait_for(self.dsn, ends, SIZE.recover_s_max)
        alive = {epoch: seq for epoch, seq in ends.items() if epoch not in self.lost}
        await recovery.wait_for(self.dsn, alive, SIZE.recover_s_max, watermark=True)
        async with self.client() as client:
            await until(lambda: ingest.drained(client))

    async def _deliver_kept(self) -> bool:
        """Start agents that kept batches at their stop, without machines, until these have arrived; whether any did.

        A stop delivers for some seconds; what a slow machine has not delivered by then comes with the next start. Kept
        is also what the stream took and did not acknowledge in time, which is no reason for a start.
        """
        kept = [agent for agent in self.agents if agent.kept()]
        ended, self._ended = [each for each in self._ended if each[1].deliveries.unacknowledged()], []
        if not kept and not ended:
            return False
        ends = await asyncio.to_thread(self._all_ends)
        if await recovery.have_arrived(self.dsn, ends):
            return False
        async with AsyncExitStack() as stack:
            for settings, _ in ended:
                again = await stack.enter_async_context(running_agent(self.proxy.url, settings))
                self._ended.append((settings, again))
            for agent in kept:
                await agent.start_without_machines()
            await recovery.wait_for(self.dsn, ends, SIZE.recover_s_max)
            await self._stop_agents()
        return True

    async def _stop_agents(self) -> None:
        async with asyncio.TaskGroup() as group:
            for each in self.agents:
                group.create_task(each.stop())

    def all_polls(self) -> Path:
        """Return all poll logs as one."""
        return joined(self.polls, self.folder / "polls-of-all.jsonl")

    async def judge(self) -> Finding:
        """Return what is true of everything that was accepted; prints and records it first."""
        finding = await judge(self.dsn, self.accepted, self.polls, self.folder, killed=self.killed(), lost=self.lost)
        verdict = finding.verdict
        result = Result(
            scenario=self._name,
            seed=self.seed,
            faults=dict(self.faults),
            edges=len(self.accepted),
            batches=finding.batches,
            sent=finding.sent,
            lost=verdict.lost,
            duplicated=verdict.duplicated,
            altered=verdict.mismatched,
            gaps=verdict.gaps,
            dead=verdict.dead_lettered,
            recovery_s=self.recovery_s,
            notes=self.notes,
        )
        print(result.line())
        self._record("robustness", result.encode())
        return finding

    async def holds(self, *, gaps: bool = False, dead: Collection[str] = ()) -> Finding:
        """Judge, and demand that nothing is lost, doubled or altered, nothing is buried, and there are no gaps.

        gaps: they may be there, for the reasons that the caller checks. dead: reasons for which samples may be buried.
        Where no agent was killed, every poll that was answered was accepted, but for those in hand at each stop: one of
        each machine.
        """
        finding = await self.judge()
        assert finding.holds, f"seed {self.seed}: {finding.complaints}"
        assert finding.excuses.dead.keys() <= set(dead), finding.excuses.dead
        assert finding.sent > 0
        if not gaps:
            assert finding.excuses.gaps == []
        if not self.killed():
            in_hand = sum(len(machines.fleet.machines) * agent.starts for machines, agent in self._reading)
            in_hand = max(in_hand, sum(len(machines.fleet.machines) for machines in self.machines))
            unaccepted = finding.answered - finding.sent
            assert unaccepted <= in_hand, f"{unaccepted} answered polls that nobody accepted, {in_hand} at most in hand"
        return finding


MakePlant = Callable[[str], Plant]
"""Returns a plant that is not running yet, with this database."""
