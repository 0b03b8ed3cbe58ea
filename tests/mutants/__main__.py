"""Applies every mutant to a copy of the repository and runs the test that must fail on it. A survivor fails the run.

Each distinct test runs once on the code as it is first: one that fails there too proves nothing.
"""

import argparse
import contextlib
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mutants.data import Mutant, data_files, problems, read
from mutants.results import Results, summary, table
from mutants.runner import Outcome, Pool, Verdict, run_mutant, run_unmutated


def main() -> int:
    """Run what the command line names; return 0 where every mutant was caught."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options = _options()
    wanted = [
        file for file in data_files() if not options.only or file.stem in options.only or file.name in options.only
    ]
    mutants = [mutant for mutant in read(wanted) if _is_chosen(mutant, options.k)]
    found = list(problems(mutants))
    for problem in found:
        print(problem, file=sys.stderr)
    if found or options.check:
        print(f"{len(mutants)} mutants, {len(found)} that can't be run")
        return 1 if found else 0
    results = Results()
    if options.resume:
        results.load()
    counted = [mutant for mutant in mutants if mutant.test]
    with _pool(options.jobs) as pool:
        seconds = _run_unmutated(pool, counted, results)
        outcomes = _run_mutants(pool, counted, results, seconds)
    lines = table((mutant, outcomes.get(mutant.id)) for mutant in mutants)
    last = summary(outcomes.values(), len(mutants) - len(counted))
    print("\n".join([*lines, "", last]))
    if options.markdown:
        options.markdown.write_text("\n".join([*lines, "", last]) + "\n", encoding="utf-8")
    return 0 if {outcome.verdict for outcome in outcomes.values()} <= {Verdict.RED, Verdict.TIME_LIMIT} else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mutants", description=__doc__)
    parser.add_argument("-k", metavar="TEXT", help="only mutants with this text in id, description, file or test")
    parser.add_argument(
        "--only", action="append", metavar="FILE", help="only the mutants of this data file; repeatable"
    )
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time, each in a copy of its own (default 1)")
    parser.add_argument(
        "--resume", action="store_true", help="skip what an earlier run found red and nothing has changed of"
    )
    parser.add_argument("--check", action="store_true", help="only look whether all apply and all tests are there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table to this file too")
    return parser.parse_args()


def _is_chosen(mutant: Mutant, text: str | None) -> bool:
    return text is None or any(text in part for part in (mutant.id, mutant.what, *mutant.files, *mutant.test))


@contextlib.contextmanager
def _pool(jobs: int) -> Iterator[Pool]:
    with tempfile.TemporaryDirectory(prefix="cncmon-mutants-") as name:
        folder = Path(name)
        # PostgreSQL runs as another user, and its data lie in there.
        folder.chmod(0o755)
        pool = Pool(folder, jobs)
        try:
            yield pool
        finally:
            pool.close()


def _run_unmutated(pool: Pool, mutants: list[Mutant], results: Results) -> dict[str, Outcome]:
    """Run each distinct test on the code as it is; return how it went."""
    tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.test))
    found = {test: known for test in tests if (known := results.get(results.of_test(test)))}
    by_file: dict[str, list[str]] = {}
    for test in tests:
        if test not in found:
            by_file.setdefault(test.partition("::")[0], []).append(test)
    for _, outcomes in pool.each(by_file.values(), run_unmutated):
        for test, outcome in outcomes.items():
            found[test] = outcome
            if outcome.verdict is Verdict.SURVIVED:
                results.put(results.of_test(test), outcome)
            else:
                print(f"{test} fails on the code as it is: {outcome.reason}", flush=True)
    return found


def _run_mutants(
    pool: Pool, mutants: list[Mutant], results: Results, unmutated: dict[str, Outcome]
) -> dict[str, Outcome]:
    """Run each mutant; return the outcomes by id."""
    # The code may change while this runs, but not the copies.
    keys = {mutant.id: results.of_mutant(mutant) for mutant in mutants}
    found = {mutant.id: known for mutant in mutants if (known := results.get(keys[mutant.id]))}
    due: list[Mutant] = []
    for mutant in mutants:
        bad = [test for test in mutant.test if unmutated[test].verdict is not Verdict.SURVIVED]
        if bad:
            found[mutant.id] = Outcome(Verdict.ERROR, 0, f"{bad[0]} fails on the code as it is")
        elif mutant.id not in found:
            due.append(mutant)
    for mutant, outcome in pool.each(
        due, lambda tree, mutant: run_mutant(tree, mutant, sum(unmutated[test].seconds for test in mutant.test))
    ):
        found[mutant.id] = outcome
        print(f"{mutant.id}: {outcome.verdict} after {outcome.seconds:.0f} s: {outcome.reason}", flush=True)
        if outcome.verdict in (Verdict.RED, Verdict.TIME_LIMIT):
            results.put(keys[mutant.id], outcome)
    return {mutant.id: found[mutant.id] for mutant in mutants}


if __name__ == "__main__":
    sys.exit(main())
