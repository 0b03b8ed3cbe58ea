"""A check: one line with a tick, a warning or a cross, and for the last two what to do."""

from enum import StrEnum

import msgspec


class Status(StrEnum):
    """fail: something will not work. warn: it works, and may surprise."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Check(msgspec.Struct, frozen=True):
    """What was checked (`name`, a statement that is true when all is well), and what was found."""

    group: str
    name: str
    status: Status
    detail: str = ""
    remedy: str = ""


class Group:
    """Collects the checks of a group."""

    def __init__(self, title: str) -> None:
        self._title = title
        self.checks: list[Check] = []

    def ok(self, name: str, detail: str = "") -> None:
        """Note that a statement holds."""
        self.checks.append(Check(self._title, name, Status.OK, detail))

    def warn(self, name: str, detail: str, remedy: str) -> None:
        """Note what may surprise."""
        self.checks.append(Check(self._title, name, Status.WARN, detail, remedy))

    def fail(self, name: str, detail: str, remedy: str) -> None:
        """Note what will not work."""
        self.checks.append(Check(self._title, name, Status.FAIL, detail, remedy))
