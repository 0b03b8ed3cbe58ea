"""Running tests in a copy of the repository, one mutant at a time, and judging what came of it."""

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path

import msgspec
import psutil

from cncmon_standalone.embedded.process import dying_with_parent
from mutants.contained import TIMED_OUT
from mutants.data import Mutant
from mutants.tree import Tree

LIMIT_S_MIN = 420.0
LIMIT_FACTOR = 20.0
"""A mutant's test has this many times as long as it takes on the code as it is, and never less than the minimum, within
which the longest wait of a test ends and gives its reason.
"""

UNMUTATED_S_MAX = 1800.0

PLUGINS = ("no:cacheprovider", "no:xdist", "mutants.brief_examples")


class Verdict(StrEnum):
    """What a mutant's test said."""

    RED = "red"
    TIME_LIMIT = "red (time limit)"
    SURVIVED = "survived"
    ERROR = "error"


class Outcome(msgspec.Struct, frozen=True):
    """How a run of tests ended. reason: pytest's first line of the first failure, or what went wrong."""

    verdict: Verdict
    seconds: float
    reason: str = ""


class Pool:
    """Copies of the repository for so many jobs."""

    def __init__(self, folder: Path, jobs: int) -> None:
        self._executor = ThreadPoolExecutor(jobs)
        self._trees: queue.SimpleQueue[Tree] = queue.SimpleQueue()
        for number in range(jobs):
            self._trees.put(Tree(folder / str(number) / "tree"))

    def each[T, R](self, things: Iterable[T], run: Callable[[Tree, T], R]) -> Iterable[tuple[T, R]]:
        """Call `run` for each thing with a copy of its own; yield thing and result in the order of the things."""

        def one(thing: T) -> R:
            tree = self._trees.get()
            try:
                return run(tree, thing)
            finally:
                self._trees.put(tree)

        things = list(things)
        yield from zip(things, self._executor.map(one, things), strict=True)

    def close(self) -> None:
        """Begin nothing more, and end what runs: each child of this process ends what is below it."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        for child in psutil.Process().children():
            child.terminate()
        self._executor.shutdown()


def run_mutant(tree: Tree, mutant: Mutant, unmutated_s: float) -> Outcome:
    """Apply a mutant to a copy, run its tests, and restore the copy."""
    try:
        tree.apply(mutant)
        return run_tests(tree, mutant.test, max(LIMIT_S_MIN, LIMIT_FACTOR * unmutated_s))
    finally:
        tree.restore()


def run_tests(tree: Tree, tests: Iterable[str], limit_s: float) -> Outcome:
    """Run some tests in a copy until the first fails."""
    with _run(tree, ["-x", *tests], limit_s) as run:
        return _judge(run)


def run_unmutated(tree: Tree, tests: list[str]) -> dict[str, Outcome]:
    """Run tests of one file in a copy that is not mutated; return how each went."""
    with _run(tree, tests, UNMUTATED_S_MAX) as run:
        cases = {case.get("name", ""): case for case in run.cases()}
        whole = _judge(run)
    if whole.verdict is Verdict.ERROR and not any(name for name in cases):
        return dict.fromkeys(tests, whole)
    return {test: _outcome(_cases_of(test, cases), whole) for test in tests}


def _cases_of(test: str, cases: Mapping[str, ET.Element]) -> list[ET.Element]:
    """Return what ran of a test, which may be named without its parameters."""
    name = test.partition("::")[2]
    return [case for each, case in cases.items() if each == name or each.startswith(f"{name}[")]


def _outcome(cases: Sequence[ET.Element], whole: Outcome) -> Outcome:
    if not cases:
        return Outcome(Verdict.ERROR, whole.seconds, f"did not run: {whole.reason}")
    seconds = sum(float(case.get("time", "0")) for case in cases)
    for case in cases:
        for found in case:
            if found.tag in ("failure", "error", "skipped"):
                return Outcome(Verdict.ERROR, seconds, f"{found.tag}: {_first_line(found)}")
    return Outcome(Verdict.SURVIVED, seconds)


class _Run(msgspec.Struct, frozen=True):
    """How pytest ended. report: its JUnit file, which is not there where it was ended."""

    status: int
    output: str
    seconds: float
    report: Path

    @property
    def tail(self) -> str:
        """The last lines of the output."""
        return " | ".join(self.output.strip().splitlines()[-3:])[-400:]

    def cases(self) -> list[ET.Element]:
        """Return the tests that ran."""
        return list(ET.parse(self.report).getroot().iter("testcase")) if self.report.exists() else []


@contextlib.contextmanager
def _run(tree: Tree, arguments: Iterable[str], limit_s: float) -> Iterator[_Run]:
    """Run pytest in a copy, with a folder for temporary files that is removed at the end."""
    scratch = tree.folder.parent / "t"
    shutil.rmtree(tree.folder / ".hypothesis", ignore_errors=True)
    scratch.mkdir()
    # PostgreSQL runs as another user, and its data lie in there.
    scratch.chmod(0o755)
    report = scratch / "report.xml"
    plugins = [option for name in PLUGINS for option in ("-p", name)]
    pytest = ["-m", "pytest", "-q", *plugins, f"--junitxml={report}", *arguments]
    begun = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "mutants.contained", str(limit_s), str(tree.python), *pytest],
            cwd=tree.folder,
            env=_environ() | {"TMPDIR": str(scratch)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            preexec_fn=dying_with_parent(signal.SIGTERM),
        )
        yield _Run(done.returncode, done.stdout, time.monotonic() - begun, report)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _environ() -> dict[str, str]:
    """Return our environment without what steers our programs, pytest or Python's search for modules."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("CNCMON_", "PG", "PY"))}


def _judge(run: _Run) -> Outcome:
    """Return what a run of pytest as a whole says, as if the copy were mutated."""
    if run.status == TIMED_OUT:
        return Outcome(Verdict.TIME_LIMIT, run.seconds, "the run was ended")
    if not run.report.exists():
        # pytest-timeout ends the process at once.
        if "Timeout" in run.output:
            return Outcome(Verdict.TIME_LIMIT, run.seconds, "the test's own time limit")
        return Outcome(Verdict.ERROR, run.seconds, run.tail)
    found = [result for case in run.cases() for result in case]
    if run.status == 0:
        left_out = not run.cases() or any(result.tag == "skipped" for result in found)
        return Outcome(Verdict.ERROR, run.seconds, run.tail) if left_out else Outcome(Verdict.SURVIVED, run.seconds)
    if run.status != 1:
        # A test that can't be imported or found says nothing about its assertions.
        return Outcome(Verdict.ERROR, run.seconds, run.tail)
    failure = next((result for result in found if result.tag in ("failure", "error")), None)
    return Outcome(Verdict.RED, run.seconds, run.tail if failure is None else _first_line(failure))


def _first_line(result: ET.Element) -> str:
    return ((result.get("message") or "").splitlines() or [""])[0][:200]
