"""The README and `--help` say what the code does."""

import subprocess
import sys
from pathlib import Path

from cncmon_agent.settings import AgentSettings
from cncmon_core.settings import describe

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
