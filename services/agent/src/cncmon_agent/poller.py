"""One task a machine: poll on time, count failures, report offline, come back. Never waits for another machine."""

import asyncio
import math
import time
from datetime import datetime
from typing import Final, Literal, Protocol

import msgspec
from prometheus_client import Counter

from cncmon_agent import drivers, ticks
from cncmon_agent.clock import Clock
from cncmon_agent.drivers import Reading
from cncmon_agent.errors import DriverError
from cncmon_agent.settings import AgentSettings
from cncmon_agent.signals import SampleMaker, offline_sample
from cncmon_core import logs
from cncmon_core.backoff import Backoff
from cncmon_core.machine import Machine
from cncmon_core.sample import Sample

log = logs.get(__name__)

POLLS = Counter("cncmon_edge_polls", "Polls by result.", ["result"])
MISSED = Counter("cncmon_edge_polls_missed", "Polls left out because the one before took longer than the interval.")
COUNT_EVERY_S: Final = 1.0
"""A counter costs more than all that a poll says of itself: good polls are added up for so long."""
_OK, _FAILED = POLLS.labels("ok"), POLLS.labels("failed")
SIGNAL_ERRORS = Counter("cncmon_edge_signal_errors", "Values that could not be read or used.")

Link = Literal["connecting", "connected", "offline"]


class MachineReport(msgspec.Struct):
    """What the heartbeat says of a machine. since: when `state` began; signals: those that can't be read, and why.

    machine_state: what the machine last said of itself.
    """

    id: str
    state: Link
    since: datetime
    last_sample: datetime | None = None
    error: str | None = None
    signals: dict[str, str] = {}
    machine_state: str | None = None


class Sink(Protocol):
    """Where samples go."""

    def add(self, sample: Sample) -> None:
        """Take a sample."""
        ...


