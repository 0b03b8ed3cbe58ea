"""The mutants of `make mutants` fit the code as it is; whether their tests fail on them takes an hour to see."""

from pathlib import Path

import pytest

from mutants.data import Edit, Mutant, data_files, mutate, problems, read


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "code.py").write_text("a = 1\nb = 1\nc = 2\n")
    (tmp_path / "test_code.py").write_text("async def test_c():\n    assert True\n")
    return tmp_path


def mutant(old: str, new: str, *, test: str = "test_code.py::test_c[1]", file: str = "code.py") -> Mutant:
    return Mutant("X1", "a wrong change", (Edit(file, old, new),), (test,))


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (mutant("c = 2", "c = 3"), ""),
        (mutant("= 1", "= 3"), "occurs 2 times in code.py"),
        (mutant("d = 2", "d = 3"), "occurs 0 times in code.py"),
        (mutant("c = 2", "c = 3", file="gone.py"), "no file gone.py"),
        (mutant("c = 2", "c = "), "no Python any more"),
        (mutant("c = 2", "c = 2"), "leaves code.py as it is"),
        (mutant("c = 2", "c = 3", test="test_code.py::test_d"), "no test test_code.py::test_d"),
        (mutant("c = 2", "c = 3", test="test_gone.py::test_c"), "no test test_gone.py::test_c"),
        (Mutant("X1", "a change", (Edit("code.py", "c = 2", "c = 3"),)), "either `test` or `equivalent`"),
        (Mutant("X1", "a change", (), ("test_code.py::test_c",)), "has no edit"),
    ],
)
def test_a_mutant_that_cannot_be_run_is_named(tree: Path, found: Mutant, problem: str) -> None:
    reported = list(problems([found], tree))
    assert [problem in text for text in reported] == ([True] if problem else [])
    assert all(text.startswith("X1: ") for text in reported)


def test_two_mutants_of_one_id_are_named(tree: Path) -> None:
    assert list(problems([mutant("c = 2", "c = 3"), mutant("c = 2", "c = 4")], tree)) == ["X1: 2 mutants have this id"]


def test_edits_of_one_file_apply_one_after_another(tree: Path) -> None:
    edits = (Edit("code.py", "a = 1", "a = 5"), Edit("code.py", "b = 1", "b = 6"))
    assert mutate(Mutant("X1", "two changes", edits), tree) == {"code.py": "a = 5\nb = 6\nc = 2\n"}
    assert (tree / "code.py").read_text() == "a = 1\nb = 1\nc = 2\n"


def test_every_mutant_applies_once_and_names_a_test() -> None:
    assert list(problems(read(data_files()))) == []
