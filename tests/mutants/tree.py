"""A copy of the repository that mutants are applied to, with an environment that imports the copy and nothing else."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from mutants.data import ROOT, Mutant, mutate

BUILT = ("services/ingest/src/cncmon_ingest/_rows*.so", "services/query-api/src/cncmon_api/static")
"""What `make setup` builds into the tree and git does not know."""


class Tree:
    """One copy. Its `.venv` holds links to the packages of ours, but the services and the tests are the copy's.

    That holds for every process that the copy's programs start, also for one with an environment of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / ".venv" / "bin" / "python"
        self._changed: dict[Path, bytes] = {}
        _copy_files(folder)
        _make_venv(folder / ".venv", folder)

    def apply(self, mutant: Mutant) -> None:
        """Change the copy as a mutant says; `restore` first what another has changed.

        Raises:
            ValueError: an edit does not apply.
        """
        assert not self._changed
        for file, text in mutate(mutant, self.folder).items():
            path = self.folder / file
            self._changed[path] = path.read_bytes()
            _write(path, text.encode())

    def restore(self) -> None:
        """Take the changes back."""
        while self._changed:
            _write(*self._changed.popitem())


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    # Python believes compiled code by the source's size and second, and both may be the same.
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()


def _copy_files(folder: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    names = [os.fsdecode(name) for name in listed.split(b"\0") if name]
    built = [path for pattern in BUILT for path in ROOT.glob(pattern)]
    files = [path for top in built for path in (top.rglob("*") if top.is_dir() else [top])]
    for path in [*(ROOT / name for name in names), *files]:
        if path.is_file():
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target, follow_symlinks=False)


def _make_venv(venv: Path, folder: Path) -> None:
    ours = Path(sys.prefix)
    packages = Path(sysconfig.get_path("purelib"))
    target = venv / packages.relative_to(ours)
    target.mkdir(parents=True)
    for entry in packages.iterdir():
        if entry.suffix == ".pth":
            text = entry.read_text(encoding="utf-8")
            (target / entry.name).write_text(text.replace(str(ROOT), str(folder)), encoding="utf-8")
        else:
            (target / entry.name).symlink_to(entry)
    shutil.copy(ours / "pyvenv.cfg", venv)
    (venv / "bin").mkdir()
    for entry in (ours / "bin").iterdir():
        copy = venv / "bin" / entry.name
        if entry.is_symlink():
            copy.symlink_to(entry.readlink())
        elif entry.read_bytes()[:2] == b"#!":
            copy.write_text(entry.read_text(encoding="utf-8").replace(str(ours), str(venv)), encoding="utf-8")
            copy.chmod(entry.stat().st_mode)
        else:
            copy.symlink_to(entry)
