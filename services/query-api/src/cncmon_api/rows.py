"""Rows of `sensor_data` as the structs that are sent."""

from collections.abc import Iterable
from typing import Any, Final

from msgspec import UNSET, Raw

from cncmon_api.models import Sample
from cncmon_core.sample import STATES
from cncmon_core.states import STATE_SQL

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
"""In the order of `Sample`'s fields, less `state`."""

SELECTED: Final = ", ".join((*COLUMNS[:12], f"{STATE_SQL} AS state", *COLUMNS[12:]))
"""What of a row of `sensor_data` a `Sample` is made of, in the order of its fields."""

NUMERIC: Final = frozenset(COLUMNS) - {"machine_id", "time", "machine_state", "mode", "program", "extras"}
"""What a series can be made of. The only names that ever become part of an SQL text."""

_FIELDS: Final = Sample.__struct_fields__
_STATES: Final = (_FIELDS.index("machine_state"), _FIELDS.index("state"))
_OPTIONAL: Final = range(_FIELDS.index("mode"), len(_FIELDS))
_EXTRAS: Final = _FIELDS.index("extras")


def known_state(word: str | None) -> Any:
    """Return a state of the data model, or None for a word it doesn't have."""
    return word if word in STATES else None


def sample_of(row: Iterable[Any]) -> Sample:
    """Return the sample of a row of `SELECTED`. The JSON of `extras` is passed on as PostgreSQL wrote it."""
    values = list(row)
    for index in _STATES:
        values[index] = known_state(values[index])
    for index in _OPTIONAL:
        if values[index] is None:
            values[index] = UNSET
    if values[_EXTRAS] is not UNSET:
        values[_EXTRAS] = Raw(values[_EXTRAS].encode())
    return Sample(*values)
