"""The machines that this edge reads: a supervised poller for each, and who is begun, changed or ended by a new set.

What stays the same is not touched: no sample is lost, no phase is shifted. A poller that fails by a fault of ours is
begun again after a pause, one that makes no progress at once: neither takes another machine along.
"""

import asyncio
import math
import time
from typing import Final

from prometheus_client import Counter

from cncmon_agent.clock import Clock
from cncmon_agent.poller import MachineReport, Poller, Sink
from cncmon_agent.settings import AgentSettings
from cncmon_core import logs
from cncmon_core.machine import Machine

log = logs.get(__name__)

RESTARTS = Counter("cncmon_edge_poller_restarts", "Machine tasks begun again after a fault of our own.")
STUCK = Counter("cncmon_edge_stuck_pollers", "Machine tasks that made no progress, and were ended and begun again.")

GOLDEN: Final = (math.sqrt(5) - 1) / 2
"""Multiples of it, modulo 1, spread evenly however many there are: the machines' phases within an interval."""

PHASE_S_MAX: Final = 1.0
"""A machine that is read once an hour is first read within a second all the same."""

RESTART_S: Final = 5.0
WATCH_S: Final = 1.0

STUCK_S_MIN: Final = 10.0

CLOSE_S_MAX: Final = 2.0
"""How long a poller may take to let go of its connection. One that takes longer is left to itself."""

DEAD_S: Final = 60.0
"""Nothing at all has made progress for so long: only a restart of the process may help."""

INTERNAL: Final = "internal error, see the agent's log"


def stuck_after_s(machine: Machine) -> float:
    """Return how long after it was due a poll is stuck, in seconds: three intervals, and the time-outs of all requests.

    A request covers one signal at least, and one more may go into connecting. Each may take its whole time-out and
    still be answered, as behind a slow serial gateway.
    """
    spec = machine.spec
    requests_s = (len(spec.signals) + 1) * spec.connection.timeout_s
    return max(STUCK_S_MIN, 3 * spec.poll_interval_ms / 1000 + requests_s)


class _Keeper:
    """Keeps one machine's poller running until `end`."""

    def __init__(self, machine: Machine, phase: float, settings: AgentSettings, sink: Sink, clock: Clock) -> None:
        self.machine = machine
        self._phase = phase
        self._settings = settings
        self._sink = sink
        self._clock = clock
        self._poller: Poller | None = None
        self._task: asyncio.Task[None] | None = None
        self._cancelled_s: float | None = None
        self._let_go = asyncio.Event()
        self._renew = asyncio.Event()
        self._ending = False
        self._error: str | None = None
        self.ended = asyncio.Event()
        self.abandoned: list[asyncio.Task[None]] = []
        self.report = MachineReport(machine.metadata.name, "connecting", clock.now())

    def update(self, machine: Machine) -> None:
        """Go on with another document; only what it changes is begun anew."""
        if machine == self.machine:
            return
        self.machine = machine
        if self._poller is None or not self._poller.update(machine):
            self._begin_again()

    def end(self) -> None:
        """Stop polling and let go of the connection; `ended` is set then."""
        self._ending = True
        self._begin_again()

    def _begin_again(self) -> None:
        self._renew.set()
        if self._task is not None and self._cancelled_s is None:
            self._cancelled_s = time.monotonic()
            self._task.cancel()

    def look(self, now_s: float) -> float:
        """Begin a stuck poller again; return when the machine last made progress, monotonic.

        Waiting for what is due later is progress, and so is failing by an error of ours: a restart would not help.
        """
        if self._cancelled_s is not None and now_s - self._cancelled_s > CLOSE_S_MAX:
            self._let_go.set()
        poller = self._poller
        if poller is None:
            return now_s
        if self._cancelled_s is not None:
            return poller.last_progress_s
        overdue_s = poller.overdue_s(now_s)
        if overdue_s > stuck_after_s(self.machine):
            self._error = f"no progress for {overdue_s:.0f} s: begun again"
            log.error("a machine's task is stuck and is begun again", machine=self.report.id, overdue_s=overdue_s)
            STUCK.inc()
            self._begin_again()
        waits = overdue_s <= 0 and poller.last_progress_s > -math.inf
        return now_s if waits else poller.last_progress_s

    async def run(self, after: "_Keeper | None") -> None:
        """Poll, and begin again where that is needed. `after`: who has the machine's connection still."""
        try:
            if after is not None:
                await after.ended.wait()
            while not self._ending:
                self._renew.clear()
                if not await self._live():
                    await self._pause()
        finally:
            self.ended.set()

    async def _live(self) -> bool:
        """Run one poller to its end; return whether the next may follow at once."""
        try:
            self._poller = self._make()
        except Exception:
            log.exception("a machine can't be polled", machine=self.machine.metadata.name)
            self.report.error = INTERNAL
            return False
        # Not the group's task: one that does not end when cancelled must not hold the others' stop up.
        self._task = asyncio.create_task(self._poller.run(), name=f"poll {self.report.id}")
        self._cancelled_s = None
        self._let_go.clear()
        self._task.add_done_callback(lambda _: self._let_go.set())
        try:
            await self._let_go.wait()
        finally:
            task, self._task, self._poller = self._task, None, None
            await self._part_with(task)
        return self._outcome(task)

    async def _part_with(self, task: asyncio.Task[None]) -> None:
        """Wait for a poller's end, unless it has had its time for that."""
        task.cancel()
        _, left = await asyncio.wait([task], timeout=CLOSE_S_MAX if self._cancelled_s is None else 0)
        if left:
            log.error("a machine's task does not end and is left behind", machine=self.report.id)
            self.abandoned.append(task)

    def _make(self) -> Poller:
        phase_s = self._phase * min(self.machine.spec.poll_interval_ms / 1000, PHASE_S_MAX)
        poller = Poller(self.machine, self._settings, self._sink, self._clock, phase_s)
        poller.report.last_sample = self.report.last_sample
        poller.report.error, self._error = self._error, None
        self.report = poller.report
        return poller

    def _outcome(self, task: asyncio.Task[None]) -> bool:
        if not task.done() or task.cancelled():
            return True
        if (error := task.exception()) is not None:
            log.error("a machine's task failed and is begun again", machine=self.report.id, exc_info=error)
            RESTARTS.inc()
            self.report.state, self.report.since, self.report.error = "connecting", self._clock.now(), INTERNAL
        return self._renew.is_set()

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._renew.wait(), RESTART_S)
        except TimeoutError:
            return


