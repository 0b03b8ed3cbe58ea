"""The README and `--help` say what the code does."""

import re
import subprocess
import sys
from pathlib import Path

from prometheus_client import REGISTRY

from cncmon_agent import clock, governor, heartbeat, publish, storage
from cncmon_agent.settings import AgentSettings
from cncmon_core.nats_link import NatsSettings
from cncmon_core.service import ServiceSettings
from cncmon_core.settings import describe
from testkit import bulky
from testkit.waiting import WAIT_S_MAX

METRICS_OF = (heartbeat, publish, governor, storage, clock)
"""Imported so that their metrics are known."""
FOLDER = Path(__file__).parents[1]
README = (FOLDER / "README.md").read_text()


def test_every_setting_is_described_as_it_is() -> None:
    rows = describe(AgentSettings, "AGENT")
    expected = [f"| `{name}` | {f'`{default}`' if default else ''} | {text} |" for name, default, text in rows]
    assert [line for line in README.splitlines() if line.startswith("| `CNCMON_")] == expected


def test_help_lists_every_setting() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "cncmon_agent.main", "--help"], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    for name, default, text in describe(AgentSettings, "AGENT"):
        assert f"{name}={default}\n      {text}" in said
    assert "CNCMON_NATS_SERVERS=nats://127.0.0.1:4222" in said


def test_what_it_links_to_is_there() -> None:
    for link in README.split("](")[1:]:
        assert (FOLDER / link.split(")")[0]).exists()


def test_every_module_is_in_the_table() -> None:
    source = FOLDER / "src" / "cncmon_agent"
    listed = {
        name.strip("`/ ")
        for line in README.splitlines()
        if line.startswith("| `")
        for name in line.split("|")[1].split(",")
    }
    modules = {path.stem for path in source.glob("*.py")} - {"__init__"}
    folders = {path.parent.name for path in source.glob("*/__init__.py")} - {"drivers"}
    assert listed >= modules | folders
    assert all((source / name).is_dir() or (source / f"{name}.py").is_file() for name in listed if name[0].islower())


def test_every_setting_it_speaks_of_is_there() -> None:
    known = {
        name
        for section in ((AgentSettings, "AGENT"), (NatsSettings, "NATS"), (ServiceSettings, "SERVICE"))
        for name, _, _ in describe(*section)
    }
    assert set(re.findall(r"CNCMON_[A-Z_]+[A-Z](?![A-Z_])", README)) <= known


def test_every_metric_it_speaks_of_is_there() -> None:
    names = {name for metric in REGISTRY.collect() for name in (metric.name, metric.name + "_total")}
    spoken = set(re.findall(r"cncmon_edge_[a-z_]+[a-z]", README))
    assert spoken
    assert spoken <= names


def test_the_output_of_the_buffer_command_is_as_shown(tmp_path: Path) -> None:
    """Same columns, same sentences; the figures are an example's."""
    settings = AgentSettings(site="hall-2", edge="line-a", data_dir=str(tmp_path / "agent"), spool_free_bytes_min=0)
    bulky.fill(settings, 9 << 20)
    bulky.fill(settings, 100_000)
    for command in (["ls"], ["verify"], ["export", "--out", str(tmp_path / "x.jsonl")]):
        said = subprocess.run(
            [sys.executable, "-m", "cncmon_agent.main", "buffer", *command, "--data-dir", settings.data_dir],
            check=True,
            capture_output=True,
            text=True,
            timeout=WAIT_S_MAX,
        ).stdout
        for line in said.splitlines():
            assert pattern_of(line) in set(map(pattern_of, README.splitlines())), line


def pattern_of(line: str) -> str:
    """Return what of a line is not an example's."""
    line = re.sub(r"^\S*/\S+: ", "PATH: ", line)
    return re.sub(r"\s+", " ", re.sub(r"[\d][\d,.:]*", "0", line))
