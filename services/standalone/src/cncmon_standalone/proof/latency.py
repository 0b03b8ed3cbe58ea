"""From acquisition to queryable: what the outside reader saw, against when the simulated machine answered that poll."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from cncmon_simulator import poll_log
from cncmon_standalone.proof.accepted import AcceptedLog
from cncmon_standalone.proof.compare import Window

PROBES_MAX = 8
"""Machines that the reader follows: enough to see every part of a fleet, few enough to cost little."""


class Latency(NamedTuple):
    """In milliseconds. samples: how many were measured; unseen: accepted in the window and never seen by the reader."""

    p50: float | None
    p99: float | None
    max: float | None
    samples: int
    unseen: int


def probes_of(machines: Sequence[str]) -> list[str]:
    """Return a handful of machines spread evenly over all."""
    ordered = sorted(machines)
    number = min(PROBES_MAX, len(ordered))
    return [ordered[index * len(ordered) // number] for index in range(number)]


def measure(seen_file: Path, accepted: AcceptedLog, polls: Path, window: Window, probes: Iterable[str]) -> Latency:
    """Return the latencies of all samples of the probes that were answered within the window and accepted."""
    names = set(probes)
    seen = {
        (name, counter): at_ns
        for name, counter, at_ns in reversed(
            msgspec.json.decode(seen_file.read_bytes(), type=list[tuple[str, int, int]])
        )
    }
    taken = {(sample.machine_id, sample.counter) for sample in accepted.samples(names.__contains__)}
    found: list[float] = []
    unseen = 0
    for record in poll_log.read(polls):
        key = (record.machine_id, record.counter)
        if key not in taken or not window.start_ns <= record.t_ns < window.end_ns:
            continue
        if key in seen:
            found.append((seen[key] - record.t_ns) / 1e6)
        else:
            unseen += 1
    found.sort()
    return Latency(
        p50=percentile(found, 0.50),
        p99=percentile(found, 0.99),
        max=round(found[-1], 1) if found else None,
        samples=len(found),
        unseen=unseen,
    )


def percentile(ordered: Sequence[float], part: float) -> float | None:
    """Return the nearest-rank percentile of sorted values; None of none."""
    if not ordered:
        return None
    return round(ordered[max(0, math.ceil(part * len(ordered)) - 1)], 1)
