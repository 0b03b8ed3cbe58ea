"""The clocks of a machine, set by hand or running: `cncmon_agent.time_source.TimeSource`s for tests."""

import time

S = 1_000_000_000
NOW_NS = 1_795_520_745 * S


class Times:
    """By default the wall clock is right and nothing vouches for it."""

    def __init__(self, wall_ns: int = NOW_NS, boottime: int = 5 * S, boot: str = "boot-1") -> None:
        self.wall = wall_ns
        self.boottime = boottime
        self.boot = boot
        self.synced = False
        self.rtc = False

    def boottime_ns(self) -> int:
        return self.boottime

    def wall_ns(self) -> int:
        return self.wall

    def synchronised(self) -> bool:
        return self.synced

    def boot_id(self) -> str:
        return self.boot

    def has_rtc(self) -> bool:
        return self.rtc

    def pass_s(self, seconds: float) -> None:
        self.wall += int(seconds * S)
        self.boottime += int(seconds * S)


class Board:
    """A board without a clock battery: its clocks run, and each boot begins in 1970 with nothing vouching for it."""

    def __init__(self) -> None:
        self._boots = 0
        self.boot()

    def boot(self) -> None:
        """Lose the power and get it back."""
        self._boots += 1
        self._began_ns = time.monotonic_ns()
        self._anchor_ns = 0
        self._synced = False

    def learn_time(self) -> None:
        """Time service answers for the first time: the wall clock is stepped."""
        self._anchor_ns = time.time_ns() - self.boottime_ns()
        self._synced = True

    def step_s(self, seconds: float) -> None:
        """Set the wall clock by so much."""
        self._anchor_ns += int(seconds * S)

    def boottime_ns(self) -> int:
        return time.monotonic_ns() - self._began_ns

    def wall_ns(self) -> int:
        return self.boottime_ns() + self._anchor_ns

    def synchronised(self) -> bool:
        return self._synced

    def boot_id(self) -> str:
        return f"board-{self._boots}"

    def has_rtc(self) -> bool:
        return False