class MachineSet:
    """All machines. `apply` may be called at any time, before `run` as well; not for use from other threads."""

    def __init__(self, settings: AgentSettings, sink: Sink, clock: Clock) -> None:
        self._settings = settings
        self._sink = sink
        self._clock = clock
        self._keepers: dict[str, _Keeper] = {}
        self._leaving: dict[str, _Keeper] = {}
        self._group: asyncio.TaskGroup | None = None
        self._made = 0
        self._abandoned: list[asyncio.Task[None]] = []
        self._progress_s = time.monotonic()

    def apply(self, machines: dict[str, Machine]) -> None:
        """Read these machines from now on: begin those that are new, change those that differ, end the others."""
        for name in self._keepers.keys() - machines.keys():
            keeper = self._keepers.pop(name)
            keeper.end()
            if self._group is not None:
                self._leaving[name] = keeper
            log.info("machine removed", machine=name)
        for name, machine in machines.items():
            if name in self._keepers:
                self._keepers[name].update(machine)
                continue
            phase = self._made * GOLDEN % 1.0
            self._made += 1
            self._keepers[name] = _Keeper(machine, phase, self._settings, self._sink, self._clock)
            if self._group is not None:
                self._start(name, self._group)
            log.info("machine added", machine=name)

    def _start(self, name: str, group: asyncio.TaskGroup) -> None:
        group.create_task(self._keepers[name].run(self._leaving.get(name)), name=f"keep {name}")

    async def run(self) -> None:
        """Poll until cancelled."""
        self._progress_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            self._group = group
            for name in self._keepers:
                self._start(name, group)
            try:
                await self._watch()
            finally:
                self._group = None

    async def _watch(self) -> None:
        looked_s = time.monotonic()
        while True:
            await asyncio.sleep(WATCH_S)
            now_s = time.monotonic()
            late_s = now_s - looked_s - WATCH_S
            looked_s = now_s
            if late_s > WATCH_S:
                # The whole process stood still, or all of it is late: nobody's fault, and they are about to go on.
                self._progress_s += late_s
                continue
            self._look(now_s)

    def _look(self, now_s: float) -> None:
        seen = [keeper.look(now_s) for keeper in (*self._keepers.values(), *self._leaving.values())]
        self._progress_s = max(self._progress_s, *seen) if seen else now_s
        for name in [name for name, keeper in self._leaving.items() if keeper.ended.is_set()]:
            self._abandoned += self._leaving.pop(name).abandoned
        for keeper in self._keepers.values():
            self._abandoned += keeper.abandoned
            keeper.abandoned.clear()
        self._abandoned = [task for task in self._abandoned if not task.done()]

    def reports(self) -> list[MachineReport]:
        """Return what there is to say of each machine."""
        return [keeper.report for keeper in list(self._keepers.values())]

    def healthy(self) -> str | None:
        """Liveness: why only a restart of the process helps, or None. Machines that can't be reached are no reason."""
        still_s = time.monotonic() - self._progress_s
        if self._keepers and still_s > DEAD_S + max(map(stuck_after_s, self._machines())):
            return f"no machine's task made progress for {still_s:.0f} s"
        left = len(self._abandoned)
        return f"{left} machine tasks do not end" if left else None

    def _machines(self) -> list[Machine]:
        return [keeper.machine for keeper in list(self._keepers.values())]
