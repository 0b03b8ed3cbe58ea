import json
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cncmon_core.errors import FrameError
from cncmon_core.frames import FRAME_BYTES_MAX, split
from cncmon_core.sample import (
    CORE_FIELDS,
    EXTRAS_BYTES_MAX,
    FIELDS,
    INT64_MAX,
    MachineState,
    Sample,
    decode_sample,
    encode_sample,
)
from corpus.make_frames import CASES, GOOD, frame, raw

# Whatever UTF-8 can carry, without U+0000.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from((-0.0, 5e-324, 1.7976931348623157e308))
WHOLE = st.integers(-INT64_MAX - 1, INT64_MAX) | st.sampled_from((-INT64_MAX - 1, INT64_MAX, 0))
VALUES = NUMBERS | WHOLE | TEXT | st.booleans() | st.none()
NAMES = TEXT.filter(bool)
ZONES = st.sampled_from((UTC, timezone(timedelta(hours=14)), timezone(-timedelta(hours=12, minutes=30))))

SAMPLES = st.builds(
    Sample,
    machine_id=TEXT.filter(lambda text: 1 <= len(text.encode()) <= 128),
    timestamp=st.datetimes(timezones=ZONES),
    **dict.fromkeys(
        ("temperature", "spindle_speed", "x_pos_mm", "total_power_kw", "anomaly_score"), st.none() | NUMBERS
    ),
    **dict.fromkeys(("active_program_line", "part_count", "tool_number"), st.none() | WHOLE),
    **dict.fromkeys(("mode", "program"), st.none() | TEXT),
    machine_state=st.none() | st.sampled_from(get_args(MachineState)),
    extras=st.none() | st.dictionaries(NAMES, VALUES, max_size=4),
)


def reason_of(frame: bytes) -> str:
    with pytest.raises(FrameError) as error:
        decode_sample(frame)
    assert error.value.detail
    return error.value.reason


@settings(max_examples=300)
@given(SAMPLES)
def test_decode_undoes_encode(sample: Sample) -> None:
    back = decode_sample(encode_sample(sample))
    assert back == sample
    for name in FIELDS:
        value = getattr(sample, name)
        if isinstance(value, float):
            assert math.copysign(1, getattr(back, name)) == math.copysign(1, value)


@settings(max_examples=500)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused_with_a_reason(data: bytes) -> None:
    assert reason_of(data) in ("zero_length", "malformed_json", "not_finite", "missing_field", "invalid_field")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.fixed_dictionaries(
    {}, optional={name: JSON | st.just(json.loads(GOOD).get(name)) for name in (*FIELDS, "unheard_of")}
)


@settings(max_examples=300)
@given(JSON | OBJECTS)
def test_any_json_is_a_sample_or_refused_with_a_reason(value: Any) -> None:
    # Lone surrogates and NaN included: json.dumps writes what others' encoders write too.
    try:
        sample = decode_sample(json.dumps(value).encode())
    except FrameError as error:
        said = error
    else:
        # What was accepted can be encoded again, and means the same.
        assert decode_sample(encode_sample(sample)) == sample
        return
    assert said.reason
    assert said.detail


REFUSED = {
    name: expected
    for name, (_, expected) in CASES.items()
    if not name.endswith(".zst") and expected.replace("_", "").isalpha() and expected != "ok"
}


@pytest.mark.parametrize("name", REFUSED)
def test_every_refused_frame_of_the_corpus_says_why(name: str) -> None:
    (part,), _ = split(CASES[name][0])
    assert reason_of(part) == REFUSED[name]


@pytest.mark.parametrize(
    ("data", "reason", "says"),
    [
        (b"", "zero_length", "no bytes"),
        (frame(temperature=...), "missing_field", "temperature"),
        (frame(spindle_speed="fast"), "invalid_field", "$.spindle_speed"),
        (frame(timestamp="2026-11-24 10:00:00"), "naive_timestamp", "'2026-11-24 10:00:00' has no time zone"),
        (b'{"machine_id": "CNC-MALFORMED", "temperature": "not-a-float"}', "invalid_field", "$.temperature"),
        (raw(',"x_pos_mm":NaN'), "not_finite", "finite"),
        (raw(r',"mode":"\u0000"'), "nul_character", "U+0000"),
        (b"3", "malformed_json", "object"),
        (frame(machine_id="é" * 65), "invalid_field", "128 bytes"),
        (frame(extras={"a": "x" * EXTRAS_BYTES_MAX}), "too_large", str(EXTRAS_BYTES_MAX)),
        (frame(unknown="x" * EXTRAS_BYTES_MAX), "too_large", str(EXTRAS_BYTES_MAX)),
        (GOOD + b" " * FRAME_BYTES_MAX, "frame_too_large", str(FRAME_BYTES_MAX)),
        (b"x" * (FRAME_BYTES_MAX + 1), "frame_too_large", str(FRAME_BYTES_MAX)),
    ],
    ids=lambda value: value if isinstance(value, str) and "_" in value else "",
)
def test_reasons(data: bytes, reason: str, says: str) -> None:
    with pytest.raises(FrameError) as error:
        decode_sample(data)
    assert error.value.reason == reason
    assert says in error.value.detail


def test_white_space_up_to_the_limit_of_a_frame_is_no_fault() -> None:
    padded = GOOD + b" " * (FRAME_BYTES_MAX - len(GOOD))
    assert decode_sample(padded) == decode_sample(GOOD)


def test_the_twelve_fields_arrive() -> None:
    sample = decode_sample(GOOD)
    fields = json.loads(GOOD)
    assert set(fields) == set(CORE_FIELDS)
    assert len(CORE_FIELDS) == 12
    assert sample.timestamp == datetime(2026, 11, 24, 10, 0, 0, 123456, UTC)
    assert {name: getattr(sample, name) for name in fields if name != "timestamp"} == {
        name: value for name, value in fields.items() if name != "timestamp"
    }
    assert sample.extras is None


@pytest.mark.parametrize(
    ("changes", "extras"),
    [
        ({"vibration": 1.5}, {"vibration": 1.5}),
        ({"vibration": 1.5, "extras": {"door_open": True}}, {"vibration": 1.5, "door_open": True}),
        ({"vibration": 1.5, "extras": None}, {"vibration": 1.5}),
        ({"door_open": False, "extras": {"door_open": True}}, {"door_open": True}),
        ({"nested": {"a": [1, None]}}, {"nested": {"a": [1, None]}}),
        ({"Temperature": 3}, {"Temperature": 3}),
    ],
    ids=str,
)
def test_unknown_fields_are_kept_in_extras(changes: dict[str, Any], extras: dict[str, Any]) -> None:
    sample = decode_sample(frame(**changes))
    assert sample.extras == extras
    assert sample.temperature == 25.5


@pytest.mark.parametrize("word", ["warming up", "Running", "", "läuft"])
def test_an_unknown_state_is_kept_in_extras(word: str) -> None:
    sample = decode_sample(frame(machine_state=word))
    assert sample.machine_state is None
    assert sample.extras == {"machine_state": word}


def test_an_unknown_field_does_not_hide_a_wrong_one() -> None:
    assert reason_of(frame(vibration=1.5, temperature="hot")) == "invalid_field"


def test_a_missing_optional_field_and_a_null_are_the_same() -> None:
    assert decode_sample(raw(',"x_pos_mm":null,"machine_state":null')) == decode_sample(raw(""))
