"""The clock: its steps, what makes it known, and what it says until then."""

import asyncio
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cncmon_agent import clock
from cncmon_agent.clock import STEP_NS, Clock, from_unix_ns, to_unix_ns
from cncmon_agent.durable_file import DurableFile
from cncmon_agent.time_floor import BUILD_NS, SAVE_EVERY_S, TimeFloor
from cncmon_agent.unstamped import MemoryFile
from testkit.times import NOW_NS, S, Times
from testkit.waiting import WAIT_S_MAX

UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.fixture
def times() -> Times:
    return Times()


def trusted(times: Times) -> Clock:
    return Clock(times, trust="always")


def steps() -> float:
    return float(clock.STEPS._value.get())


def at(unix_ns: int) -> datetime:
    return from_unix_ns(unix_ns)


def test_it_tells_the_wall_time_in_utc() -> None:
    before = datetime.now(UTC)
    told = Clock(trust="always").now()
    assert told.utcoffset() == timedelta(0)
    assert abs(told - before) < timedelta(milliseconds=50)


def test_it_is_exact_to_the_microsecond(times: Times) -> None:
    times.wall = 1_795_520_745_123_456_789
    assert trusted(times).now() == datetime.fromtimestamp(1_795_520_745, UTC) + timedelta(microseconds=123_456)


@pytest.mark.parametrize("step_s", [-3600, 86_400, -1, 10 * 365 * 86_400])
def test_a_step_is_invisible_until_it_is_followed(times: Times, step_s: int) -> None:
    ours = trusted(times)
    start, counted = ours.stamp(), steps()
    times.pass_s(10)
    times.wall += step_s * S
    assert ours.stamp() == start + timedelta(seconds=10)
    assert ours.follow()
    assert ours.stamp() == ours.now() == start + timedelta(seconds=10 + step_s)
    assert (steps(), ours.steps) == (counted + 1, 1)
    assert not ours.follow()
    assert (steps(), ours.steps, ours.known) == (counted + 1, 1, True)


@pytest.mark.parametrize(("shift_ns", "is_step"), [(0, False), (STEP_NS - 1, False), (STEP_NS, True), (-STEP_NS, True)])
def test_what_is_a_step(times: Times, shift_ns: int, is_step: bool) -> None:
    ours, counted = trusted(times), steps()
    times.wall += shift_ns
    assert ours.follow() == is_step
    assert steps() == counted + is_step


def test_a_slow_drift_is_followed_when_it_has_grown_to_a_step(times: Times) -> None:
    ours = trusted(times)
    for _ in range(3):
        times.wall += 40_000_000
        followed = ours.follow()
    assert followed
    assert ours.now() == at(times.wall)


def test_between_steps_it_never_goes_back(times: Times) -> None:
    ours = trusted(times)
    told = []
    for number in range(100):
        times.pass_s(0.001)
        times.wall += (-1) ** number * 40_000_000
        ours.follow()
        told.append(ours.now())
    assert told == sorted(told)
    assert told[-1] - told[0] == timedelta(milliseconds=99)


def test_the_real_clocks_never_go_back() -> None:
    ours = Clock()
    told = [ours.now() for _ in range(1000)]
    assert told == sorted(told)
    assert not ours.follow()


@given(st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2200, 1, 1)))  # noqa: DTZ001
def test_moments_convert_exactly(moment: datetime) -> None:
    aware = moment.replace(tzinfo=UTC)
    assert from_unix_ns(to_unix_ns(aware)) == aware


def test_without_evidence_it_is_unknown_and_stamps_are_boottime(times: Times) -> None:
    ours = Clock(times)
    assert (ours.known, ours.settled, ours.uncertain) == (False, False, False)
    assert ours.stamp() == UNIX_EPOCH + timedelta(seconds=5)
    assert ours.now() == at(NOW_NS)


@pytest.mark.parametrize(
    ("changes", "evidence"),
    [
        ({"synced": True}, "kernel"),
        ({"rtc": True}, "battery"),
        ({"rtc": True, "synced": True}, "kernel"),
        ({"rtc": True, "wall": 86_400 * S}, None),  # a battery clock that is dead
        ({"rtc": True, "wall": BUILD_NS - 1}, None),
        ({"synced": True, "wall": 86_400 * S}, "kernel"),  # a plant's own time server may say what it likes
        ({}, None),
    ],
)
def test_evidence(times: Times, changes: dict[str, Any], evidence: str | None) -> None:
    for name, value in changes.items():
        setattr(times, name, value)
    ours = Clock(times)
    assert ours.evidence == evidence
    assert ours.known == (evidence is not None)


