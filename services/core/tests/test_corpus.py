"""Everything in tests/corpus/frames through split and decode, and mutations of it."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cncmon_core import frames
from cncmon_core.errors import FrameError, MessageError
from cncmon_core.sample import Sample, decode_sample
from corpus.make_frames import CASES, EXPECTED, FOLDER

FILES = sorted(path for path in FOLDER.iterdir() if path != EXPECTED)


def verdict(payload: bytes, *, is_zstd: bool) -> str:
    """Return what becomes of a message, in the notation of expected.json."""
    try:
        parts, tail = frames.split(frames.decompress(payload) if is_zstd else payload)
    except MessageError as error:
        return f"!{error.reason}"
    found = []
    for part in parts:
        try:
            assert isinstance(decode_sample(part), Sample)
        except FrameError as error:
            found.append(error.reason)
        else:
            found.append("ok")
    return ",".join(found) + (f"|{tail.reason}" if tail else "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_entry_meets_its_expectation(path: Path) -> None:
    expected = json.loads(EXPECTED.read_text())
    assert verdict(path.read_bytes(), is_zstd=path.suffix == ".zst") == expected[path.name]


def test_the_files_are_what_the_script_makes() -> None:
    assert {path.name for path in FILES} == CASES.keys()
    assert json.loads(EXPECTED.read_text()) == {name: expected for name, (_, expected) in CASES.items()}
    for path in FILES:
        # Another version of zstd may compress otherwise; what is inside is compared by the test above.
        assert path.suffix == ".zst" or path.read_bytes() == CASES[path.name][0]
        assert path.stat().st_size < 8192


@st.composite
def mutations(draw: st.DrawFn) -> tuple[bytes, bool]:
    path = draw(st.sampled_from(FILES))
    payload = bytearray(path.read_bytes())
    for _ in range(draw(st.integers(1, 4))):
        at, end = sorted(draw(st.tuples(st.integers(0, len(payload)), st.integers(0, len(payload)))))
        end = min(end, at + 40)
        match draw(st.sampled_from(("overwrite", "insert", "delete", "double", "flip"))):
            case "overwrite":
                payload[at:end] = draw(st.binary(min_size=end - at, max_size=end - at))
            case "insert":
                payload[at:at] = draw(st.binary(max_size=8) | st.sampled_from((b"\0", b"\\u0000", b'"', b"[", b"e99")))
            case "delete":
                del payload[at:end]
            case "double":
                payload[at:at] = payload[at:end]
            case "flip" if at < len(payload):
                payload[at] ^= 1 << draw(st.integers(0, 7))
    return bytes(payload), path.suffix == ".zst"


@settings(max_examples=600)
@given(mutations())
def test_a_mutation_is_stored_or_refused_with_a_reason(mutation: tuple[bytes, bool]) -> None:
    payload, is_zstd = mutation
    assert isinstance(verdict(payload, is_zstd=is_zstd), str)
