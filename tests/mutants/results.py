"""What earlier runs found, kept so that a long run can be done in parts, and the table of a run."""

import hashlib
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

import msgspec

from mutants.data import ROOT, Mutant
from mutants.runner import Outcome, Verdict

KEPT = ROOT / "build" / "mutants.jsonl"
"""Results of earlier runs, one JSON document a line; `make clean` removes it."""


class Kept(msgspec.Struct, frozen=True):
    """One result. key: digest of all that it depends on as far as that can be told."""

    key: str
    outcome: Outcome


class Results:
    """The results by key, on disk as soon as they are there."""

    def __init__(self, path: Path = KEPT) -> None:
        self._path = path
        self._found: dict[str, Outcome] = {}
        self._source = _digest(_source())

    def load(self) -> None:
        """Take up what earlier runs found."""
        if self._path.exists():
            for line in self._path.read_bytes().splitlines():
                kept = msgspec.json.decode(line, type=Kept)
                self._found[kept.key] = kept.outcome

    def of_test(self, test: str) -> str:
        """Return the key of a test on the code as it is: it may depend on every file."""
        return _digest([self._source, test.encode()])

    def of_mutant(self, mutant: Mutant) -> str:
        """Return the key of a mutant: itself, the files it edits and those of its tests."""
        files = [*mutant.files, *dict.fromkeys(test.partition("::")[0] for test in mutant.test)]
        return _digest([msgspec.json.encode(mutant), *((ROOT / file).read_bytes() for file in files)])

    def get(self, key: str) -> Outcome | None:
        """Return the result kept under a key."""
        return self._found.get(key)

    def put(self, key: str, outcome: Outcome) -> None:
        """Keep a result."""
        self._found[key] = outcome
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(Kept(key, outcome)) + b"\n")


def _source() -> Iterable[bytes]:
    """Yield name and content of every file that a test may depend on."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "services", "tests", ":!tests/mutants"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    for name in sorted(listed.split(b"\0")):
        path = ROOT / os.fsdecode(name)
        if name and path.is_file():
            yield name
            yield path.read_bytes()


def _digest(parts: Iterable[bytes | str]) -> str:
    found = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        found.update(len(content).to_bytes(8) + content)
    return found.hexdigest()


def table(rows: Iterable[tuple[Mutant, Outcome | None]]) -> list[str]:
    """Return the table as lines of markdown; a mutant without an outcome is equivalent."""
    lines = ["| id | what | test | result | s |", "|---|---|---|---|---:|"]
    for mutant, outcome in rows:
        tests = ", ".join(f"`{test.rpartition('/')[2]}`" for test in mutant.test) or mutant.equivalent
        verdict, seconds = ("equivalent", "") if outcome is None else (str(outcome.verdict), f"{outcome.seconds:.0f}")
        lines.append(f"| {mutant.id} | {_cell(mutant.what)} | {_cell(tests)} | {verdict} | {seconds} |")
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def summary(outcomes: Iterable[Outcome], equivalent: int) -> str:
    """Return the run's last line."""
    verdicts = [outcome.verdict for outcome in outcomes]
    line = f"{len(verdicts)} mutants, {verdicts.count(Verdict.SURVIVED)} survivors"
    for count, what in (
        (verdicts.count(Verdict.ERROR), "errors"),
        (verdicts.count(Verdict.TIME_LIMIT), "red by a time limit alone"),
        (equivalent, "equivalent ones not counted"),
    ):
        line += f", {count} {what}" if count else ""
    return line
