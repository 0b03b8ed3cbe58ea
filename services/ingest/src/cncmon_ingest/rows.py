"""Samples as rows of PostgreSQL's binary COPY format (PostgreSQL manual, COPY, "Binary Format")."""

from datetime import UTC, datetime
from struct import Struct as Packer
from typing import Final

import msgspec

from cncmon_core.sample import FIELDS, STATES, Sample

TABLE: Final = "sensor_data"
COLUMNS: Final = tuple("time" if name == "timestamp" else name for name in ("timestamp", "machine_id", *FIELDS[2:]))

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER: Final = b"\xff\xff"

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
"""PostgreSQL counts timestamptz in µs from here."""
_NULL = b"\xff\xff\xff\xff"
_HEAD = Packer(">hiqi").pack
_LENGTH = Packer(">i").pack
_FLOAT = Packer(">id").pack
_SEVEN_FLOATS = Packer(">" + "id" * 7).pack
_INT = Packer(">iq").pack
_COLUMN_COUNT = len(COLUMNS)
_STATES = {state: _LENGTH(len(state)) + state.encode() for state in STATES}
_encode_extras = msgspec.json.Encoder().encode
_JSONB_VERSION = b"\x01"


def pack(sample: Sample) -> bytes:
    """Return one row in the order of `COLUMNS`.

    `extras` goes as jsonb (one version byte, then text), everything unavailable as NULL.
    """
    since = sample.timestamp - _EPOCH
    microseconds = since.days * 86_400_000_000 + since.seconds * 1_000_000 + since.microseconds
    machine_id = sample.machine_id.encode()
    state, line, extras = sample.machine_state, sample.active_program_line, sample.extras
    row = (
        _HEAD(_COLUMN_COUNT, 8, microseconds, len(machine_id))
        + machine_id
        + _measured(sample)
        + (_STATES[state] if state else _NULL)
        + (_NULL if line is None else _INT(8, line))
        + _float(sample.total_power_kw)
        + _text(sample.mode)
        + _text(sample.program)
        + _int(sample.part_count)
        + _int(sample.tool_number)
        + _float(sample.anomaly_score)
    )
    if not extras:
        return row + _NULL
    json = _encode_extras(extras)
    return row + _LENGTH(len(json) + 1) + _JSONB_VERSION + json


def _measured(sample: Sample) -> bytes:
    values = (
        *(sample.temperature, sample.spindle_speed, sample.x_pos_mm, sample.y_pos_mm, sample.z_pos_mm),
        *(sample.feed_rate_actual, sample.spindle_load_percent),
    )
    if None in values:
        return b"".join(map(_float, values))
    a, b, c, d, e, f, g = values
    return _SEVEN_FLOATS(8, a, 8, b, 8, c, 8, d, 8, e, 8, f, 8, g)


def _float(value: float | None) -> bytes:
    return _NULL if value is None else _FLOAT(8, value)


def _int(value: int | None) -> bytes:
    return _NULL if value is None else _INT(8, value)


def _text(value: str | None) -> bytes:
    if value is None:
        return _NULL
    encoded = value.encode()
    return _LENGTH(len(encoded)) + encoded
