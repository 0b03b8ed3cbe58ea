import time
from datetime import UTC, datetime, timedelta

import pytest

from cncmon_agent import clock
from cncmon_agent.clock import STEP_NS, Clock


class Times:
    """The two clocks of a machine, set by hand."""

    def __init__(self) -> None:
        self.wall_ns = 1_795_520_745_000_000_000
        self.monotonic = 5_000_000_000

    def time_ns(self) -> int:
        return self.wall_ns

    def monotonic_ns(self) -> int:
        return self.monotonic

    def pass_s(self, seconds: float) -> None:
        self.wall_ns += int(seconds * 1e9)
        self.monotonic += int(seconds * 1e9)


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Times:
    made = Times()
    monkeypatch.setattr(clock, "time", made)
    return made


def steps() -> float:
    return clock.STEPS._value.get()


def test_it_tells_the_wall_time_in_utc() -> None:
    before = datetime.now(UTC)
    told = Clock().now()
    assert told.utcoffset() == timedelta(0)
    assert abs(told - before) < timedelta(milliseconds=50)


def test_it_is_exact_to_the_microsecond(times: Times) -> None:
    times.wall_ns = 1_795_520_745_123_456_789
    assert Clock().now() == datetime.fromtimestamp(1_795_520_745, UTC) + timedelta(microseconds=123_456)


def test_a_step_is_invisible_until_it_is_followed(times: Times) -> None:
    ours = Clock()
    start, counted = ours.now(), steps()
    times.pass_s(10)
    times.wall_ns -= 3600 * 10**9
    assert ours.now() == start + timedelta(seconds=10)
    assert ours.follow()
    assert ours.now() == start + timedelta(seconds=10 - 3600)
    assert steps() == counted + 1
    assert not ours.follow()
    assert steps() == counted + 1


@pytest.mark.parametrize(("shift_ns", "is_step"), [(0, False), (STEP_NS - 1, False), (STEP_NS, True), (-STEP_NS, True)])
def test_what_is_a_step(times: Times, shift_ns: int, is_step: bool) -> None:
    ours, counted = Clock(), steps()
    times.wall_ns += shift_ns
    assert ours.follow() == is_step
    assert steps() == counted + is_step


def test_between_steps_it_never_goes_back(times: Times) -> None:
    ours = Clock()
    told = []
    for number in range(100):
        times.pass_s(0.001)
        times.wall_ns += (-1) ** number * 40_000_000
        ours.follow()
        told.append(ours.now())
    assert told == sorted(told)
    assert told[-1] - told[0] == timedelta(milliseconds=99)


def test_the_real_clocks_never_go_back() -> None:
    ours = Clock()
    told = [ours.now() for _ in range(1000)]
    assert told == sorted(told)
    assert not ours.follow()
    assert time.time_ns()