def test_a_setting_makes_it_known_whatever_the_machine_says() -> None:
    ours = Clock(Times(wall_ns=86_400 * S), trust="always")
    assert (ours.evidence, ours.stamp()) == ("setting", at(86_400 * S))


def test_a_battery_clock_below_the_last_good_time_is_not_believed(times: Times) -> None:
    file = MemoryFile()
    good = Clock(Times(wall_ns=NOW_NS + 3600 * S), TimeFloor(Times(), file), trust="always")
    assert good.floor.keep()
    times.boot, times.rtc = "boot-2", True
    assert not Clock(times, TimeFloor(times, file)).known
    times.wall += 3700 * S
    assert Clock(times, TimeFloor(times, file)).known


def test_time_service_makes_it_known_with_the_step_it_makes() -> None:
    times = Times(wall_ns=0)
    ours = Clock(times)
    times.pass_s(100)
    taken = ours.stamp()
    times.wall, times.synced = NOW_NS, True
    assert ours.follow()
    assert (ours.evidence, ours.stamp()) == ("kernel", at(NOW_NS))
    assert ours.settled_anchor_ns == NOW_NS - times.boottime
    assert taken == UNIX_EPOCH + timedelta(seconds=105)


def test_known_is_for_ever(times: Times) -> None:
    times.synced = True
    ours = Clock(times)
    times.synced, times.wall = False, 0
    ours.follow()
    assert ours.known
    assert ours.stamp() == UNIX_EPOCH


@pytest.mark.parametrize(
    ("ahead_s", "round_trip_s", "known"),
    [(0, 0.01, True), (1.9, 0.1, True), (-1.9, 0.1, True), (2.1, 0.1, False), (-3600, 0.1, False), (0, 10, False)],
)
def test_a_server_that_agrees_makes_it_known(times: Times, ahead_s: float, round_trip_s: float, known: bool) -> None:
    ours = Clock(times)
    said = at(NOW_NS) + timedelta(seconds=ahead_s - round_trip_s / 2)
    assert ours.heard(said, round_trip_s) == pytest.approx(ahead_s, abs=0.001)
    assert ours.known == known
    # It is told, never set.
    assert ours.settled_anchor_ns == (NOW_NS - 5 * S if known else None)
    assert clock.SERVER_OFFSET._value.get() == pytest.approx(ahead_s, abs=0.001)


def test_a_server_of_1970_confirms_nothing() -> None:
    ours = Clock(Times(wall_ns=100 * S))
    ours.heard(at(100 * S), 0.0)
    assert not ours.known


def test_a_server_heard_long_ago_confirms_less_and_less(times: Times) -> None:
    ours = Clock(times)
    ours.heard(at(NOW_NS + 3 * S), 0.0)
    times.pass_s(3600)
    times.wall += 2 * S
    ours.follow()
    assert ours.known  # set by hand to within 1 s; an hour of drift is 0.36 s
    late = Clock(other := Times())
    late.heard(at(NOW_NS + 3 * S), 0.0)
    other.pass_s(36_000)
    other.wall += 2 * S
    late.follow()
    assert not late.known


def test_a_known_clock_is_compared_with_servers_and_not_moved(times: Times) -> None:
    ours = trusted(times)
    assert ours.heard(at(NOW_NS - 3600 * S), 0.0) == -3600
    assert (ours.known, ours.now()) == (True, at(NOW_NS))


def test_waiting_is_given_up_only_while_online() -> None:
    times = Times(wall_ns=1000 * S)
    ours = Clock(times, wait_s_max=600)
    times.pass_s(100_000)
    ours.follow()
    assert not ours.settled
    ours.go(online=True)
    times.pass_s(400)
    ours.go(online=False)
    times.pass_s(100_000)
    ours.go(online=True)
    times.pass_s(199)
    ours.follow()
    assert not ours.settled
    times.pass_s(1)
    ours.follow()
    assert (ours.settled, ours.known, ours.uncertain) == (True, False, True)
    # A clock of 1970 is no guess: the lower bound is better.
    assert ours.stamp() == at(BUILD_NS + times.boottime)


