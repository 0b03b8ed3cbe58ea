"""Makes tests/corpus/frames: `python -m tests.corpus.make_frames`. Run it after adding a case; a test compares.

Every case says what is expected of it: for each frame `ok` or the reason it is refused for; then, behind `|`, the
reason of a bad tail; or `!` and the reason that refuses the whole message.
"""

import json
import struct
from pathlib import Path
from typing import Any, Final

import zstandard

from cncmon_core import frames

FOLDER: Final = Path(__file__).parent / "frames"
EXPECTED: Final = FOLDER / "expected.json"

SAMPLE: Final[dict[str, Any]] = {
    "machine_id": "cnc-001",
    "temperature": 25.5,
    "spindle_speed": 2500.0,
    "timestamp": "2026-11-24T10:00:00.123456Z",
    "x_pos_mm": 100.25,
    "y_pos_mm": 99.5,
    "z_pos_mm": 10.125,
    "feed_rate_actual": 1200.0,
    "spindle_load_percent": 55.5,
    "machine_state": "running",
    "active_program_line": 120,
    "total_power_kw": 7.25,
}


def frame(**changes: Any) -> bytes:
    """Return a sample's JSON; a field set to `...` is left out."""
    fields = SAMPLE | changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


def raw(text: str) -> bytes:
    """Return a minimal sample with `text` in the place of further fields."""
    return f'{{"machine_id":"m","timestamp":"2026-11-24T10:00:00Z","temperature":1,"spindle_speed":2{text}}}'.encode()


def prefixed(length: int, rest: bytes) -> bytes:
    """Return bytes behind a length of our choosing."""
    return struct.pack(">I", length) + rest


GOOD: Final = frame()

