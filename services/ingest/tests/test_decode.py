"""From message to rows and dead letters; the same cases run through real JetStream in tests/integration."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cncmon_core import identity
from cncmon_core.frames import compress, join
from cncmon_core.identity import Identity
from cncmon_ingest.decode import DAYS_MAX, Decoded, Incoming, Limits, decode, frames_of
from testkit.ingest import frame

NOW = datetime(2026, 6, 2, 12, tzinfo=UTC)
"""Of tests that bring their own limits."""


def decoded(payload: bytes, headers: dict[str, str] | None = None, limits: Limits | None = None) -> Decoded:
    """Decode a message. limits: by the clock of this moment, as `frame` stamps, unless others are given."""
    now = datetime.now(UTC)
    return decode(Incoming("CNC_DATA.hall.e1", headers or {}, payload, 1, now), limits or Limits.at(now, 300, 0))


def identified(payload: bytes, count: int = 1, encoding: str | None = None) -> dict[str, str]:
    return Identity(1, 1, count, 0, identity.digest(payload), "samples").to_headers("hall", "e1", encoding)


def test_origin_is_the_subjects_and_nothing_elses() -> None:
    assert decoded(join([frame()])).origin == ("hall", "e1")


@pytest.mark.parametrize(
    ("data", "encoding", "reason"),
    [
        (compress(join([frame()])), "zstd", None),
        (join([frame()]), "zstd", "bad_compression"),
        (compress(join([frame()])) + b"x", "zstd", "bad_compression"),
        (compress(join([frame()]))[:-5], "zstd", "bad_compression"),
        (join([frame()]), "gzip", "unknown_encoding"),
        (compress(bytes(17 << 20)), "zstd", "too_large"),
    ],
    ids=["good", "not compressed", "trailing", "cut", "unknown", "bomb"],
)
def test_encodings(data: bytes, encoding: str, reason: str | None) -> None:
    found = decoded(data, {identity.ENCODING: encoding})
    if reason is None:
        assert len(found.packed) == 1
        assert not found.dead
    else:
        assert [(letter.frame, letter.reason, letter.payload) for letter in found.dead] == [(-1, reason, data)]
        assert found.whole_dead


def test_identity_is_kept_where_the_payload_is_damaged() -> None:
    payload = join([frame()])
    found = decoded(payload + b"x", identified(payload))
    assert found.identity is not None
    assert found.dead[0].reason == "hash_mismatch"


@pytest.mark.parametrize(
    ("at", "reason"),
    [
        (NOW + timedelta(seconds=299), None),
        (NOW + timedelta(seconds=301), "future_timestamp"),
        (NOW - timedelta(days=6), None),
        (NOW - timedelta(days=8), "too_old"),
    ],
)
def test_limits_of_time(at: datetime, reason: str | None) -> None:
    found = decoded(join([frame(timestamp=at.isoformat())]), limits=Limits.at(NOW, 300, 7))
    assert [letter.reason for letter in found.dead] == ([reason] if reason else [])


def test_without_retention_any_age_is_taken() -> None:
    assert not decoded(join([frame(timestamp="0001-01-01T00:00:00Z")])).dead


def test_frame_numbers_tell_rows_from_dead_letters() -> None:
    parts = [frame(0), b"{", frame(2), b"", frame(4)]
    found = decoded(join(parts))
    assert found.frame_numbers == [0, 2, 4]
    assert [letter.frame for letter in found.dead] == [1, 3]
    assert frames_of(found.incoming) == parts


def test_days_of_a_message_are_bounded() -> None:
    parts = [frame(n, timestamp=(NOW - timedelta(days=n % (DAYS_MAX + 50))).isoformat()) for n in range(2 * DAYS_MAX)]
    found = decoded(join(parts))
    assert len(found.days) == DAYS_MAX
    assert {letter.reason for letter in found.dead} == {"too_many_days"}
    assert (len(found.packed), len(found.dead)) == (2 * DAYS_MAX - 50, 50)


@given(st.binary(max_size=300), st.sampled_from([None, "zstd"]))
def test_no_bytes_raise(data: bytes, encoding: str | None) -> None:
    found = decoded(data, {identity.ENCODING: encoding} if encoding else {})
    assert found.packed or found.dead


@given(
    st.dictionaries(
        st.sampled_from([identity.EPOCH, identity.SEQ, identity.SHA256, identity.KIND]), st.text(max_size=70)
    )
)
def test_no_headers_raise(headers: dict[str, str]) -> None:
    assert decoded(join([frame()]), headers).dead or not headers.keys() & {identity.EPOCH, identity.SEQ}
