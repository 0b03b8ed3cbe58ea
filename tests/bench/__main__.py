"""Runs every benchmark, each in a process of its own. `--quick` and `--json FILE` as for each of them."""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAMS = ("codec", "startup", "capture", "main_job", "pipeline", "query", "footprint", "control", "edge", "operator")


def main() -> int:
    """Run all of them; return 1 where one misses a reach."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--quick", action="store_true", help="at most 60 s; says by name what is not run")
    options = parser.parse_args()
    merged: dict[str, object] = {}
    figures: dict[str, object] = {}
    not_run: list[str] = []
    status = 0
    with tempfile.TemporaryDirectory() as folder:
        for program in PROGRAMS:
            out = Path(folder) / f"{program}.json"
            command = [sys.executable, "-m", f"bench.{program}", "--json", str(out)]
            status |= subprocess.run([*command, "--quick"] if options.quick else command, check=False).returncode
            if out.exists():
                found = json.loads(out.read_text())
                merged["machine"] = found["machine"]
                figures |= found["figures"]
                not_run += found["not_run"]
            print()
    if options.json:
        options.json.write_text(json.dumps(merged | {"figures": figures, "not_run": not_run}, indent=2) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
