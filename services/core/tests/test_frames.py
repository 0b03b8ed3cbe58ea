import contextlib
import tracemalloc

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cncmon_core import frames
from cncmon_core.errors import MessageError
from cncmon_core.frames import DECOMPRESSED_BYTES_MAX, FRAME_BYTES_MAX, FRAMES_MAX, BadTail, join, split

MIB = 1 << 20


def unsized(payload: bytes) -> bytes:
    """Compress without telling the size, as a streaming sender does."""
    stream = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return stream.compress(payload) + stream.flush()


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=50))
def test_split_undoes_join(parts: list[bytes]) -> None:
    assert split(join(parts)) == (parts, None)


@settings(max_examples=500)
@given(st.binary(max_size=400))
@example(b"\0\0\0\0")
@example(b"\0\0\0\1")
@example(b"\xff\xff\xff\xff")
def test_split_of_any_bytes_loses_none(payload: bytes) -> None:
    if not payload:
        with pytest.raises(MessageError, match="empty_message"):
            split(payload)
        return
    parts, tail = split(payload)
    assert join(parts) + (tail.raw if tail else b"") == payload
    assert tail is None or (tail.raw and tail.reason in ("trailing_bytes", "truncated_frame", "frame_too_large"))


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=6))
def test_every_truncation_keeps_the_whole_frames(parts: list[bytes]) -> None:
    payload = join(parts)
    ends = [len(join(parts[:count])) for count in range(len(parts) + 1)]
    for cut in range(1, len(payload)):
        whole = sum(end <= cut for end in ends) - 1
        found, tail = split(payload[:cut])
        assert found == parts[:whole]
        left = cut - ends[whole]
        if not left:
            assert tail is None
        else:
            assert tail is not None
            assert tail.raw == payload[ends[whole] : cut]
            assert tail.reason == ("trailing_bytes" if left < 4 else "truncated_frame")


def test_the_original_system_s_message_is_one_frame() -> None:
    assert split(b"\0\0\0\7" + b'{"a":1}') == ([b'{"a":1}'], None)


@pytest.mark.parametrize(
    ("length", "reason"),
    [(FRAME_BYTES_MAX, "truncated_frame"), (FRAME_BYTES_MAX + 1, "frame_too_large"), (0xFFFF_FFFF, "frame_too_large")],
)
def test_a_length_beyond_the_payload(length: int, reason: str) -> None:
    rest = length.to_bytes(4, "big") + b"abc"
    parts, tail = split(join([b"first"]) + rest)
    assert parts == [b"first"]
    assert isinstance(tail, BadTail)
    assert (tail.raw, tail.reason) == (rest, reason)
    assert str(length) in tail.detail


def test_a_long_frame_inside_the_payload_is_left_to_the_sample_decoder() -> None:
    parts = [bytes(FRAME_BYTES_MAX + 1), b"{}"]
    assert split(join(parts)) == (parts, None)


def test_ten_thousand_frames_and_no_more() -> None:
    assert len(split(join([b""] * FRAMES_MAX))[0]) == FRAMES_MAX == 10_000
    for extra in (b"\0\0\0\0", b"\0\0\0\0\0", b"\0\0\0\0" * 4_000_000):
        with pytest.raises(MessageError) as error:
            split(join([b""] * FRAMES_MAX) + extra)
        assert error.value.reason == "too_many_frames"


@given(st.binary(max_size=2000), st.integers(1, 19))
def test_decompress_undoes_compress(payload: bytes, level: int) -> None:
    assert frames.decompress(frames.compress(payload, level)) == payload
    assert frames.decompress(unsized(payload)) == payload


@given(st.binary(max_size=300))
def test_decompress_of_any_bytes_raises_nothing_else(data: bytes) -> None:
    with contextlib.suppress(MessageError):
        assert len(frames.decompress(data)) <= DECOMPRESSED_BYTES_MAX


@given(st.binary(min_size=1, max_size=300), st.data())
def test_no_cut_and_no_tail_passes_for_a_whole_one(payload: bytes, data: st.DataObject) -> None:
    for packed in (frames.compress(payload), unsized(payload)):
        cut = data.draw(st.integers(0, len(packed) - 1))
        tail = data.draw(st.binary(min_size=1, max_size=30))
        for bad in (packed[:cut], packed + tail, packed + packed):
            with pytest.raises(MessageError) as error:
                frames.decompress(bad)
            assert error.value.reason == "bad_compression"


@pytest.mark.parametrize("pack", [frames.compress, unsized])
def test_the_limit_of_what_is_decompressed(pack) -> None:
    assert len(frames.decompress(pack(bytes(16 * MIB)))) == 16 * MIB == DECOMPRESSED_BYTES_MAX
    with pytest.raises(MessageError) as error:
        frames.decompress(pack(bytes(16 * MIB + 1)))
    assert error.value.reason == "too_large"


SKIPPABLE = b"\x50\x2a\x4d\x18\4\0\0\0skip"
BOMB = bytes(400 * MIB)


@pytest.mark.parametrize(
    ("bomb", "reason"),
    [
        (frames.compress(BOMB), "too_large"),
        (unsized(BOMB), "too_large"),
        (SKIPPABLE + frames.compress(BOMB), "too_large"),
        (SKIPPABLE + unsized(BOMB), "too_large"),
        (frames.compress(b"") + unsized(BOMB), "too_large"),
    ],
    ids=["sized", "unsized", "behind a skippable frame", "unsized behind a skippable frame", "behind an empty frame"],
)
def test_a_bomb_takes_no_memory_beyond_the_limit(bomb: bytes, reason: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(MessageError) as error:
            frames.decompress(bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert error.value.reason == reason
    assert peak < 40 * MIB


def test_a_size_that_lies_is_refused() -> None:
    packed = bytearray(frames.compress(bytes(1000)))
    at = packed.index((1000 - 256).to_bytes(2, "little"))
    packed[at : at + 2] = (2000).to_bytes(2, "little")
    with pytest.raises(MessageError) as error:
        frames.decompress(bytes(packed))
    assert error.value.reason == "bad_compression"


def test_the_window_is_bounded_too() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    wide = stream.compress(b"x" * 100) + stream.flush()
    with pytest.raises(MessageError) as error:
        frames.decompress(wide)
    assert error.value.reason == "bad_compression"
