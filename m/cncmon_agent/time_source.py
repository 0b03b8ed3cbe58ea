"""What the operating system says about time, and whether it should be believed. The only module that asks it."""

import time
import uuid
from pathlib import Path
from typing import Final, Protocol

RTC_TOLERANCE_S: Final = 5.0
"""A battery clock tells whole seconds and is read a moment later; more than this is a real difference."""

RTC_DRIFT: Final = 200e-6
"""How fast a battery clock and an undisciplined system clock part: 100 ppm each, the worst of cheap crystals."""

RTC_ZONE_S: Final = 900
RTC_ZONE_S_MAX: Final = 14 * 3600 + RTC_TOLERANCE_S
"""A battery clock may keep local time, as other systems want it: whole quarters of an hour, at most 14 h (tz database).
"""

_TIME_ERROR: Final = 5
"""adjtimex(2): the clock is not synchronised (STA_UNSYNC or STA_CLOCKERR is set)."""

_TIMEX_BYTES: Final = 512
"""More than `struct timex` takes under any C library (208 bytes with 64-bit longs)."""

_HOST_CLOCKS: Final = frozenset({"kvm-clock", "xen"})
"""Clock sources of guests whose kernel takes the wall time from the host at boot, without a battery clock to be seen:
Linux, arch/x86/kernel/kvmclock.c and arch/x86/xen/time.c, `x86_platform.get_wallclock`.
"""


class TimeSource(Protocol):
    """The clocks of a machine. Tests give their own."""

    def boottime_ns(self) -> int:
        """Return the time since the kernel began, suspend included, in ns (CLOCK_BOOTTIME)."""
        ...

    def wall_ns(self) -> int:
        """Return Unix time in ns as the machine has it, right or wrong."""
        ...

    def synchronised(self) -> bool:
        """Return whether the kernel says that something disciplines its wall clock."""
        ...

    def boot_id(self) -> str:
        """Return what tells one start of the kernel from every other."""
        ...

    def has_rtc(self) -> bool:
        """Return whether the wall clock was set at boot from a clock that runs without power, or from the host's."""
        ...


class SystemTime:
    """The machine's own. `root`: where /sys and /proc are, for tests."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        # Where there is no boot id no earlier log can be told to be of this boot: each process counts as a boot.
        self._boot_id = _text(root / "proc/sys/kernel/random/boot_id") or str(uuid.uuid4())

    def boottime_ns(self) -> int:
        """Return CLOCK_BOOTTIME."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def wall_ns(self) -> int:
        """Return CLOCK_REALTIME."""
        return time.time_ns()

    def synchronised(self) -> bool:
        """Ask adjtimex(2), changing nothing. Containers see the state of their host.

        timesyncd, chrony (rtcsync) and ntpd clear STA_UNSYNC; the kernel sets it again some nine hours after the last
        word from them, when the possible error has grown to 16 s (NTP_PHASE_LIMIT in linux/timex.h).
        """
        # Here, so that an agent that is told to trust its clock does without what ctypes takes.
        import ctypes

        try:
            adjtimex = ctypes.CDLL(None).adjtimex
        except AttributeError:
            return False
        # All zero: `modes`, its first field, says what to change. The return value is the state, -1 a refusal.
        return 0 <= int(adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))) < _TIME_ERROR

    def boot_id(self) -> str:
        """Return /proc/sys/kernel/random/boot_id."""
        return self._boot_id

    def has_rtc(self) -> bool:
        """Return whether a battery clock agrees with the wall clock, or the host gives a guest its time.

        That one is there is not enough: a Raspberry Pi 5 has one and comes without its battery, and then the wall
        clock is what a file from before the power cut says.
        """
        if not _HOST_CLOCKS.isdisjoint(_text(self._root / _CLOCK_SOURCES).split()):
            return True
        tolerance_s = RTC_TOLERANCE_S + RTC_DRIFT * self.boottime_ns() / 1e9
        for clock in sorted((self._root / "sys/class/rtc").glob("rtc*")):
            said = _text(clock / "since_epoch")
            if said.isdigit() and _agree(int(said), self.wall_ns() / 1e9, tolerance_s):
                return True
        return False


_CLOCK_SOURCES = "sys/devices/system/clocksource/clocksource0/available_clocksource"


def _agree(rtc_s: int, wall_s: float, tolerance_s: float) -> bool:
    difference_s = abs(rtc_s - wall_s)
    off_s = difference_s % RTC_ZONE_S
    return difference_s <= RTC_ZONE_S_MAX and min(off_s, RTC_ZONE_S - off_s) <= tolerance_s


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
