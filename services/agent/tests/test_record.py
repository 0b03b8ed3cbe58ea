"""Records of the log: what is written is read, and nothing else passes as a record."""

import msgspec
import pytest

from cncmon_agent.batch import Batch, Source, make
from cncmon_agent.buffer import record
from cncmon_agent.buffer.record import Nonce

NONCE = Nonce(b"\x11\x22\x33\x44", 0x01020304)


def batch(size: int = 100, source: Source | None = None) -> Batch:
    made = make(2**63 - 1, 2**40, 2**50, "events" if size % 2 else "samples", [b"x" * size], 1, 1_700_000_000_000)
    return Batch(made.identity, bytes(size), 3, made.created_ms, source)


def raw_of(made: Batch, nonce: Nonce = NONCE) -> bytes:
    """Return the record without its filling."""
    encoded = record.encode(made, nonce)
    return encoded[: record.HEAD.size + record.HEAD.unpack_from(encoded)[2]]


@pytest.mark.parametrize("size", [0, 1, 2, 7, 8, 9, 2200, 1 << 20])
@pytest.mark.parametrize("source", [None, Source(2**63, 1, 2**40)])
def test_what_is_encoded_is_decoded(size: int, source: Source | None) -> None:
    made = batch(size, source)
    encoded = record.encode(made, NONCE)
    assert len(encoded) == record.size_of(made)
    assert len(encoded) % record.ALIGN == 0
    assert record.is_whole(raw_of(made), NONCE)
    assert record.decode(raw_of(made)) == made


def test_every_flipped_bit_is_seen() -> None:
    raw = raw_of(batch(50, Source(1, 2, 3)))
    for byte in range(len(raw)):
        for bit in range(8):
            flipped = bytearray(raw)
            flipped[byte] ^= 1 << bit
            assert not record.is_whole(bytes(flipped), NONCE), (byte, bit)


def test_a_record_of_another_nonce_never_passes() -> None:
    raw = raw_of(batch())
    assert not record.is_whole(raw, Nonce(NONCE.mark, NONCE.seed ^ 1))
    assert not record.is_whole(raw, Nonce(b"\x11\x22\x33\x45", NONCE.seed))
    for _ in range(1000):
        drawn = Nonce.draw()
        assert b"\0" not in drawn.mark
        # The very mark and another seed: the CRC alone tells.
        assert not record.is_whole(raw, Nonce(NONCE.mark, drawn.seed)) or drawn.seed == NONCE.seed


@pytest.mark.parametrize("cut", [0, 1, 11, 12, 85, 86, 185])
def test_a_cut_record_is_not_whole(cut: int) -> None:
    assert not record.is_whole(raw_of(batch())[:cut], NONCE)


def test_a_nonce_is_its_text() -> None:
    assert Nonce.parse(str(NONCE)) == NONCE
    assert msgspec.json.encode(str(NONCE)) == b'"1122334401020304"'
