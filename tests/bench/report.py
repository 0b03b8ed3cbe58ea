"""What every benchmark prints: a table for people and, with `--json FILE`, the same for programs.

A figure has a limit: what was measured in the same run as the floor or ceiling. The machine is shared and its speed
drifts; the ratio to the limit does not.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from cncmon_core import logs


@dataclass(frozen=True)
class Figure:
    """One result. reach: what it must be, `at_least` or `at_most`; None where it is only reported."""

    value: float
    unit: str
    limit: float | None = None
    limit_is: str = ""
    reach: float | None = None
    better: Literal["at_least", "at_most"] = "at_least"

    @property
    def ok(self) -> bool | None:
        """Whether it reaches what it must; None where nothing is demanded."""
        if self.reach is None:
            return None
        return self.value >= self.reach if self.better == "at_least" else self.value <= self.reach

    @property
    def ratio(self) -> float | None:
        """Value by limit."""
        return round(self.value / self.limit, 4) if self.limit else None


@dataclass
class Report:
    """The figures of one program, and what it left out."""

    figures: dict[str, Figure] = field(default_factory=dict)
    not_run: list[str] = field(default_factory=list)

    def add(self, name: str, figure: Figure) -> None:
        """Add a figure and print it at once: a long run must not be silent."""
        self.figures[name] = figure
        print(_row(name, figure), flush=True)


def machine() -> dict[str, object]:
    """Return what the figures were measured on."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    memory_kb = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_kb / 2**20, 1),
        "python": platform.python_version(),
        "kernel": platform.release(),
    }


def _row(name: str, figure: Figure) -> str:
    sign = "≥" if figure.better == "at_least" else "≤"
    reach = f"{sign} {figure.reach:,g}" if figure.reach is not None else ""
    verdict = {True: "reached", False: "MISSED", None: ""}[figure.ok]
    limit = f"{figure.ratio:,.2f} of {figure.limit:,.4g} ({figure.limit_is})" if figure.limit else ""
    return f"{name:<44}{figure.value:>12,.4g} {figure.unit:<10}{reach:>12} {verdict:<8} {limit}"


def run(name: str, measure: Callable[[Report, bool], None]) -> int:
    """Run a program's measurement with the common options; return 1 where a figure misses its reach."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="at most 60 s; says by name what is not run")
    options = parser.parse_args()
    logs.setup(name, "error")
    report = Report()
    where = machine()
    print(
        f"{name}: {where['cores']} cores, {where['memory_gib']} GiB, {where['cpu']}, Python {where['python']}",
        flush=True,
    )
    measure(report, options.quick)
    for left_out in report.not_run:
        print(f"not run (--quick): {left_out}")
    if options.json:
        options.json.write_text(json.dumps(as_json(report), indent=2) + "\n")
    return 1 if any(figure.ok is False for figure in report.figures.values()) else 0


def as_json(report: Report) -> dict[str, object]:
    """Return the report as programs read it."""
    figures = {
        name: {**asdict(figure), "ratio": figure.ratio, "ok": figure.ok} for name, figure in report.figures.items()
    }
    return {"machine": machine(), "figures": figures, "not_run": report.not_run}
