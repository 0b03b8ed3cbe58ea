"""Plants for the scenarios, and the table at the end of a round."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from robustness.scenarios.plant import MakePlant, Plant
from robustness.scenarios.size import LONG, LONG_SAMPLES, SEED, SIZE
from robustness.validate.report import Result, table
from testkit.servers import Server, running_nats

TABLE = os.environ.get("CNCMON_ROBUSTNESS_TABLE", "")
"""File for the table's markdown rows."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A round's length bounds its tests."""
    here = Path(__file__).parent / "scenarios"
    for item in items:
        if here in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SIZE.timeout_s))


@pytest.fixture
def plant_nats(tmp_path: Path) -> Iterator[Server]:
    """The plant's own nats-server."""
    with running_nats(tmp_path) as server:
        yield server


@pytest.fixture
def plant(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    plant_nats: Server,
    postgres_dsn: str,
    record_property: Callable[[str, object], None],
) -> Plant:
    """A plant, not yet running, with the shared PostgreSQL server."""
    return Plant(_name(request), tmp_path, plant_nats, postgres_dsn, SEED, record_property)


@pytest.fixture
def plant_with(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    plant_nats: Server,
    record_property: Callable[[str, object], None],
) -> MakePlant:
    """Return a maker of a plant with a database of the test's own."""

    def make(dsn: str) -> Plant:
        return Plant(_name(request), tmp_path, plant_nats, dsn, SEED, record_property)

    return make


def _name(request: pytest.FixtureRequest) -> str:
    name: str = request.node.name
    return name.removeprefix("test_").replace("_", " ")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of all scenarios; a long round that checked too little has failed its purpose, and says so."""
    reports = [report for word in ("passed", "failed") for report in terminalreporter.stats.get(word, [])]
    found = [Result.decode(text) for report in reports for name, text in report.user_properties if name == "robustness"]
    if not found:
        return
    rows = table(found)
    terminalreporter.section(f"robustness, seed {SEED}")
    for row in rows:
        terminalreporter.write_line(row)
    sent = sum(result.sent for result in found)
    if LONG and sent < LONG_SAMPLES:
        terminalreporter.write_line(f"only {sent:,} samples checked; a long round is of {LONG_SAMPLES:,}", red=True)
    if TABLE:
        Path(TABLE).write_text("\n".join(rows) + "\n")
