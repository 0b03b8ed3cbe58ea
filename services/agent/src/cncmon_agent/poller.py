"""One task a machine: poll on time, count failures, report offline, come back. Never waits for another machine."""

import asyncio
import time
from datetime import datetime
from typing import Literal

import msgspec
from prometheus_client import Counter

from cncmon_agent import drivers
from cncmon_agent.batcher import Batcher
from cncmon_agent.clock import Clock
from cncmon_agent.errors import DriverError
from cncmon_agent.settings import AgentSettings
from cncmon_agent.signals import offline_sample, to_sample
from cncmon_core import logs
from cncmon_core.backoff import Backoff
from cncmon_core.machine import Machine

log = logs.get(__name__)

POLLS = Counter("cncmon_edge_polls", "Polls by result.", ["result"])
MISSED = Counter("cncmon_edge_polls_missed", "Polls left out because the one before took longer than the interval.")
SIGNAL_ERRORS = Counter("cncmon_edge_signal_errors", "Values that could not be read or used.")

Link = Literal["connecting", "connected", "offline"]


class MachineReport(msgspec.Struct):
    """What the heartbeat says of a machine. since: when `state` began; signals: those that can't be read, and why."""

    id: str
    state: Link
    since: datetime
    last_sample: datetime | None = None
    error: str | None = None
    signals: dict[str, str] = {}


class Poller:
    """Polls one machine for as long as `run` runs."""

    def __init__(
        self, machine: Machine, settings: AgentSettings, batcher: Batcher, clock: Clock, phase_s: float = 0.0
    ) -> None:
        self._id = machine.metadata.name
        self._interval_s = machine.spec.poll_interval_ms / 1000
        self._settings = settings
        self._batcher = batcher
        self._clock = clock
        self._phase_s = phase_s
        self._driver = drivers.make(machine)
        self._failures = 0
        self._offline_told_s = 0.0
        self._backoff = Backoff(max(self._interval_s, 0.2), settings.retry_delay_ms_max / 1000)
        self.report = MachineReport(self._id, "connecting", clock.now())

    async def run(self) -> None:
        """Poll until cancelled. Polls are due at fixed times; one that comes late does not move those after it."""
        due_s = time.monotonic() + self._phase_s
        try:
            while True:
                await asyncio.sleep(due_s - time.monotonic())
                wait_s = await self._poll()
                due_s += self._interval_s
                late_s = time.monotonic() - due_s
                if wait_s:
                    due_s = time.monotonic() + wait_s
                elif late_s >= self._interval_s:
                    missed = int(late_s // self._interval_s)
                    MISSED.inc(missed)
                    due_s += missed * self._interval_s
        finally:
            await self._driver.close()

    async def _poll(self) -> float:
        """Poll once; return how long to wait before the next poll where that is not simply the interval, in seconds."""
        try:
            values, errors = await self._driver.read()
        except DriverError as error:
            POLLS.labels("failed").inc()
            return self._on_failure(str(error))
        now = self._clock.now()
        sample = to_sample(self._id, now, values, errors)
        POLLS.labels("ok").inc()
        if errors:
            SIGNAL_ERRORS.inc(len(errors))
        self._on_success(now, errors)
        self._batcher.add(sample)
        return 0.0

    def _on_success(self, now: datetime, errors: dict[str, str]) -> None:
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
            self._batcher.add(offline_sample(self._id, now))
        # The breaker is open: fewer tries, but no further apart than the reports that it is still offline.
        return min(self._backoff.next_s(), self._settings.offline_report_ms / 1000)
