"""The sample: the original system's twelve fields, optional additions, and one decoder that refuses with a reason."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal, get_args

import msgspec
from msgspec import Meta

from cncmon_core.errors import FrameError
from cncmon_core.frames import FRAME_BYTES_MAX

MachineState = Literal["running", "idle", "alarm", "hold", "offline"]
STATES: Final = frozenset(get_args(MachineState))

MACHINE_ID_BYTES_MAX: Final = 128
TEXT_CHARS_MAX: Final = 1024
EXTRAS_BYTES_MAX: Final = 64 << 10
INT64_MAX: Final = (1 << 63) - 1

Int64 = Annotated[int, Meta(ge=-INT64_MAX - 1, le=INT64_MAX)]
Text = Annotated[str, Meta(max_length=TEXT_CHARS_MAX)]


class Sample(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """What a machine did at one moment. None: not available (MTConnect's UNAVAILABLE).

    Units: temperature °C, spindle_speed rpm, positions mm, feed_rate_actual mm/min, spindle_load_percent % of rated
    load, total_power_kw kW. timestamp: UTC, µs, when the controller's answer arrived. temperature and spindle_speed
    must be present as the original system demands, yet may be null: an offline machine has no temperature.
    """

    machine_id: Annotated[str, Meta(min_length=1, max_length=MACHINE_ID_BYTES_MAX)]
    timestamp: Annotated[datetime, Meta(tz=True)]
    temperature: float | None
    spindle_speed: float | None
    x_pos_mm: float | None = None
    y_pos_mm: float | None = None
    z_pos_mm: float | None = None
    feed_rate_actual: float | None = None
    spindle_load_percent: float | None = None
    machine_state: MachineState | None = None
    active_program_line: Int64 | None = None
    total_power_kw: float | None = None
    mode: Text | None = None
    program: Text | None = None
    part_count: Int64 | None = None
    tool_number: Int64 | None = None
    anomaly_score: float | None = None
    extras: dict[str, Any] | None = None


FIELDS: Final = Sample.__struct_fields__
CORE_FIELDS: Final = FIELDS[:12]
"""The original system's twelve."""

_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are no JSON, no UTF-8, nested too deep, or not of the type."""

_decode = msgspec.json.Decoder(Sample).decode
_decode_any = msgspec.json.Decoder().decode
encode_sample = msgspec.json.Encoder().encode


def decode_sample(frame: bytes) -> Sample:
    """Return the sample of one frame.

    Unknown fields and an unknown machine_state are kept in `extras`; everything else that does not fit is refused.

    Raises:
        FrameError: with reason zero_length, frame_too_large, malformed_json, not_finite, missing_field, invalid_field,
            naive_timestamp, nul_character or too_large.
    """
    try:
        sample = _decode(frame)
    except _UNDECODABLE:
        sample = _decode_leniently(frame)
    if b"\\u0000" in frame and _has_nul(msgspec.structs.asdict(sample)):
        raise FrameError("nul_character", "a text holds U+0000, which PostgreSQL can't store")
    if len(frame) > TEXT_CHARS_MAX:
        _check_sizes(frame, sample)
    # At most four bytes a character: only a long one need be counted.
    if len(sample.machine_id) * 4 > MACHINE_ID_BYTES_MAX and len(sample.machine_id.encode()) > MACHINE_ID_BYTES_MAX:
        raise FrameError("invalid_field", f"machine_id has more than {MACHINE_ID_BYTES_MAX} bytes")
    return sample


def _decode_leniently(frame: bytes) -> Sample:
    """Decode a frame that the strict decoder refused: move what is unknown to extras, or say what is wrong."""
    if not frame:
        raise FrameError("zero_length", "the frame has no bytes")
    if len(frame) > FRAME_BYTES_MAX:
        raise FrameError("frame_too_large", f"{len(frame)} bytes; a frame has at most {FRAME_BYTES_MAX}")
    try:
        fields = _decode_any(frame)
    except _UNDECODABLE as error:
        raise _malformed(frame, error) from error
    if not isinstance(fields, dict):
        raise FrameError("malformed_json", f"expected a JSON object, got {type(fields).__name__}")
    known = {name: value for name, value in fields.items() if name in FIELDS}
    unknown = {name: value for name, value in fields.items() if name not in FIELDS}
    state = known.get("machine_state")
    if isinstance(state, str) and state not in STATES:
        unknown["machine_state"] = known.pop("machine_state")
    if unknown and isinstance(known.get("extras", {}), dict | None):
        known["extras"] = unknown | (known.get("extras") or {})
    try:
        return msgspec.convert(known, Sample)
    except msgspec.ValidationError as error:
        raise _invalid(fields, error) from error


def _malformed(frame: bytes, error: Exception) -> FrameError:
    if any(word in frame for word in (b"NaN", b"Infinity")) or "out of range" in str(error):
        return FrameError("not_finite", f"numbers must be finite: {error}")
    return FrameError("malformed_json", str(error))


def _invalid(fields: dict[str, Any], error: msgspec.ValidationError) -> FrameError:
    text = str(error)
    if "missing required field" in text:
        return FrameError("missing_field", text)
    if "timezone" in text and isinstance(fields.get("timestamp"), str):
        return FrameError(
            "naive_timestamp", f"timestamp {fields['timestamp']!r} has no time zone; RFC 3339 UTC is needed"
        )
    return FrameError("invalid_field", text)


def _has_nul(value: Any) -> bool:
    # Not by recursion: what the decoder nests deeply enough would end the process.
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            if "\0" in item:
                return True
        elif isinstance(item, dict):
            todo += item.keys()
            todo += item.values()
        elif isinstance(item, list):
            todo += item
    return False


def _check_sizes(frame: bytes, sample: Sample) -> None:
    if len(frame) > FRAME_BYTES_MAX:
        raise FrameError("frame_too_large", f"{len(frame)} bytes; a frame has at most {FRAME_BYTES_MAX}")
    if sample.extras and len(frame) > EXTRAS_BYTES_MAX and len(msgspec.json.encode(sample.extras)) > EXTRAS_BYTES_MAX:
        raise FrameError("too_large", f"extras take more than {EXTRAS_BYTES_MAX} bytes")
