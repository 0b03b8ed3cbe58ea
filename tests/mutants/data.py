"""The mutants: reading their files, and whether each still applies to the code."""

import ast
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[2]
"""The repository."""

FOLDER = Path(__file__).parent
"""Where the data lie."""


class Edit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One replacement. file: relative to the repository. old: text that occurs exactly once in it."""

    file: str
    old: str
    new: str


class Mutant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One wrong change. test: pytest's name of the test that must fail, or several of which one must.

    equivalent: why no run can tell the change from the code, instead of `test`.
    """

    id: str
    what: str
    edit: tuple[Edit, ...]
    test: tuple[str, ...] = ()
    equivalent: str = ""

    @property
    def files(self) -> list[str]:
        """The files it changes, each once."""
        return list(dict.fromkeys(edit.file for edit in self.edit))


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    mutant: tuple[Mutant, ...]


def data_files() -> list[Path]:
    """Return the files of mutants, by name."""
    return sorted(FOLDER.glob("*.toml"))


def read(files: Iterable[Path]) -> list[Mutant]:
    """Return the mutants of some files.

    Raises:
        msgspec.ValidationError, tomllib.TOMLDecodeError: a file is not of the format; names it.
    """
    found: list[Mutant] = []
    for file in files:
        try:
            found += msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), _File).mutant
        except (msgspec.ValidationError, tomllib.TOMLDecodeError) as error:
            error.add_note(f"in {file}")
            raise
    return found


def mutate(mutant: Mutant, root: Path = ROOT) -> dict[str, str]:
    """Return the changed text of each file that a mutant edits. Nothing is written.

    Raises:
        ValueError: an edit does not apply; says which and why.
    """
    texts: dict[str, str] = {}
    for edit in mutant.edit:
        path = root / edit.file
        if edit.file not in texts and not path.is_file():
            raise ValueError(f"{mutant.id}: there is no file {edit.file}")
        text = texts.get(edit.file) or path.read_text(encoding="utf-8")
        count = text.count(edit.old)
        if count != 1:
            raise ValueError(f"{mutant.id}: its text occurs {count} times in {edit.file}, must once: {edit.old!r}")
        texts[edit.file] = text.replace(edit.old, edit.new)
    return texts


def problems(mutants: Iterable[Mutant], root: Path = ROOT) -> Iterator[str]:
    """Yield what is wrong with mutants without running one: ids, edits that do not apply, tests that are not there."""
    mutants = list(mutants)
    for name, count in Counter(mutant.id for mutant in mutants).items():
        if count > 1:
            yield f"{name}: {count} mutants have this id"
    for mutant in mutants:
        if not mutant.edit:
            yield f"{mutant.id}: has no edit"
        if bool(mutant.test) == bool(mutant.equivalent):
            yield f"{mutant.id}: must have either `test` or `equivalent`"
        try:
            changed = mutate(mutant, root)
        except ValueError as error:
            yield str(error)
        else:
            yield from _not_runnable(mutant, changed, root)
        for test in mutant.test:
            file, _, name = test.partition("::")
            function = name.partition("[")[0]
            if not (root / file).is_file() or function not in _functions((root / file).read_text(encoding="utf-8")):
                yield f"{mutant.id}: there is no test {test}"


def _not_runnable(mutant: Mutant, changed: dict[str, str], root: Path) -> Iterator[str]:
    for file, text in changed.items():
        if text == (root / file).read_text(encoding="utf-8"):
            yield f"{mutant.id}: leaves {file} as it is"
        if file.endswith((".c", ".ts", ".tsx")):
            yield f"{mutant.id}: {file} is compiled, which the runner does not do"
        if file.endswith(".py"):
            try:
                ast.parse(text)
            except SyntaxError as error:
                yield f"{mutant.id}: {file} is no Python any more: {error}"


def _functions(text: str) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
