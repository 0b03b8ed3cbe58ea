"""One record of the log: a batch between a mark and the next 8-byte boundary.

    [mark 4][crc32 u32][length u32][epoch u64][seq u64][base u64][created_ms u64][frames u32][samples u32][kind u8]
    [flags u8][sha256 32][source: log u64, first u64, last u64, where flag 1 is set][data]          little-endian

`length` counts what follows it; the CRC (zlib's) covers the length and all behind it. Mark and start value of the CRC
come from the segment's nonce, which is drawn whenever a file is used anew: an old record can't pass as a new one, since
CRCs of the same bytes from different start values always differ.
"""

import secrets
import zlib
from struct import Struct as Packer
from typing import Final, NamedTuple

from cncmon_agent.batch import Batch, Source
from cncmon_core.identity import Identity, Kind

HEAD: Final = Packer("<4sII")
BODY: Final = Packer("<QQQQIIBB32s")
SOURCE: Final = Packer("<QQQ")
FIXED_BYTES: Final = HEAD.size + BODY.size
ALIGN: Final = 8
HAS_SOURCE: Final = 1
EVENTS: Final = 1

_AFTER_CRC: Final = 8


class Nonce(NamedTuple):
    """What tells a segment's records from everything else. mark: four bytes, none zero. seed: where its CRCs start."""

    mark: bytes
    seed: int

    @classmethod
    def draw(cls) -> "Nonce":
        """Return a fresh one."""
        while b"\0" in (mark := secrets.token_bytes(4)):
            pass
        return cls(mark, secrets.randbits(32))

    @classmethod
    def parse(cls, text: str) -> "Nonce":
        """Return the one of 16 hex digits."""
        return cls(bytes.fromhex(text[:8]), int(text[8:], 16))

    def __str__(self) -> str:
        return f"{self.mark.hex()}{self.seed:08x}"


def size_of(batch: Batch) -> int:
    """Return how many bytes the record of a batch takes, filling included."""
    return aligned(FIXED_BYTES + (SOURCE.size if batch.source else 0) + len(batch.data))


def aligned(count: int) -> int:
    """Return the next multiple of 8."""
    return (count + ALIGN - 1) & -ALIGN


def encode(batch: Batch, nonce: Nonce) -> bytes:
    """Return the record of a batch, a multiple of 8 bytes."""
    name, source, data = batch.identity, batch.source, batch.data
    body = BODY.pack(
        name.epoch,
        name.seq,
        name.base,
        batch.created_ms,
        name.frames,
        batch.samples,
        name.kind == "events",
        source is not None,
        bytes.fromhex(name.sha256),
    )
    if source is not None:
        body += SOURCE.pack(source.log, source.first, source.last)
    length = len(body) + len(data)
    counted = b"".join((length.to_bytes(4, "little"), body, data))
    crc = zlib.crc32(counted, nonce.seed)
    filling = bytes(-(length + HEAD.size) & (ALIGN - 1))
    return b"".join((nonce.mark, crc.to_bytes(4, "little"), counted, filling))


def is_whole(raw: bytes, nonce: Nonce) -> bool:
    """Whether `raw` (without filling) is one record of the segment with this nonce, undamaged."""
    if len(raw) < FIXED_BYTES:
        return False
    mark, crc, length = HEAD.unpack_from(raw)
    if mark != nonce.mark or length != len(raw) - HEAD.size:
        return False
    return zlib.crc32(memoryview(raw)[_AFTER_CRC:], nonce.seed) == int(crc)


def decode(raw: bytes) -> Batch:
    """Return the batch of a record that `is_whole`."""
    epoch, seq, base, created_ms, frames, samples, kind, flags, digest = BODY.unpack_from(raw, HEAD.size)
    start = FIXED_BYTES
    source = None
    if flags & HAS_SOURCE:
        source = Source(*SOURCE.unpack_from(raw, start))
        start += SOURCE.size
    what: Kind = "events" if kind == EVENTS else "samples"
    return Batch(Identity(epoch, seq, frames, base, digest.hex(), what), raw[start:], samples, created_ms, source)
