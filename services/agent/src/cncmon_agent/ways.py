"""Where the stream put each batch, for hundreds of thousands of them in a few bytes each.

While a database is down for hours the stream takes every batch and the agent keeps them all: an object for each would
be the largest thing in its memory.
"""

import math
from array import array
from typing import Final

CHUNK: Final = 256
"""Batches in a chunk: 1.5 KiB when filled, and few enough chunks to look through twice a second."""

_LATER_S_MAX: Final = 0xFFFF
"""What two bytes hold, 18 hours: a batch taken later than that after the chunk's first counts as taken then."""

_OFFSET_MAX: Final = 0xFFFF_FFFE


class _Chunk:
    __slots__ = ("base", "began_s", "later_s", "places")

    def __init__(self, base: int, began_s: float) -> None:
        self.base = base
        self.began_s = began_s
        # Stream sequence less base, plus 1; 0: not taken.
        self.places = array("I", bytes(4 * CHUNK))
        self.later_s = array("H", bytes(2 * CHUNK))


class Ways:
    """Which batches of one epoch the stream has taken: seq → stream sequence and when, monotonic seconds."""

    def __init__(self) -> None:
        self._chunks: dict[int, _Chunk] = {}

    def take(self, seq: int, stream_seq: int, taken_s: float) -> None:
        """Note that the stream has a batch."""
        number, slot = divmod(seq, CHUNK)
        chunk = self._chunks.get(number)
        if chunk is None:
            chunk = self._chunks[number] = _Chunk(max(0, stream_seq - CHUNK * 16), taken_s)
        place = stream_seq - chunk.base + 1
        if not 0 < place <= _OFFSET_MAX:
            place = self._rebase(chunk, stream_seq)
        chunk.places[slot] = place
        chunk.later_s[slot] = min(_LATER_S_MAX, max(0, math.ceil(taken_s - chunk.began_s)))

    @staticmethod
    def _rebase(chunk: _Chunk, stream_seq: int) -> int:
        """Make room for a sequence below the base (the stream was made anew); what is out of reach is forgotten."""
        base = max(0, stream_seq - CHUNK * 16)
        for slot, place in enumerate(chunk.places):
            moved = place + chunk.base - base if place else 0
            chunk.places[slot] = moved if 0 < moved <= _OFFSET_MAX else 0
        chunk.base = base
        return stream_seq - base + 1

    def get(self, seq: int) -> tuple[int, float] | None:
        """Return (stream sequence, taken no later than, monotonic seconds) of a batch, or None where it isn't taken."""
        number, slot = divmod(seq, CHUNK)
        chunk = self._chunks.get(number)
        if chunk is None or not (place := chunk.places[slot]):
            return None
        return chunk.base + place - 1, chunk.began_s + chunk.later_s[slot]

    def __contains__(self, seq: int) -> bool:
        number, slot = divmod(seq, CHUNK)
        chunk = self._chunks.get(number)
        return chunk is not None and chunk.places[slot] != 0

    def forget(self, seq: int) -> None:
        """The stream has lost a batch."""
        number, slot = divmod(seq, CHUNK)
        if chunk := self._chunks.get(number):
            chunk.places[slot] = 0

    def at_or_above(self, stream_seq: int) -> list[int]:
        """Return the seqs whose place in the stream is at or above one, in order of seq."""
        found = []
        for number, chunk in sorted(self._chunks.items()):
            least = max(1, stream_seq - chunk.base + 1)
            found += [number * CHUNK + slot for slot, place in enumerate(chunk.places) if place >= least]
        return found

    def drop(self, up_to_seq: int) -> None:
        """Forget the chunks that lie wholly at or under a seq."""
        for number in [number for number in self._chunks if number * CHUNK + CHUNK - 1 <= up_to_seq]:
            del self._chunks[number]