CASES: Final[dict[str, tuple[bytes, str]]] = {
    "one-frame": (frames.join([GOOD]), "ok"),
    "three-frames": (frames.join([GOOD, frame(machine_id="cnc-002"), GOOD]), "ok,ok,ok"),
    "optional-fields": (
        frames.join([frame(mode="AUTOMATIC", program="O1", part_count=3, tool_number=7, anomaly_score=0.25)]),
        "ok",
    ),
    "extras": (frames.join([frame(extras={"door_open": True, "alarm_code": 0, "note": "ok"})]), "ok"),
    "unknown-fields": (frames.join([frame(vibration_mm_s=1.5, operator="Zoë")]), "ok"),
    "unknown-state": (frames.join([frame(machine_state="warming up")]), "ok"),
    "all-null": (frames.join([frame(**dict.fromkeys(list(SAMPLE)[4:]), temperature=None, spindle_speed=None)]), "ok"),
    "minimal": (frames.join([raw("")]), "ok"),
    "other-zone": (frames.join([frame(timestamp="2026-11-24T11:00:00+01:00")]), "ok"),
    "first-year": (frames.join([frame(timestamp="0001-01-01T00:00:00+23:59")]), "ok"),
    "escapes": (frames.join([raw(r',"program":"\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00"')]), "ok"),
    "negative-zero": (frames.join([raw(',"x_pos_mm":-0.0')]), "ok"),
    "int64-limits": (
        frames.join([raw(',"part_count":9223372036854775807,"active_program_line":-9223372036854775808')]),
        "ok",
    ),
    "repeated-field": (frames.join([raw(',"temperature":7')]), "ok"),
    "a-bad-one-between": (frames.join([GOOD, b"{", GOOD]), "ok,malformed_json,ok"),
    "original-malformed": (
        frames.join([b'{"machine_id": "CNC-MALFORMED", "temperature": "not-a-float"}']),
        "invalid_field",
    ),
    "cut-json": (frames.join([GOOD[: len(GOOD) // 2]]), "malformed_json"),
    "no-object": (frames.join([b"[1,2]"]), "malformed_json"),
    "no-utf8": (frames.join([raw(',"program":"§"').replace("§".encode(), b"\xff")]), "malformed_json"),
    "byte-order-mark": (frames.join([b"\xef\xbb\xbf" + GOOD]), "malformed_json"),
    "deep": (frames.join([raw(',"a":' + "[" * 3000 + "]" * 3000)]), "malformed_json"),
    "nul-bytes": (frames.join([b"\0" * 40]), "malformed_json"),
    "nul-in-text": (frames.join([raw(',"program":"a\0b"')]), "malformed_json"),
    "escaped-nul-in-text": (frames.join([raw(r',"program":"a\u0000b"')]), "nul_character"),
    "escaped-nul-in-name": (frames.join([raw(r',"a\u0000b":1')]), "nul_character"),
    "escaped-nul-deep": (frames.join([raw(r',"extras":{"a":[{"b":"\u0000"}]}')]), "nul_character"),
    "escaped-backslash-before-u0000": (frames.join([raw(r',"program":"\\u0000"')]), "ok"),
    "lone-surrogate": (frames.join([raw(r',"program":"\ud800"')]), "malformed_json"),
    "nan": (frames.join([raw(',"x_pos_mm":NaN')]), "not_finite"),
    "infinity": (frames.join([raw(',"x_pos_mm":-Infinity')]), "not_finite"),
    "beyond-float": (frames.join([raw(',"x_pos_mm":1e999')]), "not_finite"),
    "beyond-int64": (frames.join([raw(',"part_count":9223372036854775808')]), "invalid_field"),
    "missing-machine": (frames.join([frame(machine_id=...)]), "missing_field"),
    "missing-temperature": (frames.join([frame(temperature=...)]), "missing_field"),
    "naive-timestamp": (frames.join([frame(timestamp="2026-11-24T10:00:00")]), "naive_timestamp"),
    "no-timestamp": (frames.join([frame(timestamp="yesterday")]), "invalid_field"),
    "leap-second": (frames.join([frame(timestamp="2016-12-31T23:59:60Z")]), "invalid_field"),
    "numeric-timestamp": (frames.join([frame(timestamp=1_795_520_745)]), "invalid_field"),
    "float-line": (frames.join([frame(active_program_line=1.5)]), "invalid_field"),
    "bool-temperature": (frames.join([frame(temperature=True)]), "invalid_field"),
    "extras-no-object": (frames.join([frame(extras=[1])]), "invalid_field"),
    "empty-machine": (frames.join([frame(machine_id="")]), "invalid_field"),
    "long-machine": (frames.join([frame(machine_id="m" * 129)]), "invalid_field"),
    "long-machine-in-bytes": (frames.join([frame(machine_id="é" * 65)]), "invalid_field"),
    "long-text": (frames.join([frame(program="x" * 1025)]), "invalid_field"),
    "zero-length-frame": (frames.join([b"", GOOD]), "zero_length,ok"),
    "only-zero-lengths": (frames.join([b"", b""]), "zero_length,zero_length"),
    "trailing-bytes": (frames.join([GOOD]) + b"\0\1", "ok|trailing_bytes"),
    "three-bytes": (b"\0\0\0", "|trailing_bytes"),
    "length-beyond-payload": (prefixed(len(GOOD) + 1, GOOD), "|truncated_frame"),
    "length-2-gib": (frames.join([GOOD]) + prefixed(1 << 31, GOOD), "ok|frame_too_large"),
    "length-all-ones": (prefixed(0xFFFF_FFFF, b""), "|frame_too_large"),
    "bare-json": (GOOD, "|frame_too_large"),
    "empty": (b"", "!empty_message"),
    "zstd-without-its-header": (frames.compress(frames.join([GOOD])), "|frame_too_large"),
    "too-many-frames.zst": (frames.compress(frames.join([b""] * 10_001)), "!too_many_frames"),
    "one-frame.zst": (frames.compress(frames.join([GOOD])), "ok"),
    "cut.zst": (frames.compress(frames.join([GOOD] * 9))[:-9], "!bad_compression"),
    "tail.zst": (frames.compress(frames.join([GOOD])) + b"tail", "!bad_compression"),
    "bomb.zst": (frames.compress(bytes(64 << 20)), "!too_large"),
    "no-zstd.zst": (frames.join([GOOD]), "!bad_compression"),
    "empty.zst": (b"", "!bad_compression"),
    "skippable.zst": (b"\x50\x2a\x4d\x18\4\0\0\0skip", "!empty_message"),
    "skippable-then-bomb.zst": (b"\x50\x2a\x4d\x18\4\0\0\0skip" + frames.compress(bytes(64 << 20)), "!too_large"),
    "nothing-inside.zst": (frames.compress(b""), "!empty_message"),
}


def _unsized(payload: bytes) -> bytes:
    """Compress without telling the size, as a streaming sender does."""
    stream = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return stream.compress(payload) + stream.flush()


CASES.update(
    {
        "unsized.zst": (_unsized(frames.join([GOOD])), "ok"),
        "unsized-cut.zst": (_unsized(frames.join([GOOD] * 9))[:-9], "!bad_compression"),
        "unsized-tail.zst": (_unsized(frames.join([GOOD])) + b"tail", "!bad_compression"),
        "unsized-two.zst": (_unsized(frames.join([GOOD])) * 2, "!bad_compression"),
        "unsized-bomb.zst": (_unsized(bytes(64 << 20)), "!too_large"),
    }
)


def main() -> None:
    """Write the files."""
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.iterdir():
        path.unlink()
    for name, (payload, _) in CASES.items():
        (FOLDER / name).write_bytes(payload)
    expected = {name: expected for name, (_, expected) in sorted(CASES.items())}
    EXPECTED.write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
