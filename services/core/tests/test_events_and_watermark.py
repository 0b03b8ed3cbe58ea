import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cncmon_core.errors import FrameError
from cncmon_core.events import EPOCH_CLOSED, Event, decode_event, encode_event
from cncmon_core.watermark import Watermark, decode_watermark, encode_watermark

NOW = datetime(2026, 11, 24, 10, 0, 0, 1, UTC)
CLOSED = {"type": EPOCH_CLOSED, "timestamp": "2026-11-24T10:00:00Z", "data": {"epoch": 5, "last_seq": 0, "samples": 0}}


@pytest.mark.parametrize(
    "event",
    [
        Event("alarm", NOW, "cnc-001", {"code": 12, "text": "Zoë"}),
        Event("state", NOW),
        Event(EPOCH_CLOSED, NOW, data={"epoch": 1, "last_seq": 7, "samples": 70}),
    ],
    ids=lambda event: event.type,
)
def test_decode_undoes_encode(event: Event) -> None:
    assert decode_event(encode_event(event)) == event


def test_an_unknown_type_and_unknown_fields_are_taken() -> None:
    event = decode_event(b'{"type":"new","timestamp":"2026-11-24T10:00:00Z","later":1}')
    assert (event.type, event.machine_id, event.data) == ("new", None, {})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"type": ""}, "invalid_field"),
        ({"type": None}, "invalid_field"),
        ({"timestamp": "2026-11-24T10:00:00"}, "invalid_field"),
        ({"machine_id": ""}, "invalid_field"),
        ({"machine_id": "m" * 129}, "invalid_field"),
        ({"data": {"epoch": 0, "last_seq": 1, "samples": 1}}, "invalid_field"),
        ({"data": {"epoch": 5, "last_seq": -1, "samples": 1}}, "invalid_field"),
        ({"data": {"epoch": 5}}, "invalid_field"),
        ({"data": {}}, "invalid_field"),
        ({"type": "a\0b"}, "nul_character"),
    ],
    ids=str,
)
def test_a_bad_event_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(FrameError) as error:
        decode_event(json.dumps(CLOSED | changes).encode())
    assert error.value.reason == reason


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"type":"\xff"}', b'{"a":' + b"[" * 100_000])
def test_no_event_at_all(data: bytes) -> None:
    with pytest.raises(FrameError) as error:
        decode_event(data)
    assert error.value.reason == "malformed_json"


@given(st.binary(max_size=100))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FrameError):
        decode_event(data)


@given(
    st.integers(0, 1 << 40),
    st.integers(0, 1 << 60),
    st.dictionaries(st.integers(1, (1 << 63) - 1), st.integers(0, 1 << 60), max_size=5),
)
def test_a_watermark_goes_there_and_back(generation: int, floor: int, epochs: dict[int, int]) -> None:
    document = Watermark(generation, "2026-11-24T10:00:00Z", floor, epochs)
    data = encode_watermark(document)
    assert decode_watermark(data) == document
    assert set(json.loads(data)["epochs"]) == {str(epoch) for epoch in epochs}


def test_an_epoch_that_is_not_listed_is_unknown_not_zero() -> None:
    document = decode_watermark(b'{"generation":1,"stream_created":"x","committed_floor":9,"epochs":{"5":0},"new":[]}')
    assert document.epochs.get(5) == 0
    assert document.epochs.get(6) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"{}",
        b'{"generation":1,"stream_created":"","committed_floor":1,"epochs":{"x":1}}',
        b'{"generation":1,"stream_created":"\xff","committed_floor":1,"epochs":{}}',
        b'{"x":' + b"[" * 100_000,
    ],
    ids=lambda data: data[:40],
)
def test_no_watermark_at_all_raises_one_kind_of_error(data: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode_watermark(data)
