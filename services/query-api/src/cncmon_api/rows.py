"""Rows of `sensor_data` as the structs that are sent."""

from collections.abc import Iterable
from typing import Any, Final

from msgspec import UNSET, Raw

from cncmon_api.models import Sample
from cncmon_core.sample import STATES

COLUMNS: Final = (
    "machine_id",
    "time",
    "temperature",
    "spindle_speed",
    "x_pos_mm",
    "y_pos_mm",
    "z_pos_mm",
    "feed_rate_actual",
    "spindle_load_percent",
    "machine_state",
    "active_program_line",
    "total_power_kw",
    "mode",
    "program",
    "part_count",
    "tool_number",
    "anomaly_score",
    "extras",
)
"""In the order of `Sample`'s fields."""

NUMERIC: Final = frozenset(COLUMNS) - {"machine_id", "time", "machine_state", "mode", "program", "extras"}
"""What a series can be made of. The only names that ever become part of an SQL text."""

_STATE: Final = COLUMNS.index("machine_state")
_OPTIONAL: Final = range(COLUMNS.index("mode"), len(COLUMNS))
_EXTRAS: Final = COLUMNS.index("extras")


def known_state(word: str | None) -> Any:
    """Return a state of the data model, or None for a word it doesn't have."""
    return word if word in STATES else None


def sample_of(row: Iterable[Any]) -> Sample:
    """Return the sample of a row with `COLUMNS`. The JSON of `extras` is passed on as PostgreSQL wrote it."""
    values = list(row)
    values[_STATE] = known_state(values[_STATE])
    for index in _OPTIONAL:
        if values[index] is None:
            values[index] = UNSET
    if values[_EXTRAS] is not UNSET:
        values[_EXTRAS] = Raw(values[_EXTRAS].encode())
    return Sample(*values)
