"""Samples as rows of PostgreSQL's binary COPY format (PostgreSQL manual, COPY, "Binary Format")."""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from struct import Struct as Packer
from typing import Final

import msgspec

from cncmon_core.sample import FIELDS, STATES, Sample

TABLE: Final = "sensor_data"
COLUMNS: Final = tuple("time" if name == "timestamp" else name for name in ("timestamp", "machine_id", *FIELDS[2:]))

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER: Final = b"\xff\xff"

EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""PostgreSQL counts timestamptz in µs from here."""
_NULL = b"\xff\xff\xff\xff"
TICK_US: Final = 10_000_000
"""A tick is the shortest time that rollups are made of; they are counted from 2000-01-01 UTC."""
_DAY_US: Final = 86_400_000_000
TICKS_A_DAY: Final = _DAY_US // TICK_US
_LENGTH = Packer(">i").pack
_FLOAT = Packer(">id").pack
_SEVEN_FLOATS = Packer(">" + "id" * 7).pack
_INT = Packer(">iq").pack
_LINE_AND_POWER = Packer(">iqid").pack
_TWO_INTS = Packer(">iqiq").pack
_HEAD = Packer(">hiq").pack
_COLUMN_COUNT = len(COLUMNS)
_STATES = {state: _LENGTH(len(state)) + state.encode() for state in STATES}
_encode_extras = msgspec.json.Encoder().encode
_JSONB_VERSION = b"\x01"

PIECE_ROWS: Final = 1000
"""Rows that go to the server in one piece, some 200 KiB: it works on them while the next are joined."""

TEXTS_MAX: Final = 4096
_texts: dict[str | None, bytes] = {None: _NULL}
"""Texts as they are packed: machines, modes and programs are few, and come again in every row."""


async def pieces(packed: Sequence[bytes]) -> AsyncIterator[bytes]:
    """Yield rows as a COPY source. Never raises half-way, which would leave asyncpg's COPY hanging.

    Not as a file: asyncpg has a thread read those, and hands the interpreter to it and back for each piece.
    """
    yield HEADER
    for start in range(0, len(packed), PIECE_ROWS):
        yield b"".join(packed[start : start + PIECE_ROWS])
    yield TRAILER


_MACHINE: Final = 2 + 4 + 8
"""Where a row's second column begins, the machine: behind the number of columns and the time with its length."""


def by_machine(packed: Iterable[bytes]) -> list[bytes]:
    """Return rows with those of each machine behind one another, in the order in which they came.

    Who reads a machine's samples finds them in a few pages instead of one in each. Costs 0.13 µs a row, saves a tenth
    to a third of computing rollups.
    """
    machines: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for row in packed:
        # Of its length the last byte is enough: a machine's name has at most 128.
        machines[row[_MACHINE : _MACHINE + 4 + row[_MACHINE + 3]]].append(row)
    return list(chain.from_iterable(machines.values()))


def machine_of(row: bytes) -> str:
    """Return a row's machine."""
    return row[_MACHINE + 4 : _MACHINE + 4 + row[_MACHINE + 3]].decode()


def time_of(row: bytes) -> int:
    """Return a row's time, as `microseconds` gives it."""
    return int.from_bytes(row[_MACHINE - 8 : _MACHINE], signed=True)


def microseconds(moment: datetime) -> int:
    """Return a time as PostgreSQL counts it."""
    since = moment - EPOCH
    return since.days * _DAY_US + since.seconds * 1_000_000 + since.microseconds


def beginning(tick: int) -> datetime:
    """Return when a tick begins."""
    return EPOCH + timedelta(microseconds=tick * TICK_US)


def pack(sample: Sample, time_us: int) -> bytes:
    """Return one row in the order of `COLUMNS`. time_us: the sample's `microseconds`.

    `extras` goes as jsonb (one version byte, then text), everything unavailable as NULL.
    """
    state, line, power = sample.machine_state, sample.active_program_line, sample.total_power_kw
    parts, tool, extras = sample.part_count, sample.tool_number, sample.extras
    if extras:
        json = _encode_extras(extras)
        packed_extras = _LENGTH(len(json) + 1) + _JSONB_VERSION + json
    else:
        packed_extras = _NULL
    return b"".join(
        (
            _HEAD(_COLUMN_COUNT, 8, time_us),
            _texts.get(sample.machine_id) or _text(sample.machine_id),
            _measured(sample),
            _STATES[state] if state else _NULL,
            _int(line) + _float(power) if line is None or power is None else _LINE_AND_POWER(8, line, 8, power),
            _texts.get(sample.mode) or _text(sample.mode),
            _texts.get(sample.program) or _text(sample.program),
            _int(parts) + _int(tool) if parts is None or tool is None else _TWO_INTS(8, parts, 8, tool),
            _float(sample.anomaly_score),
            packed_extras,
        )
    )


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
    packed = _LENGTH(len(encoded)) + encoded
    if len(_texts) >= TEXTS_MAX:
        _texts.clear()
        _texts[None] = _NULL
    _texts[value] = packed
    return packed
