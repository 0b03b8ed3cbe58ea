"""The README speaks of what is there."""

import re
from pathlib import Path

FOLDER = Path(__file__).parents[1]
README = (FOLDER / "README.md").read_text()


def test_every_module_is_in_the_table() -> None:
    source = FOLDER / "src" / "cncmon_operator"
    table = README[README.index("## Modules") :]
    listed = {
        name.rstrip("/")
        for line in table.splitlines()
        for name in re.findall(r"`(\w+/?)`", line.split("|")[1] if "|" in line else "")
    }
    modules = {path.stem for path in source.glob("*.py")} - {"__init__"}
    assert listed == modules | {"crds"}


def test_what_it_links_to_is_there() -> None:
    for link in re.findall(r"\]\(([^)#]+)", README):
        assert (FOLDER / link).exists(), link
