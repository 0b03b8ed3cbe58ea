"""How long each file of tests took when it was last measured: the longest begin first, and `make check` fits its time.

A hint and no limit: no test's outcome depends on it. `CNCMON_TEST_DURATIONS=write make test` measures anew.
"""

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

TABLE = Path(__file__).parents[1] / "durations.json"
"""File of tests → seconds, in a run of all on two quiet cores."""

UNKNOWN_S = 30.0
"""Of a file that was not measured yet."""


def known() -> dict[str, float]:
    """Return the seconds of each file, by its path from the top of the repository."""
    found: dict[str, float] = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    return found


def file_of(item: pytest.Item) -> str:
    """Return the file of a test, by its path from the top of the repository."""
    return item.nodeid.split("::", 1)[0]


def longest_first(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Return the tests so that files that take long begin first: they would else be what the others wait for."""
    seconds = known()
    return sorted(items, key=lambda item: -seconds.get(file_of(item), UNKNOWN_S))


class Measured:
    """A plugin of the process that hears of all tests; writes the table at the end where that is asked for."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid.split("::", 1)[0]] += report.duration

    def pytest_sessionfinish(self) -> None:
        if os.environ.get("CNCMON_TEST_DURATIONS") != "write" or "PYTEST_XDIST_WORKER" in os.environ:
            return
        rounded = {name: round(seconds, 1) for name, seconds in {**known(), **self._seconds}.items()}
        there = {name: seconds for name, seconds in sorted(rounded.items()) if (TABLE.parents[1] / name).exists()}
        TABLE.write_text(json.dumps(there, indent=1) + "\n")
