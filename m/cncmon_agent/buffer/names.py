"""Names of files in the log's folders, and the page at a file's beginning.

A segment's name carries its nonce. A file that is used anew gets a new name first: whichever of the writes into it a
power cut then loses, also that of its header, its old records are void under the new name.
"""

import re
import secrets
import zlib
from struct import Struct as Packer
from typing import Final, NamedTuple

from cncmon_agent.buffer.record import Nonce

LOCK: Final = "lock"
SPARE_SUFFIX: Final = ".spare"
UNFINISHED_SUFFIX: Final = ".new"

HEADER: Final = Packer("<8sIIQQ8sI")
HEADER_BYTES: Final = 64
MAGIC: Final = b"cncmlog\n"
VERSION: Final = 1

_PATTERN = re.compile(r"([0-9a-f]{8})-([0-9a-f]{16})-([0-9a-f]{12})-([0-9a-f]{6})-([0-9a-f]{16})\.seg")


class SegmentName(NamedTuple):
    """A segment file's name; names sort by age.

    generation: grows with every start of the agent that wrote. first: the lowest seq meant for the file. serial: grows
    with every file of the epoch; of two files with the same seqs the later one counts.
    """

    generation: int
    epoch: int
    first: int
    serial: int
    nonce: Nonce

    def __str__(self) -> str:
        return f"{self.generation:08x}-{self.epoch:016x}-{self.first:012x}-{self.serial:06x}-{self.nonce}.seg"


def parse(text: str) -> SegmentName | None:
    """Return what a file's name says, or None where it is not a segment's."""
    found = _PATTERN.fullmatch(text)
    if found is None:
        return None
    generation, epoch, first, serial, nonce = found.groups()
    return SegmentName(int(generation, 16), int(epoch, 16), int(first, 16), int(serial, 16), Nonce.parse(nonce))


def spare_name() -> str:
    """Return a fresh name for a file that holds nothing."""
    return secrets.token_hex(8) + SPARE_SUFFIX


def header_of(name: SegmentName) -> bytes:
    """Return the 64 bytes at a segment's beginning: for people, and to tell a format of the future."""
    nonce = bytes.fromhex(str(name.nonce))
    fields = MAGIC, VERSION, 0, name.epoch, name.first, nonce
    crc = zlib.crc32(HEADER.pack(*fields, 0)[:-4])
    return HEADER.pack(*fields, crc).ljust(HEADER_BYTES, b"\0")


def version_of(header: bytes, nonce: Nonce) -> int | None:
    """Return the format's version in a header; None where it is damaged or an earlier use of the file left it."""
    if len(header) < HEADER.size:
        return None
    magic, version, _, _, _, found, crc = HEADER.unpack_from(header)
    whole = magic == MAGIC and crc == zlib.crc32(header[: HEADER.size - 4])
    return version if whole and found.hex() == str(nonce) else None
