"""The version before this one: what an upgrade starts from."""

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

from testkit.kubernetes import ROOT

DEFINITIONS = "charts/cnc-monitor/files/crds"
SCHEMA = (DEFINITIONS, "services/ingest/src/cncmon_ingest/migrations")
"""Where what is stored is described: a change of these is what an upgrade must bring."""


def checkout(folder: Path) -> Path:
    """Return the sources of the commit before the last change of the schema, with this checkout's way to build images.

    Where that is older than the Dockerfiles: those of the first commit that has them, with the older definitions of
    resources. Where there is no history: the sources of now, so that the upgrade is one of the release alone.
    """
    changed = _git("log", "-1", "--format=%H", "--", *SCHEMA)
    if not changed:
        ignored = shutil.ignore_patterns(".git", ".venv", "node_modules", "build", ".*_cache", "__pycache__")
        return Path(shutil.copytree(ROOT, folder, ignore=ignored, symlinks=True))
    folder.mkdir(parents=True)
    before = f"{changed}^"
    if _git("ls-tree", "--name-only", before, "services/agent/Dockerfile"):
        _extract(before, folder)
    else:
        first = _git("log", "--diff-filter=A", "--format=%H", "--", "services/agent/Dockerfile").split()[-1]
        _extract(first, folder)
        shutil.rmtree(folder / DEFINITIONS)
        _extract(before, folder, DEFINITIONS)
    shutil.copy(ROOT / "scripts/images.sh", folder / "scripts/images.sh")
    return folder


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _extract(commit: str, folder: Path, *paths: str) -> None:
    archive = subprocess.run(["git", "archive", commit, *paths], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