def test_given_up_it_says_what_the_wall_clock_says_if_that_is_possible(times: Times) -> None:
    ours = Clock(times, wait_s_max=0)
    assert (ours.uncertain, ours.stamp()) == (True, at(NOW_NS))


def test_given_up_a_server_is_the_better_guess_and_stays_a_guess() -> None:
    times = Times(wall_ns=0)
    ours = Clock(times, wait_s_max=10)
    ours.go(online=True)
    ours.heard(at(NOW_NS), 0.0)
    times.pass_s(10)
    ours.follow()
    assert (ours.uncertain, ours.stamp()) == (True, at(NOW_NS + 10 * S))
    # Somebody sets the clock by hand, to what the server says.
    times.wall = NOW_NS + 11 * S
    assert ours.follow()
    assert (ours.known, ours.uncertain, ours.stamp()) == (True, False, at(NOW_NS + 11 * S))
    assert ours.settled_anchor_ns == NOW_NS + 11 * S - times.boottime


async def test_who_waits_is_told() -> None:
    times = Times()
    ours = Clock(times)
    waiting = asyncio.create_task(ours.wait_settled())
    await asyncio.sleep(0)
    assert not waiting.done()
    times.synced = True
    ours.follow()
    await asyncio.wait_for(waiting, WAIT_S_MAX)


def test_the_bound_survives_a_boot_and_grows_by_the_length_of_a_clockless_one() -> None:
    file = MemoryFile()
    floor = TimeFloor(Times(boottime=0), file)
    assert floor.now_ns() == BUILD_NS
    floor.known(NOW_NS)
    assert floor.keep()
    for boot in range(2, 5):
        times = Times(wall_ns=0, boottime=0, boot=f"boot-{boot}")
        floor = TimeFloor(times, file)
        assert floor.now_ns() == NOW_NS + (boot - 2) * 1000 * S
        times.pass_s(1000)
        assert floor.keep()


def test_the_bound_of_a_restarted_agent_is_that_of_its_boot() -> None:
    file, times = MemoryFile(), Times(boottime=0)
    first = TimeFloor(times, file)
    first.known(NOW_NS)
    times.pass_s(500)
    first.keep()
    times.pass_s(100)
    assert TimeFloor(times, file).base_ns == NOW_NS


def test_the_bound_is_written_rarely_and_at_once_after_a_step(tmp_path: Path) -> None:
    times = Times()
    floor = TimeFloor(times, DurableFile(tmp_path / "time.json"))
    ours = Clock(times, floor, trust="always")
    writes = 0
    for _ in range(3600):
        times.pass_s(1)
        ours.follow()
        writes += floor.keep()
    assert writes == 3600 / SAVE_EVERY_S
    times.wall += 86_400 * S
    ours.follow()
    assert floor.keep()
    times.wall -= 86_400 * S
    ours.follow()
    assert floor.keep()
    assert TimeFloor(times, DurableFile(tmp_path / "time.json")).now_ns() == times.wall


def test_a_step_while_the_bound_is_written_is_written_next() -> None:
    file = MemoryFile()
    floor = TimeFloor(Times(boottime=0), file)
    floor.known(NOW_NS + 86_400 * S)
    write = file.write

    def slow(content: bytes) -> None:
        floor.known(NOW_NS)
        write(content)

    file.write = slow  # type: ignore[method-assign]
    assert floor.keep()
    assert floor.keep()
    assert TimeFloor(Times(boottime=0), file).now_ns() == NOW_NS
    assert not floor.keep()


@pytest.mark.parametrize("content", [b"", b"{}", b'{"wall_ns":"x"}', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_bound_is_none(content: bytes) -> None:
    file = MemoryFile()
    file.write(content)
    assert TimeFloor(Times(), file).base_ns == BUILD_NS


def test_a_bound_that_cannot_be_written_is_tried_again(tmp_path: Path) -> None:
    floor = TimeFloor(Times(), DurableFile(tmp_path / "gone" / "time.json"))
    with pytest.raises(FileNotFoundError):
        floor.keep()
    (tmp_path / "gone").mkdir()
    assert floor.keep()


def test_a_small_file_is_synced_before_it_replaces_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = DurableFile(tmp_path / "f.json")
    assert file.read() is None
    file.write(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        file.write(b"new")
    assert file.read() == b"old"
