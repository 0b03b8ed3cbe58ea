"""The page can be built where there is no Node.js: with Python alone, as scripts/setup.sh promises."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

TOOLS = ("sh", "env", "dirname", "cat", "find", "sort", "xargs", "cksum", "tr", "ln", "chmod")
"""All that the script may take from PATH."""


def test_without_node_on_the_path_it_is_built_with_what_pypi_has(tmp_path: Path) -> None:
    plain = tmp_path / "path"
    plain.mkdir()
    for tool in TOOLS:
        (plain / tool).symlink_to(str(shutil.which(tool)))
    folder = tmp_path / "checkout"
    for file in ("scripts/build-web.sh", "requirements/node.txt", ".npmrc"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, folder / file)
    web = ROOT / "services/query-api/web"
    shutil.copytree(web, folder / "services/query-api/web", ignore=shutil.ignore_patterns("node_modules", "dist"))
    (folder / "services/query-api/src/cncmon_api").mkdir(parents=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    (folder / ".venv/bin/uv").symlink_to(Path(sys.executable).parent / "uv")
    done = subprocess.run(
        [plain / "sh", "scripts/build-web.sh"],
        cwd=folder,
        env=os.environ | {"PATH": str(plain)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "services/query-api/src/cncmon_api/static/index.html").exists()
