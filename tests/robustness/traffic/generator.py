"""Recorded samples at an accelerated clock: as many batches and bytes as in a real outage, only the clock runs faster.

The values are those of the simulated machines, read out of the registers' own encoding, so that they compress as real
ones do; each is written to a poll log before it is given to the agent's own batcher.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cncmon_agent.signals import to_sample
from cncmon_core.sample import Sample
from cncmon_simulator.fleet import Fleet
from cncmon_simulator.poll_log import PollLog, Record
from cncmon_simulator.settings import Settings

HOLD_S_MAX = 0.01
"""The event loop is given back so often: the agent's other tasks run beside the generator."""


class _Tap(PollLog):
    """A poll log that also keeps the last record at hand."""

    last: Record | None = None

    def append(self, record: Record) -> None:
        super().append(record)
        self.last = record


class Generator:
    """Machines `name_prefix`001 and so on, whose time goes as fast as it is asked for. One seed, one story."""

    def __init__(self, edge: str, machines: int, seed: int, polls: Path, start: datetime) -> None:
        """`start`: the wall time of the first sample."""
        self._seconds = 0.0
        settings = Settings(machines=machines, seed=seed, name_prefix=f"{edge}-x", port_base=0, control_port=-1)
        self._fleet = Fleet(settings, lambda: self._seconds)
        self.log = _Tap(polls)
        for machine in self._fleet.machines.values():
            machine.log = self.log
        self._start = start
        self._block = (self._fleet.registers.first, self._fleet.registers.count)

    def poll(self, seconds: float) -> Iterator[Sample]:
        """Yield one sample of every machine, as of so many seconds after the start."""
        self._seconds = max(seconds, self._seconds)
        for number, machine in enumerate(self._fleet.machines.values()):
            machine.read(*self._block)
            record = self.log.last
            assert record is not None
            values = {name: value for name, value in record.values.items() if value is not None}
            moment = self._start + timedelta(seconds=seconds, microseconds=number)
            yield to_sample(machine.name, moment, values, {})

    def poll_now(self) -> Iterator[Sample]:
        """Yield one sample of every machine as of now, by the wall clock."""
        return self.poll((datetime.now(UTC) - self._start).total_seconds())

    async def run(
        self,
        add: Callable[[Sample], None],
        cut: Callable[[], None],
        *,
        seconds: float,
        interval_s: float,
        linger_s: float,
    ) -> int:
        """Give `add` the samples of so many seconds, and `cut` a batch every `linger_s`; return how many samples."""
        given = 0
        held_since_s = time.monotonic()
        cut_at = self._seconds + linger_s
        first, steps = self._seconds, round(seconds / interval_s)
        for step in range(1, steps + 1):
            for sample in self.poll(first + step * interval_s):
                add(sample)
                given += 1
            if self._seconds >= cut_at - 1e-9:
                cut()
                cut_at = self._seconds + linger_s
            if time.monotonic() - held_since_s > HOLD_S_MAX:
                await asyncio.sleep(0)
                held_since_s = time.monotonic()
        cut()
        self.log.flush()
        return given

    def close(self) -> None:
        """Write the poll log to its end."""
        self.log.close()
