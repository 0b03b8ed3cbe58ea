"""Accepted against stored, field by field.

lost        accepted (machine, poll counter, timestamp) that is neither in sensor_data nor in a dead letter or gap
duplicated  rows too many: the same (machine, poll counter), or for samples without a poll the same (machine, timestamp)
mismatched  rows whose fields differ from what the machine answered, or that no poll of any machine answered
"""

import cmath
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import asyncpg

from cncmon_core.sample import FIELDS
from cncmon_simulator import poll_log
from cncmon_simulator.poll_log import Record
from cncmon_standalone.proof.accepted import AcceptedLog, Place, Taken

REL_TOLERANCE: Final = 1e-9
SAMPLES_AT_ONCE_MAX: Final = 200_000
"""Bounds the memory: machines are compared in groups that hold no more than this (or one machine)."""
EXAMPLES_MAX: Final = 10
COUNTER: Final = "poll_counter"
FLAG: Final = "time_uncertain"
_COLUMNS: Final = [name for name in FIELDS if name not in ("machine_id", "timestamp", "extras")]
_WHOLE_MESSAGE: Final = -1


@dataclass(frozen=True)
class Window:
    """The measured time, Unix ns: from when every machine has answered once, to the beginning of the stop.

    due: polls due in it. answered: machines that answered at all.
    """

    start_ns: int
    end_ns: int
    due: int = 0
    answered: int = 0

    @property
    def seconds(self) -> float:
        """Its length."""
        return max(0, self.end_ns - self.start_ns) / 1e9


@dataclass
class Verdict:
    """What the comparison found. `examples` says in words what is wrong with the first few."""

    answered: int = 0
    acquired: int = 0
    accepted: int = 0
    stored: int = 0
    dead_lettered: int = 0
    gaps: int = 0
    lost: int = 0
    duplicated: int = 0
    mismatched: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether the promise was kept."""
        return self.lost == self.duplicated == self.mismatched == 0

    def complain(self, text: str) -> None:
        """Keep the first few complaints."""
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(text)


async def compare(
    connection: asyncpg.Connection, accepted: AcceptedLog, polls: Path, window: Window, since: datetime
) -> Verdict:
    """Return the verdict on everything that was stored for times from `since` on.

    Raises:
        StandaloneError, OSError, asyncpg.PostgresError: the comparison could not be made.
    """
    verdict = Verdict()
    excused = await _Excused.load(connection, since)
    verdict.dead_lettered = excused.dead_letters
    counts = accepted.machines()
    stored_machines = await connection.fetch("SELECT machine_id FROM machines")
    for row in stored_machines:
        counts.setdefault(row["machine_id"], 0)
    for names in _groups(counts):
        taken: dict[str, list[Taken]] = {name: [] for name in names}
        for sample in accepted.samples(names.__contains__):
            taken[sample.machine_id].append(sample)
        answered: dict[str, dict[int, Record]] = {name: {} for name in names}
        for record in poll_log.read(polls):
            if record.machine_id in names:
                answered[record.machine_id][record.counter] = record
        for name in sorted(names):
            rows = await connection.fetch(
                "SELECT * FROM sensor_data WHERE machine_id = $1 AND time >= $2 ORDER BY time", name, since
            )
            _judge_machine(verdict, name, taken[name], answered[name], rows, excused, window)
    return verdict


def _groups(counts: Mapping[str, int]) -> Iterator[set[str]]:
    group: set[str] = set()
    size = 0
    for name, number in counts.items():
        if group and size + number > SAMPLES_AT_ONCE_MAX:
            yield group
            group, size = set(), 0
        group.add(name)
        size += number
    if group:
        yield group


class _Excused:
    """What is not in the table and accounted for all the same."""

    def __init__(self, frames: set[Place], ranges: list[tuple[int, int, int]], dead_letters: int) -> None:
        self._frames = frames
        self._ranges = ranges
        self.dead_letters = dead_letters

    @classmethod
    async def load(cls, connection: asyncpg.Connection, since: datetime) -> "_Excused":
        frames = set()
        rows = await connection.fetch(
            "SELECT identity, frame FROM dead_letters WHERE state = 'dead' AND created >= $1", since
        )
        for row in rows:
            epoch, _, seq = row["identity"].rpartition(":")
            if epoch.isdigit() and seq.isdigit():
                frames.add(Place(int(epoch), int(seq), row["frame"]))
        ranges = [
            (row["epoch"], row["seq_from"], row["seq_to"])
            for row in await connection.fetch("SELECT epoch, seq_from, seq_to FROM gaps WHERE declared >= $1", since)
        ]
        return cls(frames, ranges, len(rows))

    def is_dead(self, place: Place) -> bool:
        return place in self._frames or place._replace(frame=_WHOLE_MESSAGE) in self._frames

    def is_gap(self, place: Place) -> bool:
        return any(epoch == place.epoch and low <= place.seq <= high for epoch, low, high in self._ranges)


def _judge_machine(
    verdict: Verdict,
    name: str,
    taken: list[Taken],
    answered: Mapping[int, Record],
    rows: list[asyncpg.Record],
    excused: _Excused,
    window: Window,
) -> None:
    """Add one machine's samples to the verdict."""
    verdict.accepted += len(taken)
    verdict.stored += len(rows)
    stored: set[tuple[int | None, datetime]] = set()
    seen: set[int | datetime] = set()
    for row in rows:
        extras: dict[str, Any] = json.loads(row["extras"]) if row["extras"] else {}
        counter = extras.get(COUNTER)
        stored.add((counter, row["time"]))
        key = row["time"] if counter is None else counter
        if key in seen:
            verdict.duplicated += 1
            verdict.complain(f"duplicated: {name} poll {counter} at {row['time'].isoformat()}")
        seen.add(key)
        said = _difference(row, extras, answered.get(counter) if counter is not None else None)
        if said:
            verdict.mismatched += 1
            verdict.complain(f"mismatched: {name} poll {counter} at {row['time'].isoformat()}: {said}")
    verdict.answered += sum(window.start_ns <= record.t_ns < window.end_ns for record in answered.values())
    for sample in taken:
        record = answered.get(sample.counter) if sample.counter is not None else None
        if record and window.start_ns <= record.t_ns < window.end_ns:
            verdict.acquired += 1
        if (sample.counter, sample.timestamp) in stored:
            continue
        if excused.is_gap(sample.place):
            verdict.gaps += 1
        elif not excused.is_dead(sample.place):
            verdict.lost += 1
            place = f"epoch {sample.place.epoch}, seq {sample.place.seq}, frame {sample.place.frame}"
            verdict.complain(f"lost: {name} poll {sample.counter} at {sample.timestamp.isoformat()} ({place})")


