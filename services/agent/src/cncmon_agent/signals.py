"""From signal values to a sample: which name fills which field, and as what."""

from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

from cncmon_core.machine import SAMPLE_SIGNALS
from cncmon_core.sample import FIELDS, INT64_MAX, TEXT_CHARS_MAX, Sample

_WHOLE = {"active_program_line", "part_count", "tool_number"}
_WORDS = {"machine_state", "mode", "program"}


def to_sample(machine_id: str, timestamp: datetime, values: dict[str, Any], errors: dict[str, str]) -> Sample:
    """Return the sample of one poll. What does not fit its field is left out and added to `errors`."""
    fields: dict[str, Any] = {}
    extras: dict[str, Any] = {}
    for name, value in values.items():
        if name not in SAMPLE_SIGNALS:
            extras[name] = value
            continue
        try:
            fields[name] = _CONVERT[name](value)
        except (ValueError, TypeError, OverflowError) as error:
            errors[name] = str(error)
    return Sample(
        machine_id=machine_id,
        timestamp=timestamp,
        temperature=fields.pop("temperature", None),
        spindle_speed=fields.pop("spindle_speed", None),
        extras=extras or None,
        **fields,
    )


def offline_sample(machine_id: str, timestamp: datetime) -> Sample:
    """Return what is known of a machine that can't be read: that it can't, and when."""
    return Sample(
        machine_id=machine_id, timestamp=timestamp, temperature=None, spindle_speed=None, machine_state="offline"
    )


def _whole(value: Any) -> int:
    if type(value) is int and -INT64_MAX <= value <= INT64_MAX:
        return value
    number: int = round(value)
    if abs(number) > INT64_MAX:
        raise ValueError(f"{number} does not fit 64 bits")
    return number


def _word(value: Any) -> str:
    if type(value) is str and len(value) <= TEXT_CHARS_MAX:
        return value
    if not isinstance(value, str):
        value = f"{value:g}" if isinstance(value, float) else str(value)
    text: str = value
    return text[:TEXT_CHARS_MAX]


_CONVERT: dict[str, Callable[[Any], Any]] = {
    name: _whole if name in _WHOLE else _word if name in _WORDS else float for name in SAMPLE_SIGNALS
}


Make = Callable[[datetime, dict[str, Any]], Sample]


class SampleMaker:
    """`to_sample` for one machine, whose polls mostly bring the same signals: what goes where is compiled once."""

    def __init__(self, machine_id: str) -> None:
        self._machine_id = machine_id
        self._names: tuple[str, ...] = ()
        self._make: Make = _function((), ())

    def make(self, timestamp: datetime, values: dict[str, Any], errors: dict[str, str]) -> Sample:
        """Return the sample of one poll. What does not fit its field is left out and added to `errors`."""
        if len(values) != len(self._names):
            self._learn(values)
        try:
            sample = self._make(timestamp, values)
        except (ValueError, TypeError, OverflowError):
            return to_sample(self._machine_id, timestamp, values, errors)
        except KeyError:
            # As many as last time, and not the same.
            self._learn(values)
            return to_sample(self._machine_id, timestamp, values, errors)
        sample.machine_id = self._machine_id
        return sample

    def _learn(self, values: dict[str, Any]) -> None:
        self._names = tuple(values)
        extras = tuple(name for name in values if name not in SAMPLE_SIGNALS)
        self._make = _function(tuple(sorted(set(values) - set(extras))), extras)


@lru_cache(maxsize=256)
def _function(fields: tuple[str, ...], extras: tuple[str, ...]) -> Make:
    """Return what makes samples of these signals; machines of one profile share it, so it knows no machine's name."""
    arguments = ["None"] * len(FIELDS)
    arguments[FIELDS.index("machine_id")], arguments[FIELDS.index("timestamp")] = "''", "timestamp"
    for name in fields:
        arguments[FIELDS.index(name)] = f"convert_{name}(values[{name!r}])"
    if extras:
        arguments[-1] = "{" + ", ".join(f"{name!r}: values[{name!r}]" for name in extras) + "}"
    parameters = ["timestamp", "values", *(f"convert_{name}=convert[{name!r}]" for name in fields)]
    names: dict[str, Any] = {"Sample": Sample, "convert": _CONVERT}
    # Nothing of a document is in the text but signals' names, as literals by `repr`.
    exec(f"def make({', '.join(parameters)}):\n    return Sample({', '.join(arguments)})", names)  # noqa: S102
    make: Make = names["make"]
    return make
