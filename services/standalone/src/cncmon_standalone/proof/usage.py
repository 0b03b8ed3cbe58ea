"""Memory and processor time of a part's processes, sampled from outside, across restarts."""

import asyncio
import time
from bisect import bisect_right
from collections.abc import Callable

import psutil

INTERVAL_S = 0.2


class Usage:
    """Samples until cancelled. A killed process is counted up to its last sample, at most `INTERVAL_S` before."""

    def __init__(self, pids: Callable[[], list[int]]) -> None:
        self._pids = pids
        self._cpu_s: dict[int, float] = {}
        self._processes: dict[int, psutil.Process] = {}
        self._timeline: list[tuple[int, float]] = []
        self.rss_bytes_max = 0

    async def run(self) -> None:
        """Sample for ever."""
        while True:
            self.sample()
            await asyncio.sleep(INTERVAL_S)

    def sample(self) -> None:
        """Look once."""
        rss = 0
        for pid in self._pids():
            try:
                process = self._processes.setdefault(pid, psutil.Process(pid))
                with process.oneshot():
                    rss = max(rss, process.memory_info().rss)
                    times = process.cpu_times()
            except psutil.NoSuchProcess:
                self._processes.pop(pid, None)
                continue
            self._cpu_s[pid] = times.user + times.system
        self.rss_bytes_max = max(self.rss_bytes_max, rss)
        self._timeline.append((time.time_ns(), sum(self._cpu_s.values())))

    def cpu_s(self, start_ns: int, end_ns: int) -> float:
        """Return user and system time between two moments, in seconds."""
        return self._at(end_ns) - self._at(start_ns)

    def _at(self, moment_ns: int) -> float:
        index = bisect_right(self._timeline, (moment_ns, float("inf")))
        if index == 0:
            return 0.0
        if index == len(self._timeline):
            return self._timeline[-1][1]
        (t0, c0), (t1, c1) = self._timeline[index - 1], self._timeline[index]
        return c0 + (c1 - c0) * (moment_ns - t0) / (t1 - t0)
