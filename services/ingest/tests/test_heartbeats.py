"""What of a heartbeat must be right, and what is taken as it comes."""

from datetime import UTC, datetime

import msgspec
import pytest

from cncmon_core.errors import FrameError
from cncmon_ingest.heartbeats import BYTES_MAX, EPOCHS_MAX, decode_heartbeat

NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)
SOUND = {
    "boot_id": "b1",
    "time": "2026-11-24T10:00:00Z",
    "epochs": [{"epoch": 5, "first_seq": 3, "last_seq": 9, "freed_seq": 2, "acked_seq": 4, "accepted_samples": 90}],
    "buffer": {"hours_left": None},
    "of a later version": [1, 2.5, {"x": "ü"}],
}


def encoded(**changes: object) -> bytes:
    return msgspec.json.encode(SOUND | changes)


def test_a_heartbeat() -> None:
    beat = decode_heartbeat("hall.e1", encoded(), NOW)
    assert (beat.origin, beat.boot_id, beat.time, beat.received) == (("hall", "e1"), "b1", NOW, NOW)
    assert beat.epochs is not None
    (report,) = beat.epochs
    assert (report.epoch, report.highest_seq, report.freed_seq, report.accepted_samples) == (5, 9, 2, 90)
    assert msgspec.json.decode(beat.document) == SOUND


def test_an_older_agents_heartbeat_is_heard() -> None:
    old = {"epoch": 5, "acked_seq": 7, "freed_seq": 2, "acked_samples": 70}
    beat = decode_heartbeat("hall.e1", encoded(epochs=[old]), NOW)
    assert beat.epochs is not None
    assert (beat.epochs[0].highest_seq, beat.epochs[0].accepted_samples) == (7, None)
    assert decode_heartbeat("hall.e1", b'{"boot_id":"b","time":"2026-11-24T10:00:00+01:00"}', NOW).epochs is None


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("hall", encoded(), "bad_key"),
        ("hall.", encoded(), "bad_key"),
        (".e1", encoded(), "bad_key"),
        ("hall.e1.more", encoded(), "bad_key"),
        ("hall.e/1", encoded(), "bad_key"),
        ("hall." + "e" * 64, encoded(), "bad_key"),
        ("hall.e1", b"", "malformed"),
        ("hall.e1", b"[]", "malformed"),
        ("hall.e1", b"\xff", "malformed"),
        ("hall.e1", b"[" * 5000, "malformed"),
        ("hall.e1", encoded(boot_id=""), "malformed"),
        ("hall.e1", encoded(boot_id=None), "malformed"),
        ("hall.e1", encoded(time="2026-11-24T10:00:00"), "malformed"),
        ("hall.e1", encoded(time="0001-01-01T00:00:00Z"), "malformed"),
        ("hall.e1", encoded(epochs=[{"epoch": 0}]), "malformed"),
        ("hall.e1", encoded(epochs=[{"epoch": 5, "last_seq": -1}]), "malformed"),
        ("hall.e1", encoded(epochs="<big>").replace(b'"<big>"', b'[{"epoch":1180591620717411303424}]'), "malformed"),
        ("hall.e1", b'{"boot_id":"b","time":"2026-11-24T10:00:00Z","x":"\\ud800"}', "malformed"),
        ("hall.e1", encoded(x="\0"), "nul_character"),
        ("hall.e1", encoded(x="x" * BYTES_MAX), "too_large"),
    ],
)  # fmt: skip
def test_what_is_none_is_refused_with_its_reason(key: str, value: bytes, reason: str) -> None:
    with pytest.raises(FrameError) as raised:
        decode_heartbeat(key, value, NOW)
    assert raised.value.reason == reason


@pytest.mark.parametrize("which", ["epochs", "gone"])
def test_a_heartbeat_beyond_its_bound_is_refused_whole(which: str) -> None:
    """A list that was cut would abandon the epochs that it lacks."""
    reports = [{"epoch": number} for number in range(1, EPOCHS_MAX + 1)]
    assert len(getattr(decode_heartbeat("hall.e1", encoded(**{which: reports}), NOW), which)) == EPOCHS_MAX
    with pytest.raises(FrameError, match=r"too_many_epochs: .*at most 512 of each"):
        decode_heartbeat("hall.e1", encoded(**{which: [*reports, {"epoch": 9999}]}), NOW)
