"""The figures of a measured demo, for programs and for people."""

from typing import Any

import msgspec
from rich.markup import escape

from cncmon_standalone.console import Progress
from cncmon_standalone.proof.latency import Latency

KILLED_AGENT_NOTE = (
    "the agent was killed: what it had synced to its disk, or the stream had acknowledged, counts as accepted"
)
OUTAGE_NOTE = "the outage is included in latency_ms and in due"


class Figures(msgspec.Struct, kw_only=True):
    """What a measured demo found.

    due: polls due in the window. answered: polls that the machines answered in it. acquired: of these, accepted by the
    agent. accepted: everything it accepted, with what came before and after the window. stored: rows. gaps: accepted
    samples declared as dropped. latency_ms: from the simulated machine's answer to the first query that sees the row,
    over all samples of `probes` machines in the window; unseen: those the reader never saw. agent_rss_mb: highest, in
    10^6 bytes. agent_cpu_us_per_sample: user and system time in the window. recovery_s: from kill -9 until the part was
    ready again. examples: what is wrong with the first few.
    """

    acquired: int
    due: int
    answered: int
    stored: int
    dead_lettered: int
    lost: int
    duplicated: int
    gaps: int
    mismatched: int
    latency_ms: dict[str, float | int | None]
    agent_rss_mb: float
    agent_cpu_us_per_sample: float | None
    accepted: int
    acquired_percent: float | None
    seconds: float
    machines: int
    hz: float
    behaviour: str
    seed: int
    workers: int
    killed: str | None
    recovery_s: float | None
    restarts: dict[str, int]
    notes: list[str]
    examples: list[str]

    @property
    def holds(self) -> bool:
        """Whether the promise was kept."""
        return self.lost == self.duplicated == self.mismatched == 0


def latency_document(latency: Latency, probes: int) -> dict[str, float | int | None]:
    """Return latencies as they stand in the figures."""
    return {**latency._asdict(), "probes": probes}


def show(figures: Figures, progress: Progress) -> None:
    """Print the figures for people."""
    rows: list[tuple[str, str, str]] = [
        (
            "acquired",
            f"{figures.acquired:,}",
            f"of {figures.due:,} polls due in {figures.seconds:.1f} s; {figures.answered:,} were answered",
        ),
        ("stored", f"{figures.stored:,}", f"of {figures.accepted:,} accepted by the agent"),
        ("lost", _count(figures.lost), "accepted, and neither stored nor listed"),
        ("duplicated", _count(figures.duplicated), "stored more than once"),
        ("mismatched", _count(figures.mismatched), "not as the machine answered"),
        ("dead letters", f"{figures.dead_lettered:,}", ""),
        ("gaps", f"{figures.gaps:,}", "accepted, and declared as dropped"),
        ("latency", _ms(figures.latency_ms), "from the machine's answer to queryable"),
        ("agent", f"{figures.agent_rss_mb:.1f} MB", _cpu(figures)),
    ]
    if figures.killed:
        again = "not ready again" if figures.recovery_s is None else f"ready again after {figures.recovery_s:.1f} s"
        rows.append(("killed", figures.killed, again))
    progress.line()
    for name, value, meaning in rows:
        progress.line(f"  {name:<13} {value:>12}   [dim]{escape(meaning)}[/]")
    for note in figures.notes:
        progress.line(f"  [dim]{escape(note)}[/]")
    progress.line()
    for example in figures.examples:
        progress.warn(example)
    if figures.holds:
        progress.line("  [green]√ Every accepted sample is stored exactly once, as the machine gave it.[/]")
    else:
        progress.line("  [red]× The promise was not kept.[/]")


def _count(number: int) -> str:
    return "0" if number == 0 else f"[red]{number:,}[/]"


def _ms(latency: dict[str, Any]) -> str:
    if latency["p50"] is None:
        return "not measured"
    return f"p50 {latency['p50']:.0f}, p99 {latency['p99']:.0f}, max {latency['max']:.0f} ms"


def _cpu(figures: Figures) -> str:
    if figures.agent_cpu_us_per_sample is None:
        return "memory at most"
    return f"memory at most; {figures.agent_cpu_us_per_sample:.0f} µs of processor time a sample"
