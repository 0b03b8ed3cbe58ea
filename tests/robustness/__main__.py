"""Runs a round of the robustness tests: the long one, unless told otherwise. Ends with its table.

What follows the options is given to pytest: `python -m robustness -k outage`.
"""

import argparse
import os
import sys
from pathlib import Path

import pytest


def main() -> int:
    """Run the round in a pytest of this process, one test at a time: they measure times, and share two cores."""
    parser = argparse.ArgumentParser(prog="python -m robustness", description=__doc__)
    parser.add_argument("--short", action="store_true", help="the round of `make faults`")
    parser.add_argument("--markdown", type=Path, help="write the table to this file, as rows for docs/robustness.md")
    parser.add_argument("--seed", type=int, help="repeat a round; without it, each has its own")
    options, others = parser.parse_known_args()
    os.environ["CNCMON_ROBUSTNESS"] = "short" if options.short else "long"
    if options.markdown:
        os.environ["CNCMON_ROBUSTNESS_TABLE"] = str(options.markdown)
    if options.seed is not None:
        os.environ["CNCMON_ROBUSTNESS_SEED"] = str(options.seed)
    return pytest.main([str(Path(__file__).parent), "-p", "no:xdist", *others])


if __name__ == "__main__":
    sys.exit(main())