class Poller:
    """Polls one machine for as long as `run` runs.

    last_progress_s: when a poll last ended, well or not, in monotonic seconds; -inf before the first has.
    """

    def __init__(
        self, machine: Machine, settings: AgentSettings, batcher: Sink, clock: Clock, phase_s: float = 0.0
    ) -> None:
        self._id = machine.metadata.name
        self._machine = machine
        self._interval_s = machine.spec.poll_interval_ms / 1000
        self._settings = settings
        self._batcher = batcher
        self._clock = clock
        self._phase_s = phase_s
        self._driver = drivers.make(machine)
        self._make_sample = SampleMaker(self._id).make
        self._failures = 0
        self._offline_told_s = 0.0
        self._backoff = self._new_backoff()
        self._due_s = time.monotonic() + phase_s
        self._polled_s: float | None = None
        self._timer: asyncio.Future[None] | None = None
        self._moved = False
        self._handed_back: asyncio.Future[None] | None = None
        self._asked = False
        self._counted_s = -math.inf
        self._uncounted = 0
        self.last_progress_s = -math.inf
        self.report = MachineReport(self._id, "connecting", clock.now())

    def _new_backoff(self) -> Backoff:
        return Backoff(max(self._interval_s, 0.2), self._settings.retry_delay_ms_max / 1000)

    def overdue_s(self, now_s: float) -> float:
        """Return for how long a poll has been due, or under way, at a monotonic time; under 0 when none is."""
        return now_s - max(self._due_s, self.last_progress_s)

    def update(self, machine: Machine) -> bool:
        """Go on with another document of the machine, connection and all; return False where that takes a new poller.

        A new interval counts from the last poll, and so begins at once where that is longer ago.
        """
        old, new = self._machine.spec, machine.spec
        if (old.connection, old.signals) != (new.connection, new.signals):
            return False
        self._machine = machine
        interval_s = new.poll_interval_ms / 1000
        if interval_s != self._interval_s:
            self._interval_s = interval_s
            self._backoff = self._new_backoff()
            # The first poll stays where it is, and while the machine is offline the back-off spaces the tries.
            if self._polled_s is not None and self.report.state != "offline":
                self._move(ticks.aligned_s(max(self._polled_s + interval_s, time.monotonic()), interval_s))
        return True

    def _move(self, due_s: float) -> None:
        """Have the next poll at another time; the one under way, if there is one, says itself when the next is due."""
        if self._timer is not None:
            self._due_s = due_s
            self._moved = True
            if not self._timer.done():
                self._timer.set_result(None)
        elif self._handed_back is not None and not self._handed_back.done() and not self._asked:
            self._ticks.drop(self._due_s, self._ask)
            self._due_s = due_s
            self._ticks.call(due_s, self._ask)

    async def run(self) -> None:
        """Poll until cancelled. Polls are due at fixed times; one that comes late does not move those after it."""
        self._due_s = ticks.aligned_s(time.monotonic() + self._phase_s, self._interval_s)
        self._ticks = ticks.of_running_loop()
        try:
            while True:
                await self._sleep()
                self._begin()
                self._end(await self._poll())
                if self.report.state == "connected" and not self._failures:
                    await self._poll_by_callbacks()
        finally:
            _OK.inc(self._uncounted)
            await self._driver.close()

    async def _sleep(self) -> None:
        """Wait until the next poll is due, which may be moved meanwhile."""
        while True:
            self._moved = False
            self._timer = self._ticks.at(self._due_s)
            try:
                await self._timer
            finally:
                self._timer = None
            if not self._moved:
                return

    def _begin(self) -> None:
        # In whole ms: what rounding adds to each sum would take the polls off their grid in the end.
        self._polled_s = round(self._due_s * 1000) / 1000

    def _end(self, wait_s: float) -> None:
        """Say when the next poll is due. wait_s: in how long, where that is not simply the interval."""
        now_s = self.last_progress_s = time.monotonic()
        due_s = (self._polled_s or now_s) + self._interval_s
        late_s = now_s - due_s
        if wait_s:
            due_s = ticks.aligned_s(now_s + wait_s, self._interval_s)
        elif late_s >= self._interval_s:
            missed = int(late_s // self._interval_s)
            MISSED.inc(missed)
            due_s += missed * self._interval_s
        self._due_s = due_s
        if now_s - self._counted_s >= COUNT_EVERY_S:
            _OK.inc(self._uncounted)
            self._counted_s, self._uncounted = now_s, 0

    async def _poll(self) -> float:
        """Poll once; return how long to wait before the next poll where that is not simply the interval, in seconds."""
        try:
            reading = await self._driver.read()
        except DriverError as error:
            return self._on_failure(str(error))
        self._take(reading)
        return 0.0

    async def _poll_by_callbacks(self) -> None:
        """Poll for as long as all is well, without waking this task."""
        self._handed_back = asyncio.get_running_loop().create_future()
        self._ticks.call(self._due_s, self._ask)
        try:
            await self._handed_back
        finally:
            self._handed_back = None
            self._ticks.drop(self._due_s, self._ask)

    def _ask(self) -> None:
        handed_back = self._handed_back
        if handed_back is None or handed_back.done():
            return
        self._begin()
        self._asked = True
        try:
            if not self._driver.ask(self._told):
                self._asked = False
                handed_back.set_result(None)
        except Exception as error:
            _fail(handed_back, error)

    def _told(self, outcome: Reading | DriverError | None) -> None:
        """Take what became of a poll: the next comes the same way after a good one, and otherwise the task goes on."""
        handed_back = self._handed_back
        if handed_back is None or handed_back.done():
            return
        self._asked = False
        try:
            if isinstance(outcome, Reading):
                self._take(outcome)
                self._end(0.0)
                self._ticks.call(self._due_s, self._ask)
                return
            if outcome is not None:
                self._end(self._on_failure(str(outcome)))
            handed_back.set_result(None)
        except Exception as error:
            _fail(handed_back, error)

    def _take(self, reading: Reading) -> None:
        values, errors = reading
        self._uncounted += 1
        # Stamped and handed over without an await in between: both look at the same state of the clock.
        stamp = self._clock.stamp()
        sample = self._make_sample(stamp, values, errors)
        if errors:
            SIGNAL_ERRORS.inc(len(errors))
        self.report.machine_state = sample.machine_state
        self._on_success(stamp if self._clock.settled else self._clock.now(), errors)
        self._batcher.add(sample)

    def _on_success(self, now: datetime, errors: dict[str, str]) -> None:
        if self._failures:
            self._failures = 0
            self._backoff.reset()
        report = self.report
        report.last_sample, report.error = now, None
        if report.state != "connected":
            log.info("machine connected", machine=self._id, was=report.state)
            report.state, report.since = "connected", now
        if errors != report.signals:
            if errors:
                log.warning("signals can't be read", machine=self._id, signals=errors)
            report.signals = errors

    def _on_failure(self, error: str) -> float:
        _FAILED.inc()
        self._failures += 1
        self.report.error = error
        now = self._clock.now()
        if self._failures < self._settings.offline_after_failures:
            return 0.0
        if self.report.state != "offline":
            log.warning("machine offline", machine=self._id, error=error)
            self.report.state, self.report.since = "offline", now
            self._offline_told_s = 0.0
        if time.monotonic() - self._offline_told_s >= self._settings.offline_report_ms / 1000:
            self._offline_told_s = time.monotonic()
            self._batcher.add(offline_sample(self._id, self._clock.stamp()))
        # The breaker is open: fewer tries, but no further apart than the reports that it is still offline.
        return min(self._backoff.next_s(), self._settings.offline_report_ms / 1000)


def _fail(future: "asyncio.Future[None]", error: Exception) -> None:
    """Have who waits for the future raise the error."""
    if not future.done():
        future.set_exception(error)