def _difference(row: asyncpg.Record, extras: Mapping[str, Any], record: Record | None) -> str | None:
    """Return in words how a stored row differs from what the machine answered; None where it doesn't."""
    if record is None:
        if COUNTER not in extras and row["machine_state"] == "offline":
            return _not_silent(row, extras)
        return "no poll answered this"
    found = {name: row[name] for name in _COLUMNS if row[name] is not None} | dict(extras)
    for name, value in record.values.items():
        if not _same(found.pop(name, None), value):
            shown = row[name] if name in _COLUMNS else extras.get(name)
            return f"{name} is {shown!r}, the machine answered {value!r}"
    # What the agent itself adds.
    found.pop(FLAG, None)
    return f"the machine answered no {', '.join(found)}" if found else None


def _not_silent(row: asyncpg.Record, extras: Mapping[str, Any]) -> str | None:
    """A sample that says "offline" has nothing to say beside it: a value would be an invention."""
    values = [name for name in (*_COLUMNS, *extras) if name != "machine_state" and (row.get(name) or extras.get(name))]
    return f"offline, and yet it has {', '.join(values)}" if values else None


def _same(stored: Any, answered: Any) -> bool:
    if isinstance(answered, float) or isinstance(stored, float):
        if not isinstance(stored, int | float) or not isinstance(answered, int | float):
            return False
        close = math.isclose(stored, answered, rel_tol=REL_TOLERANCE, abs_tol=0.0) or stored == answered
        # What a controller sends as a 32-bit float is said in the nine digits that it has.
        return close or stored == float(f"{answered:.9g}")
    return type(stored) is type(answered) and bool(stored == answered)


def window_of(polls: Path, end_ns: int, period_ns: int, machines: int) -> Window:
    """Return the measured window, and how many polls were due in it.

    A machine is due once a period, at its own place within the period: where its polls lay on average (the circular
    mean: Mardia & Jupp, "Directional Statistics", section 2.2). A machine that never answered counts for every period.
    """
    first: dict[str, int] = {}
    sums: dict[str, complex] = {}
    for record in poll_log.read(polls):
        name = record.machine_id
        first.setdefault(name, record.t_ns)
        sums[name] = sums.get(name, 0j) + cmath.exp(2j * cmath.pi * (record.t_ns % period_ns) / period_ns)
    start_ns = max(first.values(), default=end_ns)
    due = (machines - len(first)) * ((end_ns - start_ns) // period_ns)
    for total in sums.values():
        offset_ns = round(cmath.phase(total) / (2 * cmath.pi) * period_ns) % period_ns
        due += (end_ns - 1 - offset_ns) // period_ns - (start_ns - 1 - offset_ns) // period_ns
    return Window(start_ns, end_ns, due, len(first))


def as_utc(seconds: float) -> datetime:
    """Return a Unix time as PostgreSQL takes it."""
    return datetime.fromtimestamp(seconds, UTC)
