"""`make check`: lint, and the tests that are nearest to what changed against main, within a minute and a half.

Nearest are a file of tests that changed itself, then those that import what changed, by the number of steps between:
first of the same service, then of the others, then those of several services. What does not fit is named at the end.
"""

import re
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from testkit.durations import UNKNOWN_S, known

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TESTS_S_MAX = 100.0
"""Seconds of tests one after another that are begun: with WORKERS side by side well under a minute."""
WORKERS = 4


def git(*arguments: str) -> list[str]:
    """Return the lines that git answers, none where it refuses."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []


def changed(against: str) -> list[str]:
    """Return the files that differ from where this branch left another: committed, staged, and not even added."""
    base = git("merge-base", against, "HEAD") or git("rev-parse", "HEAD")
    found = {*git("diff", "--name-only", base[0]), *git("ls-files", "--others", "--exclude-standard")}
    return sorted(found)


def is_test(path: str) -> bool:
    """Whether pytest collects a file, and it is one of those that `make test` runs."""
    elsewhere = ("tests/cluster/", "tests/robustness/scenarios/")
    return Path(path).name.startswith("test_") and path.endswith(".py") and not path.startswith(elsewhere)


@dataclass
class Graph:
    """Which file imports which: all Python of the services and their tests, by paths from the top."""

    importers: dict[str, set[str]] = field(default_factory=dict)

    @staticmethod
    def read() -> "Graph":
        """Read every file's imports, those within functions included."""
        graph = Graph()
        roots = [*ROOT.glob("services/*/src"), ROOT / "tests"]
        places = (*ROOT.glob("services/*"), ROOT / "tests")
        files = {ROOT / "conftest.py", *(file for place in places for file in place.rglob("*.py"))}
        modules = {_module(file, roots): file for file in files}
        for file in files:
            for name in _imports(file, _module(file, roots)):
                if (target := modules.get(name)) is not None:
                    graph.importers.setdefault(_path(target), set()).add(_path(file))
        for file in files:
            if file.name == "conftest.py":  # what pytest imports for everything beneath
                beneath = {_path(other) for other in files if file.parent in other.parents and other != file}
                graph.importers.setdefault(_path(file), set()).update(beneath)
        return graph

    def distances(self, files: Iterable[str]) -> dict[str, int]:
        """Return the files that import any of these, directly or not, with the steps between."""
        found = dict.fromkeys(files, 0)
        waiting = deque(found)
        while waiting:
            file = waiting.popleft()
            for importer in self.importers.get(file, ()):
                if importer not in found:
                    found[importer] = found[file] + 1
                    waiting.append(importer)
        return found


def _path(file: Path) -> str:
    return str(file.relative_to(ROOT))


def _module(file: Path, roots: list[Path]) -> str:
    for root in roots:
        if root in file.parents:
            return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    return _path(file)


_FROM = re.compile(r"^\s*from\s+(\.*)([\w.]*)\s+import\s+(\([^)]*\)|[^\n]*)", re.MULTILINE)
_IMPORT = re.compile(r"^\s*import\s+([^\n]+)", re.MULTILINE)
_PLUGINS = re.compile(r"^pytest_plugins = \[(.*)\]", re.MULTILINE)
_NAME = re.compile(r"[\w.]+")


def _imports(file: Path, module: str) -> Iterator[str]:
    """Yield the names of modules that a file imports, and of the names that may be modules themselves."""
    text = file.read_text(encoding="utf-8")
    for dots, name, names in _FROM.findall(text):
        above = module.split(".")[: -len(dots)] if dots else []
        base = ".".join([*above, *([name] if name else [])])
        yield base
        yield from (f"{base}.{one}" for one in _NAME.findall(names))
    for names in (*_IMPORT.findall(text), *_PLUGINS.findall(text)):
        yield from _NAME.findall(names)


def service_of(path: str) -> str:
    """Return the folder that a change belongs to: a service's, or the top-level one."""
    return "/".join(path.split("/")[: 2 if path.startswith("services/") else 1])


def chosen(files: list[str]) -> tuple[list[str], list[str]]:
    """Return the files of tests to run, nearest first, and those that import what changed and don't fit."""
    distances = Graph.read().distances(file for file in files if file.endswith(".py"))
    tests = {file for file in distances if is_test(file) and (ROOT / file).exists()}
    services = {service_of(file) for file in files}
    # Files that are no Python (schemas, pages, documents) are those of their service's tests.
    other = {service_of(file) for file in files if not file.endswith(".py")}
    everything = {_path(file) for place in other for file in (ROOT / place).rglob("tests/**/test_*.py")}
    tests |= {file for file in everything if is_test(file)}
    if any(file.endswith(".md") for file in files):
        tests |= {_path(file) for file in ROOT.glob("tests/rules/test_*.py")}
    seconds = known()

    def order(file: str) -> tuple[bool, bool, int, float]:
        return (
            file not in files,
            service_of(file) not in services,
            distances.get(file, 9),
            seconds.get(file, UNKNOWN_S),
        )

    taken: list[str] = []
    left: list[str] = []
    total_s = 0.0
    for file in sorted(tests, key=order):
        cost_s = seconds.get(file, UNKNOWN_S)
        if total_s + cost_s <= TESTS_S_MAX or not taken:
            taken.append(file)
            total_s += cost_s
        else:
            left.append(file)
    return taken, left


def run(*command: str | Path) -> bool:
    """Run a command at the top, with what it says; return whether it succeeded."""
    print(f"\033[1m> {' '.join(map(str, command))[:150]}\033[0m", flush=True)
    return subprocess.run([str(part) for part in command], cwd=ROOT, check=False).returncode == 0


def lint(files: list[str]) -> bool:
    """Look at what changed; types are those of everything, since mypy remembers."""
    python = [file for file in files if file.endswith(".py") and (ROOT / file).exists()]
    fine = True
    if python:
        fine &= run(BIN / "ruff", "check", *python)
        fine &= run(BIN / "ruff", "format", "--check", *python)
        fine &= run(BIN / "mypy", *sorted(map(_path, ROOT.glob("services/*/src"))), "tests")
    if any("/src/" in file for file in python):
        fine &= run(BIN / "lint-imports")
    if any(file.startswith("services/query-api/web/") for file in files) and shutil.which("sh"):
        fine &= run("scripts/web.sh", "lint") and run("scripts/web.sh", "test")
    return fine


def main() -> int:
    """Check what changed; return the exit status."""
    began_s = time.monotonic()
    against = "main" if git("rev-parse", "--verify", "--quiet", "main") else "origin/main"
    files = changed(against)
    if not files:
        print(f"nothing differs from {against}")
        return 0
    fine = lint(files)
    tests, left = chosen(files)
    if tests:
        ways = ("-q", "-n", str(WORKERS), "--dist", "loadfile", "--no-loadscope-reorder")
        fine &= run(BIN / "pytest", *ways, *tests)
    if left:
        print(f"\nNOT RUN, and {len(left)} files that import what changed (make test runs them):")
        print("\n".join(f"  {file}" for file in left))
    if any(file.startswith(("charts/", "k3s/", "tests/cluster/")) for file in files):
        print("NOT RUN: make test-cluster, for what changed in charts, k3s or tests/cluster")
    print(f"{'fine' if fine else 'NOT FINE'} after {time.monotonic() - began_s:.0f} s, {len(files)} files changed")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
