"""`cncmon-agent` on a machine whose wall clock a file sets: the agent itself, with another source of time.

The file, named by `CNCMON_TEST_CLOCK`, holds a JSON `Setting`; it is read again whenever the agent asks for the time.
"""

import os
from pathlib import Path

import msgspec

from cncmon_agent import agent, main
from cncmon_agent.time_source import SystemTime

VARIABLE = "CNCMON_TEST_CLOCK"


class Setting(msgspec.Struct):
    """offset_s: added to the real wall clock. disciplined: whether anything vouches for it. boot: name of this boot."""

    offset_s: float = 0.0
    disciplined: bool = True
    boot: str = "first"

    def write(self, path: Path) -> None:
        """Set the clock."""
        new = path.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(self))
        new.replace(path)


class ShiftedTime(SystemTime):
    """The machine's own time, but for what the file says."""

    def _setting(self) -> Setting:
        return msgspec.json.decode(Path(os.environ[VARIABLE]).read_bytes(), type=Setting)

    def wall_ns(self) -> int:
        """Return the wall clock as it is set."""
        return super().wall_ns() + int(self._setting().offset_s * 1e9)

    def synchronised(self) -> bool:
        """Return whether it is disciplined."""
        return self._setting().disciplined

    def boot_id(self) -> str:
        """Return which boot this is."""
        return self._setting().boot

    def has_rtc(self) -> bool:
        """Return False: a Raspberry Pi."""
        return False


if __name__ == "__main__":
    vars(agent)["SystemTime"] = ShiftedTime
    main.main()
