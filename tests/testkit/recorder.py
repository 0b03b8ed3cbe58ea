"""A sink for pollers that remembers what came, and when."""

import time
from typing import Any

from cncmon_agent.clock import Clock
from cncmon_core.sample import Sample
from testkit.waiting import until as until


class Recorder:
    """Samples with the monotonic times at which they came."""

    def __init__(self) -> None:
        self.taken: list[tuple[float, Sample]] = []

    def add(self, sample: Sample) -> None:
        self.taken.append((time.monotonic(), sample))

    def of(self, name: str) -> list[Sample]:
        return [sample for _, sample in self.taken if sample.machine_id == name]

    def times(self, name: str) -> list[float]:
        return [at_s for at_s, sample in self.taken if sample.machine_id == name]

    def counters(self, name: str) -> list[Any]:
        """The machine's own number of each poll that it answered."""
        return [sample.extras["poll_counter"] for sample in self.of(name) if sample.extras]


def right_clock() -> Clock:
    """A clock that is believed."""
    return Clock(trust="always")
