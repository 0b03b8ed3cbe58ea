import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cncmon_core import identity
from cncmon_core.errors import IdentityError
from cncmon_core.identity import EPOCH_MAX, Identity, digest, identity_of

NUMBERS = st.integers(1, EPOCH_MAX)
PAYLOAD = b"\0\0\0\2{}"
GOOD = Identity(7, 3, 2, 40, digest(PAYLOAD), "samples").to_headers("hall", "e1", "zstd")


@given(NUMBERS, NUMBERS, NUMBERS, st.integers(0, EPOCH_MAX), st.sampled_from(("samples", "events")))
def test_headers_say_the_identity(epoch: int, seq: int, frames: int, base: int, kind: Any) -> None:
    batch = Identity(epoch, seq, frames, base, digest(b"x"), kind)
    assert identity_of(batch.to_headers("hall", "e1", None)) == batch


def test_header_names_and_message_id() -> None:
    assert {
        "Nats-Msg-Id": f"hall.e1:7:3:{digest(PAYLOAD)[:16]}",
        "Cncmon-Epoch": "7",
        "Cncmon-Seq": "3",
        "Cncmon-Frames": "2",
        "Cncmon-Base": "40",
        "Cncmon-Sha256": digest(PAYLOAD),
        "Cncmon-Kind": "samples",
        "Cncmon-Encoding": "zstd",
    } == GOOD


def test_each_call_gives_fresh_headers() -> None:
    batch = Identity(7, 3, 2, 40, digest(PAYLOAD), "samples")
    batch.to_headers("hall", "e1", "zstd")["Nats-Expected-Stream"] = "X"
    assert batch.to_headers("hall", "e1", "zstd") == GOOD
    assert identity.ENCODING not in batch.to_headers("hall", "e1", None)


@pytest.mark.parametrize("headers", [None, {}, {"traceparent": "x"}, {"Nats-Msg-Id": "a"}])
def test_the_original_system_s_messages_have_no_identity(headers: dict[str, str] | None) -> None:
    assert identity_of(headers) is None


BAD_NUMBERS = (
    "",
    "0",
    "-1",
    "+1",
    " 1",
    "1 ",
    "1.0",
    "1e3",
    "0x1",
    "one",
    "٣",
    "²",
    "9" * 30,
    str(EPOCH_MAX + 1),
    "1\0",
)


BAD_FIELDS = [
    (name, value)
    for name in (identity.EPOCH, identity.SEQ, identity.FRAMES, identity.BASE)
    for value in (None, *BAD_NUMBERS)
    if (name, value) != (identity.BASE, "0")
]


@pytest.mark.parametrize(("name", "value"), BAD_FIELDS, ids=ascii)
def test_a_bad_number_is_refused_by_name(name: str, value: str | None) -> None:
    headers = GOOD | {name: value} if value is not None else {n: v for n, v in GOOD.items() if n != name}
    with pytest.raises(IdentityError, match=name) as error:
        identity_of(headers)
    assert error.value.reason == "bad_identity"


@pytest.mark.parametrize(
    "value", [None, "", "0" * 63, "0" * 65, "g" * 64, digest(b"").upper(), " " + "0" * 63], ids=ascii
)
def test_a_bad_hash_is_refused(value: str | None) -> None:
    headers = (
        GOOD | {identity.SHA256: value}
        if value is not None
        else {n: v for n, v in GOOD.items() if n != identity.SHA256}
    )
    with pytest.raises(IdentityError, match=identity.SHA256):
        identity_of(headers)


def test_an_unknown_kind_is_refused_and_a_missing_one_is_samples() -> None:
    with pytest.raises(IdentityError, match="known are samples, events"):
        identity_of(GOOD | {identity.KIND: "rumours"})
    found = identity_of({name: value for name, value in GOOD.items() if name != identity.KIND})
    assert found is not None
    assert found.kind == "samples"


@pytest.mark.parametrize("name", [identity.EPOCH, identity.SEQ])
def test_half_an_identity_is_no_original_message(name: str) -> None:
    with pytest.raises(IdentityError):
        identity_of({name: "1"})


@given(st.dictionaries(st.sampled_from(list(GOOD)), st.text(max_size=30)))
def test_any_headers_are_an_identity_or_refused(headers: dict[str, str]) -> None:
    with contextlib.suppress(IdentityError):
        found = identity_of(headers)
        assert found is None or 1 <= found.epoch <= EPOCH_MAX


def test_the_payload_is_checked_against_its_hash() -> None:
    batch = identity_of(GOOD)
    assert batch is not None
    batch.check_payload(PAYLOAD)
    with pytest.raises(IdentityError) as error:
        batch.check_payload(PAYLOAD + b" ")
    assert error.value.reason == "hash_mismatch"


def test_subjects() -> None:
    assert identity.subject_of("samples", "hall", "e1") == "CNC_DATA.hall.e1"
    assert identity.subject_of("events", "hall", "e1") == "CNC_DATA.hall.e1.events"
