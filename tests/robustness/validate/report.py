"""What a scenario says at its end: one line for people, one row for docs/robustness.md."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

HEADINGS = (
    *("scenario", "seed", "faults injected", "edges", "batches", "samples sent", "lost", "duplicated", "altered"),
    *("in gaps", "dead letters", "recovery p50 / p99 / max (s)", "beside that"),
)


@dataclass
class Result:
    """One scenario's outcome, as it travels between test processes: only what JSON can hold."""

    scenario: str
    seed: int
    faults: dict[str, int] = field(default_factory=dict)
    edges: int = 0
    batches: int = 0
    sent: int = 0
    lost: int = 0
    duplicated: int = 0
    altered: int = 0
    gaps: int = 0
    dead: int = 0
    recovery_s: list[float] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)

    def cells(self) -> list[str]:
        """Return the cells of the table's row."""
        faults = ", ".join(f"{number} × {what}" for what, number in self.faults.items())
        numbers = (self.edges, self.batches, self.sent, self.lost, self.duplicated, self.altered, self.gaps, self.dead)
        recovery = " / ".join(f"{value:.2f}" for value in percentiles(self.recovery_s)) if self.recovery_s else "–"
        notes = "; ".join(f"{what} {value}" for what, value in self.notes.items())
        return [self.scenario, str(self.seed), faults, *(f"{number:,}" for number in numbers), recovery, notes]

    def line(self) -> str:
        """Return it for people."""
        return "robustness: " + ", ".join(
            f"{heading}: {cell}" for heading, cell in zip(HEADINGS, self.cells(), strict=True) if cell
        )

    def encode(self) -> str:
        """Return it as JSON."""
        return msgspec.json.encode(self).decode()

    @staticmethod
    def decode(text: str) -> "Result":
        """Return what `encode` was given."""
        return msgspec.json.decode(text, type=Result)


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return p50, p99 (nearest rank: as few as there are, it is the largest) and the largest."""
    ordered = sorted(values)
    return (_rank(ordered, 0.50), _rank(ordered, 0.99), ordered[-1])


def _rank(ordered: Sequence[float], share: float) -> float:
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def table(results: Sequence[Result]) -> list[str]:
    """Return a markdown table with a last row of sums."""
    rows = [list(HEADINGS), ["---"] * len(HEADINGS), *(result.cells() for result in results), _sums(results)]
    return ["| " + " | ".join(cells) + " |" for cells in rows]


def _sums(results: Sequence[Result]) -> list[str]:
    faults = sum((Counter(result.faults) for result in results), Counter[str]())
    total = Result(f"all {len(results)}", 0, {"fault": faults.total()})
    for result in results:
        for name in ("edges", "batches", "sent", "lost", "duplicated", "altered", "gaps", "dead"):
            setattr(total, name, getattr(total, name) + getattr(result, name))
        total.recovery_s += result.recovery_s
    cells = [f"**{cell}**" if cell else "" for cell in total.cells()]
    cells[1] = ""
    return cells
