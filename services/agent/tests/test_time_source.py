"""What the operating system says about time: battery clocks, hosts, the kernel's word, the boot id."""

from pathlib import Path
from typing import Any

import pytest

from cncmon_agent.time_source import SystemTime
from testkit.times import NOW_NS, S


def machine(root: Path, *, rtc_s: str | None = None, sources: str = "tsc hpet") -> SystemTime:
    (root / "sys/class/rtc/rtc0").mkdir(parents=True)
    (root / "sys/devices/system/clocksource/clocksource0").mkdir(parents=True)
    (root / "sys/devices/system/clocksource/clocksource0/available_clocksource").write_text(sources + "\n")
    if rtc_s is not None:
        (root / "sys/class/rtc/rtc0/since_epoch").write_text(rtc_s + "\n")
    return SystemTime(root)


@pytest.mark.parametrize(
    ("rtc_off_s", "agrees"),
    [(0, True), (-2, True), (7200, True), (-5.5 * 3600, True), (-400, False), (20 * 3600, False), (-(10**9), False)],
)
def test_a_battery_clock_counts_where_it_agrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rtc_off_s: float, agrees: bool
) -> None:
    found = machine(tmp_path, rtc_s=str(int(NOW_NS / S + rtc_off_s)))
    monkeypatch.setattr(found, "wall_ns", lambda: NOW_NS)
    monkeypatch.setattr(found, "boottime_ns", lambda: 60 * S)
    assert found.has_rtc() == agrees


def test_a_machine_without_or_with_an_unreadable_battery_clock(tmp_path: Path) -> None:
    assert not machine(tmp_path / "a").has_rtc()
    assert not machine(tmp_path / "b", rtc_s="garbage").has_rtc()
    assert not SystemTime(tmp_path / "c").has_rtc()
    assert machine(tmp_path / "d", sources="tsc kvm-clock").has_rtc()


def test_the_machine_itself(tmp_path: Path) -> None:
    real = SystemTime()
    assert real.boottime_ns() <= real.boottime_ns()
    assert real.boot_id() == SystemTime().boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert SystemTime(tmp_path).boot_id() != SystemTime(tmp_path).boot_id()
    assert isinstance(real.synchronised(), bool)


@pytest.mark.parametrize(("state", "synchronised"), [(0, True), (1, True), (4, True), (5, False), (-1, False)])
def test_what_the_kernel_says(monkeypatch: pytest.MonkeyPatch, state: int, synchronised: bool) -> None:
    class Library:
        def __init__(self, name: str | None) -> None: ...

        @staticmethod
        def adjtimex(timex: Any) -> int:
            assert not any(timex.raw)  # modes = 0: nothing is changed
            return state

    monkeypatch.setattr("ctypes.CDLL", Library)
    assert SystemTime().synchronised() == synchronised


def test_a_c_library_without_the_call_claims_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not SystemTime().synchronised()
