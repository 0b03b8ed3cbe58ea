"""The README says what the code does."""

import re
from pathlib import Path

import cncmon_core
from cncmon_core import frames, identity, sample
from cncmon_core.nats_link import NatsSettings
from cncmon_core.service import ServiceSettings
from cncmon_core.settings import describe

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_every_setting_is_described_as_it_is() -> None:
    rows = [*describe(ServiceSettings, "SERVICE"), *describe(NatsSettings, "NATS")]
    expected = [f"| `{name}` | {f'`{default}`' if default else ''} | {text} |" for name, default, text in rows]
    assert [line for line in README.splitlines() if line.startswith("| `CNCMON_")] == expected


def test_every_module_is_named() -> None:
    (package,) = cncmon_core.__path__
    modules = {path.stem for path in Path(package).glob("*.py")} - {"__init__"}
    named = {name for line in README.splitlines() if line.startswith("| `") for name in re.findall("`([a-z_]+)`", line)}
    assert modules <= named


def test_every_reason_is_named() -> None:
    for module in (sample, frames, identity):
        code = Path(module.__file__ or "").read_text()
        reasons = re.findall(
            r'(?:FrameError|MessageError|IdentityError|BadTail)\(\s*(?:[^"()]*(?:\[[^\]]*\])?, )?"(\w+)"', code
        )
        assert reasons
        assert [reason for reason in reasons if f"`{reason}`" not in README] == []
