from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cncmon_agent.signals import SampleMaker, offline_sample, to_sample
from cncmon_core.machine import SAMPLE_SIGNALS
from cncmon_core.sample import CORE_FIELDS, INT64_MAX, Sample, decode_sample, encode_sample

NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)


def sample_of(**values: Any) -> tuple[Sample, dict[str, str]]:
    errors: dict[str, str] = {}
    return to_sample("cnc-001", NOW, values, errors), errors


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("temperature", 25, 25.0),
        ("temperature", True, 1.0),
        ("spindle_speed", 2500.5, 2500.5),
        ("active_program_line", 12, 12),
        ("active_program_line", 11.6, 12),
        ("part_count", 1e15, 10**15),
        ("tool_number", False, 0),
        ("part_count", INT64_MAX, INT64_MAX),
        ("machine_state", "running", "running"),
        ("mode", "AUTOMATIC", "AUTOMATIC"),
        ("mode", 3, "3"),
        ("mode", 3.0, "3"),
        ("program", "x" * 2000, "x" * 1024),
    ],
)
def test_a_signal_fills_its_field(name: str, value: Any, field: Any) -> None:
    sample, errors = sample_of(**{name: value})
    found = getattr(sample, name)
    assert (found, type(found)) == (field, type(field))
    assert errors == {}
    assert sample.extras is None
    assert decode_sample(encode_sample(sample)) == sample


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("part_count", (1 << 64) - 1),
        ("active_program_line", 1e300),
        ("active_program_line", float("inf")),
        ("active_program_line", float("nan")),
        ("temperature", "hot"),
        ("part_count", "many"),
        ("spindle_speed", None),
    ],
)
def test_what_does_not_fit_is_left_out_and_said(name: str, value: Any) -> None:
    sample, errors = sample_of(**{name: value, "tool_number": 3})
    assert getattr(sample, name) is None
    assert errors.keys() == {name}
    assert errors[name]
    assert sample.tool_number == 3


def test_other_names_are_extras() -> None:
    sample, errors = sample_of(poll_counter=5, door_open=True, note="x", anomaly_score=0.5)
    assert sample.extras == {"poll_counter": 5, "door_open": True, "note": "x", "anomaly_score": 0.5}
    assert errors == {}


def test_every_field_that_a_signal_may_fill_exists() -> None:
    assert set(CORE_FIELDS) - {"machine_id", "timestamp"} <= SAMPLE_SIGNALS
    sample, errors = sample_of(**{name: 1 for name in SAMPLE_SIGNALS if name != "machine_state"})
    assert errors == {}
    assert sample.extras is None


def test_a_machine_that_can_not_be_read_is_offline_and_nothing_else() -> None:
    sample = offline_sample("cnc-001", NOW)
    assert sample == Sample("cnc-001", NOW, None, None, machine_state="offline")
    assert decode_sample(encode_sample(sample)) == sample


NAMES = [*sorted(SAMPLE_SIGNALS), "door_open", "poll_counter", "anomaly_score"]
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 64), 1 << 64)
    | st.floats()
    | st.sampled_from(["running", "idle", "x" * 1025, ""])
)
POLLS = st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=12), min_size=1, max_size=4)


@given(POLLS)
def test_what_goes_where_is_the_same_found_out_once_or_each_time(polls: list[dict[str, Any]]) -> None:
    maker = SampleMaker("cnc-001")
    for values in polls:
        for _ in range(2):
            errors: dict[str, str] = {}
            expected_errors: dict[str, str] = {}
            sample = maker.make(NOW, values, errors)
            expected = to_sample("cnc-001", NOW, values, expected_errors)
            # By repr: a NaN is not equal to itself, and 1 is to 1.0 and True.
            assert repr(sample) == repr(expected)
            assert errors == expected_errors


def test_extras_are_not_shared_between_samples() -> None:
    maker = SampleMaker("cnc-001")
    first = maker.make(NOW, {"door_open": True}, {})
    first.extras = (first.extras or {}) | {"flag": True}
    assert maker.make(NOW, {"door_open": False}, {}).extras == {"door_open": False}
