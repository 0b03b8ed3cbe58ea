"""What the documents say is what the code does."""

import re
import textwrap
from pathlib import Path

import msgspec
import pytest

from cncmon_agent.settings import AgentSettings
from cncmon_api.settings import ApiSettings
from cncmon_core import machine_files
from cncmon_core.nats_link import NatsSettings
from cncmon_core.service import ServiceSettings
from cncmon_core.settings import describe
from cncmon_ingest.settings import IngestSettings
from cncmon_operator.settings import OperatorSettings
from cncmon_simulator.settings import Settings as SimulatorSettings

ROOT = Path(__file__).parents[2]

SETTINGS: list[tuple[str, type[msgspec.Struct], str]] = [
    ("agent", AgentSettings, "AGENT"),
    ("core", NatsSettings, "NATS"),
    ("core", ServiceSettings, "SERVICE"),
    ("ingest", IngestSettings, "INGEST"),
    ("operator", OperatorSettings, "OPERATOR"),
    ("query-api", ApiSettings, "API"),
    ("simulator", SimulatorSettings, "SIMULATOR"),
]


@pytest.mark.parametrize(("service", "settings", "section"), SETTINGS, ids=[row[2].lower() for row in SETTINGS])
def test_readme_lists_every_setting_with_its_default(
    service: str, settings: type[msgspec.Struct], section: str
) -> None:
    text = (ROOT / "services" / service / "README.md").read_text()
    rows = {row[0]: row for row in re.findall(r"^\| `(CNCMON_\w+)` \| (\S*) \| (.*) \|$", text, re.MULTILINE)}
    for variable, default, description in describe(settings, section):
        assert variable in rows, f"{variable} is missing in the table"
        assert rows[variable][1].strip("`") == default, variable
        assert rows[variable][2].strip(), f"{variable} has no description"
        assert description, f"{variable} has no description in the code"
    known = {variable for variable, _, _ in describe(settings, section)}
    stale = {name for name in rows if name.startswith(f"CNCMON_{section}_")} - known
    assert not stale, "settings that are no more"


@pytest.mark.parametrize(
    "page", [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=str
)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_makefile_help_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    described = set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))
    assert targets == described


def test_the_readmes_machine_is_the_example_and_can_be_used() -> None:
    example = ROOT / "docs" / "examples" / "mill.yaml"
    block = re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    assert textwrap.dedent("   " + block.group(1).lstrip()).strip() == example.read_text().strip()
    found = machine_files.load([example])
    assert found.problems == []
    assert list(found.machines) == ["mill-7"]


def test_lock_files_carry_no_addresses() -> None:
    locks = [*ROOT.glob("requirements/*.txt"), ROOT / "services" / "query-api" / "web" / "package-lock.json"]
    assert len(locks) > 5
    for lock in locks:
        addresses = re.findall(
            r'"resolved"|--(?:extra-)?index-url\b|\bhttps?://\S+\.(?:whl|tgz|tar\.gz)', lock.read_text()
        )
        assert not addresses, f"{lock.name}: {addresses[:3]}"


def test_every_pinned_package_has_hashes() -> None:
    for lock in ROOT.glob("requirements/*.txt"):
        for block in re.split(r"\n(?=\S)", lock.read_text().strip()):
            assert re.search(r"==\S+", block), f"{lock.name}: {block[:80]}"
            assert "--hash=sha256:" in block, f"{lock.name}: {block[:80]}"


def test_every_image_of_ours_is_of_this_version() -> None:
    """What is installed from this checkout runs what is built from it."""
    version = re.search(r"^appVersion: (\S+)$", (ROOT / "charts/cnc-monitor/Chart.yaml").read_text(), re.MULTILINE)
    assert version is not None
    services = {path.parent.name.removeprefix("query-") for path in ROOT.glob("services/*/Dockerfile")}
    named: set[str] = set()
    for page in ("compose.yaml", "docs/examples/simulated/simulator.yaml"):
        for name, tag in re.findall(r"image: (?:\S+/)?cncmon-([a-z]+):(\S+)", (ROOT / page).read_text()):
            assert tag == version.group(1), page
            named.add(name)
    assert named == services - {"operator"}, "an image without Kubernetes"
    bake = (ROOT / "docker-bake.hcl").read_text()
    assert f'variable "TAG" {{ default = "{version.group(1)}" }}' in bake
    assert set(re.findall(r'"([a-z-]+)"', bake[bake.index("matrix") :].splitlines()[0])) == {
        path.parent.name for path in ROOT.glob("services/*/Dockerfile")
    }
