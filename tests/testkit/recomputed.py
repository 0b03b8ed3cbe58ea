"""Rollups and state intervals computed anew in plain Python over the raw rows, sharing nothing with the SQL."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

FLOATS = (
    *("temperature", "spindle_speed", "x_pos_mm", "y_pos_mm", "z_pos_mm", "feed_rate_actual"),
    *("spindle_load_percent", "total_power_kw", "anomaly_score"),
)
NUMERIC = (*FLOATS, "active_program_line", "part_count", "tool_number")
PRIORITY = ("offline", "alarm", "hold", "running", "idle")
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
Row = dict[str, Any]


@dataclass(frozen=True)
class Span:
    """A state over [begins, ends)."""

    begins: datetime
    ends: datetime
    what: tuple[str, str | None, str | None]


def evidence(row: Row) -> tuple[str, str | None, str | None]:
    """Return state, program and alarm that one sample is evidence of."""
    extras = row["extras"] or {}
    raw = extras.get("alarm_code", extras.get("alarm"))
    alarm = None if raw in (None, 0, "", "0", False) else str(raw)
    state = row["machine_state"]
    if state == "offline":
        return "offline", None, None
    if state == "alarm" or alarm is not None:
        return "alarm", row["program"], alarm
    if state is not None:
        return state, row["program"], None
    measured = [row[name] for name in FLOATS if name != "anomaly_score"]
    if all(value is None for value in measured):
        return "offline", None, None
    turning = bool(row["spindle_speed"]) or bool(row["feed_rate_actual"])
    return "running" if turning else "idle", row["program"], None


def spans(rows: Iterable[Row], stale_after: timedelta) -> list[Span]:
    """Return the state intervals of one machine."""

    def order(what: tuple[str, str | None, str | None]) -> tuple[Any, ...]:
        return PRIORITY.index(what[0]), *((text is None, text or "") for text in what[1:])

    moments: dict[datetime, tuple[str, str | None, str | None]] = {}
    for row in rows:
        found = evidence(row)
        known = moments.get(row["time"])
        moments[row["time"]] = found if known is None or order(found) < order(known) else known
    times = sorted(moments)
    spans: list[Span] = []

    def add(begins: datetime, ends: datetime, what: tuple[str, str | None, str | None]) -> None:
        if spans and spans[-1].what == what and spans[-1].ends == begins:
            spans[-1] = Span(spans[-1].begins, ends, what)
        else:
            spans.append(Span(begins, ends, what))

    for place, moment in enumerate(times):
        limit = stale_after
        if place >= 2:
            limit = max(limit, 3 * min(moment - times[place - 1], times[place - 1] - times[place - 2]))
        until = moment + limit
        if place + 1 < len(times):
            following = times[place + 1]
            add(moment, min(until, following), moments[moment])
            if until < following:
                add(until, following, ("no_data", None, None))
        else:
            add(moment, until, moments[moment])
    return spans


def _mean(values: list[float]) -> float | None:
    if not values or any(abs(value) > 1e290 for value in values):
        return None
    return math.fsum(values) / len(values)


def rollups(rows: list[Row], states: list[Span], width: timedelta) -> dict[datetime, Row]:
    """Return one machine's buckets of a width by their beginnings."""
    buckets: dict[datetime, list[Row]] = {}
    for row in rows:
        buckets.setdefault(row["time"] - (row["time"] - EPOCH) % width, []).append(row)
    return {begins: _bucket(begins, sorted(some, key=_time), states, width) for begins, some in buckets.items()}


_time: Callable[[Row], datetime] = lambda row: row["time"]  # noqa: E731 a key


def _bucket(begins: datetime, rows: list[Row], states: list[Span], width: timedelta) -> Row:
    found: Row = {"samples": len(rows)}
    for state in PRIORITY:
        spent = sum(
            (min(span.ends, begins + width) - max(span.begins, begins)
             for span in states if span.what[0] == state and span.begins < begins + width and span.ends > begins),
            timedelta(0),
        )  # fmt: skip
        found[f"{state}_us"] = spent // timedelta(microseconds=1)
    for name in NUMERIC:
        known = [(row["time"], row[name]) for row in rows if row[name] is not None]
        values = [value for _, value in known]
        found[f"{name}_count"] = len(values)
        found[f"{name}_min"] = min(values, default=None)
        found[f"{name}_max"] = max(values, default=None)
        found[f"{name}_avg"] = _mean(values)
        found[f"{name}_last"] = max(known)[1] if known else None
    return found
