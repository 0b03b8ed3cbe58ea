"""The frame codec: `[4-byte big-endian length][JSON]`, one or many frames a message, zstd by header.

Every limit is checked before memory is taken for what it limits. A message of exactly one frame is what the original
system sent.
"""

import threading
from collections.abc import Iterable
from struct import Struct as Packer
from typing import Final, NamedTuple

import zstandard

from cncmon_core.errors import MessageError

FRAME_BYTES_MAX: Final = 1 << 20
"""1 MiB, the limit of the original system's decoder."""
FRAMES_MAX: Final = 10_000
DECOMPRESSED_BYTES_MAX: Final = 16 << 20
MAX_PAYLOAD_RESERVE_BYTES: Final = 4096
"""Kept free of the server's max_payload for headers: the server counts them, the client's own check does not."""

ENCODING_ZSTD: Final = "zstd"

_LENGTH = Packer(">I")
PREFIX_BYTES: Final = _LENGTH.size
_NUMBER_AND_LENGTH = Packer(">II")

NUMBERED_BYTES_MAX: Final = DECOMPRESSED_BYTES_MAX + (FRAMES_MAX + 2) * _NUMBER_AND_LENGTH.size
"""Of the frames that one message may hold, each behind its number."""


class BadTail(NamedTuple):
    """The rest of a message from the first byte that no frame can begin at."""

    raw: bytes
    reason: str
    detail: str


def join(frames: Iterable[bytes]) -> bytes:
    """Return the frames as one payload, each behind its length."""
    parts: list[bytes] = []
    for frame in frames:
        parts.append(_LENGTH.pack(len(frame)))
        parts.append(frame)
    return b"".join(parts)


def split(payload: bytes) -> tuple[list[bytes], BadTail | None]:
    """Return the frames of an uncompressed payload in order, and what follows them that is no frame.

    Zero-length and oversized frames that lie inside the payload are returned like any other: `decode_sample` refuses
    them one by one, and the frames behind them are kept.

    Raises:
        MessageError: the payload is empty or holds more than `FRAMES_MAX` frames.
    """
    end = len(payload)
    if not end:
        raise MessageError("empty_message", "the message has no bytes")
    frames: list[bytes] = []
    append, unpack_length = frames.append, _LENGTH.unpack_from
    offset = 0
    while offset + PREFIX_BYTES <= end:
        (length,) = unpack_length(payload, offset)
        start = offset + PREFIX_BYTES
        if start + length > end:
            return frames, _overrun(payload, offset, length)
        append(payload[start : start + length])
        offset = start + length
        if len(frames) > FRAMES_MAX:
            raise MessageError("too_many_frames", f"more than {FRAMES_MAX} frames in one message")
    if offset < end:
        detail = f"{end - offset} bytes after the last frame, too few for a length prefix"
        return frames, BadTail(payload[offset:], "trailing_bytes", detail)
    return frames, None


def _overrun(payload: bytes, offset: int, length: int) -> BadTail:
    left = len(payload) - offset - PREFIX_BYTES
    if length > FRAME_BYTES_MAX:
        detail = f"the length prefix says {length} bytes; a frame has at most {FRAME_BYTES_MAX}"
        return BadTail(payload[offset:], "frame_too_large", detail)
    detail = f"the length prefix says {length} bytes, {left} are left"
    return BadTail(payload[offset:], "truncated_frame", detail)


def join_numbered(numbered: Iterable[tuple[int, bytes]]) -> bytes:
    """Return some frames of a message with their numbers in it, zstd-compressed.

    Uncompressed, each is its number and its length, both 4 bytes big-endian, and then its bytes.
    """
    parts: list[bytes] = []
    for number, frame in numbered:
        parts.append(_NUMBER_AND_LENGTH.pack(number, len(frame)))
        parts.append(frame)
    return compress(b"".join(parts))


def split_numbered(data: bytes) -> list[tuple[int, bytes]]:
    """Return what `join_numbered` was given.

    Raises:
        MessageError: it was not made by that.
    """
    payload = decompress(data, NUMBERED_BYTES_MAX)
    numbered: list[tuple[int, bytes]] = []
    offset = 0
    while offset < len(payload):
        start = offset + _NUMBER_AND_LENGTH.size
        number, length = _NUMBER_AND_LENGTH.unpack_from(payload, offset) if start <= len(payload) else (0, len(payload))
        if start + length > len(payload):
            raise MessageError("truncated_frame", f"frames with their numbers end in the middle of one, at {offset}")
        numbered.append((number, payload[start : start + length]))
        offset = start + length
    return numbered


def compress(payload: bytes, level: int = 3) -> bytes:
    """Return the payload zstd-compressed, with its size in the header so that a reader can refuse before allocating."""
    return zstandard.ZstdCompressor(level=level, write_content_size=True).compress(payload)


_kept = threading.local()


def _decompressor() -> zstandard.ZstdDecompressor:
    """Return this thread's, which may be used again and again: a new one costs as much as a hundred frames."""
    if not hasattr(_kept, "decompressor"):
        _kept.decompressor = zstandard.ZstdDecompressor(max_window_size=DECOMPRESSED_BYTES_MAX)
    found: zstandard.ZstdDecompressor = _kept.decompressor
    return found


def decompress(data: bytes, bytes_max: int = DECOMPRESSED_BYTES_MAX) -> bytes:
    """Return the payload of a message with `Cncmon-Encoding: zstd`.

    Raises:
        MessageError: not one whole zstd frame, or more than `bytes_max`.
    """
    try:
        size = zstandard.frame_content_size(data)
        if size > bytes_max:
            raise MessageError("too_large", f"{size} bytes decompressed; a message has at most {bytes_max}")
        if size > 0:
            return _decompressor().decompress(data, allow_extra_data=False)
        decompressor = zstandard.ZstdDecompressor(max_window_size=DECOMPRESSED_BYTES_MAX)
        # The sender did not say how much it is: read one byte past the limit and no further.
        with decompressor.stream_reader(data) as reader:
            payload = reader.read(bytes_max + 1)
        if len(payload) <= bytes_max:
            # The reader ends quietly where the data does; this one tells a cut and a tail, and is bounded by now.
            whole = decompressor.decompressobj()
            payload = whole.decompress(data)
            if not whole.eof or whole.unused_data:
                raise MessageError("bad_compression", "not one whole zstd frame: it is cut short, or more follows it")
            return payload
    except zstandard.ZstdError as error:
        raise MessageError("bad_compression", f"not a zstd frame: {error}") from error
    raise MessageError("too_large", f"decompresses to more than {bytes_max} bytes")
