"""The end of a sealed segment: an index of its records, and the SHA-256 of all before it.

The footer ends where the file ends, so that it is found without reading the records:
`[index: u64 × count][…][trailer]`. One index entry a seq from the first on: place of the record in units of 8 bytes
(24 bits), length of its data (24 bits), samples (16 bits); 0: not in this file.
"""

import sys
import zlib
from array import array
from struct import Struct as Packer
from typing import Final, NamedTuple

from cncmon_agent.buffer.disk import DiskCalls
from cncmon_agent.buffer.record import Nonce

PAGE: Final = 4096
"""Bytes that are written at a time: the page of the page cache, and a whole number of any disk's sectors."""
TRAILER: Final = Packer("<4sQQQIIQII32sI")
ENTRY_BYTES: Final = 8
BATCH_OVERHEAD: Final = 300
"""What `Batch.bytes` counts beside the data."""


type Index = array[int]


class Footer(NamedTuple):
    """What a sealed segment says of itself.

    first, last: seqs. samples: of all records. held_bytes: as `Batch.bytes` counts. data_bytes: where the records end.
    index_at: where the index is; index_crc: its CRC. sha256: of the first `data_bytes` bytes.
    """

    first: int
    last: int
    samples: int
    held_bytes: int
    data_bytes: int
    index_at: int
    index_crc: int
    sha256: bytes


def empty() -> Index:
    """Return an index without entries."""
    return array("Q")


def pack(at: int, data_bytes: int, samples: int) -> int:
    """Return an index entry. at: byte place of the record."""
    return at >> 3 << 40 | data_bytes << 16 | samples


def place(entry: int) -> int:
    """Return the byte place of a record from its index entry."""
    return entry >> 40 << 3


def data_bytes(entry: int) -> int:
    """Return how long a record's data is."""
    return entry >> 16 & 0xFFFFFF


def samples(entry: int) -> int:
    """Return how many samples a record has."""
    return entry & 0xFFFF


def batch_bytes(entry: int) -> int:
    """Return what `Batch.bytes` says of a record."""
    return (entry >> 16 & 0xFFFFFF) + BATCH_OVERHEAD


def size_of(count: int) -> int:
    """Return how many bytes at the end of a file the footer of so many records takes, whole pages."""
    return -(-(count * ENTRY_BYTES + TRAILER.size) // PAGE) * PAGE


def encode(index: Index, first: int, data_bytes: int, sha256: bytes, file_bytes: int, nonce: Nonce) -> bytes:
    """Return the footer of a file of `file_bytes`, a whole number of pages, to be written so that it ends the file."""
    raw = _little(index).tobytes()
    room = size_of(len(index))
    held = [entry for entry in index if entry]
    fields = (
        nonce.mark,
        first,
        first + len(index) - 1,
        data_bytes,
        sum(map(samples, held)),
        file_bytes - room,
        sum(map(batch_bytes, held)),
        zlib.crc32(raw, nonce.seed),
        0,
        sha256,
    )
    trailer = TRAILER.pack(*fields, 0)[:-4]
    trailer += zlib.crc32(trailer, nonce.seed).to_bytes(4, "little")
    return raw + bytes(room - len(raw) - len(trailer)) + trailer


def read(disk: DiskCalls, fd: int, file_bytes: int, nonce: Nonce) -> Footer | None:
    """Return a file's footer; None where there is none of this nonce, or a damaged one. Raises OSError."""
    if file_bytes < PAGE:
        return None
    return parse(disk.pread(fd, TRAILER.size, file_bytes - TRAILER.size), nonce)


def parse(raw: bytes, nonce: Nonce) -> Footer | None:
    """Return the footer of a trailer's bytes; None where they are damaged."""
    if len(raw) < TRAILER.size:
        return None
    mark, first, last, data, samples, index_at, size, index_crc, _, sha256, crc = TRAILER.unpack(raw)
    if mark != nonce.mark or crc != zlib.crc32(raw[:-4], nonce.seed):
        return None
    return Footer(first, last, samples, size, data, index_at, index_crc, sha256)


def read_index(disk: DiskCalls, fd: int, footer: Footer, nonce: Nonce) -> Index | None:
    """Return the index of a sealed segment; None where it is damaged. Raises OSError."""
    raw = disk.pread(fd, (footer.last - footer.first + 1) * ENTRY_BYTES, footer.index_at)
    if zlib.crc32(raw, nonce.seed) != footer.index_crc or len(raw) % ENTRY_BYTES:
        return None
    return _little(array("Q", raw))


def _little(index: Index) -> Index:
    if sys.byteorder == "big":
        index = index[:]
        index.byteswap()
    return index
