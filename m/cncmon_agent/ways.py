"""Where the stream put each batch, for hundreds of thousands of them in a few bytes each.

While a database is down for hours the stream takes every batch and the agent keeps them all: an object for each would
be the largest thing in its memory.
"""

import math
from array import array
from collections.abc import Iterator
from itertools import groupby
from typing import Final

CHUNK: Final = 256
"""Batches in a chunk: 1.5 KiB when filled, and few enough chunks to look through twice a second."""

_LATER_S_MAX: Final = 0xFFFF
"""What two bytes hold, 18 hours: what was taken longer than that before another of its chunk counts as taken then."""

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
        later_s = max(0, math.ceil(taken_s - chunk.began_s))
        if later_s > _LATER_S_MAX:
            later_s = self._begin_later(chunk, later_s)
        chunk.places[slot] = place
        chunk.later_s[slot] = later_s

    def take_all(self, first: int, last: int, stream_seq: int, taken_s: float) -> None:
        """Note of every seq from first to last that the stream has it, at this place or under it.

        In whole chunks: after a database that was down for a day these are a million, and the event loop waits.
        """
        for number in range(first // CHUNK, last // CHUNK + 1):
            start = number * CHUNK
            if first <= start and start + CHUNK - 1 <= last and number not in self._chunks:
                chunk = self._chunks[number] = _Chunk(max(0, stream_seq - CHUNK * 16), taken_s)
                chunk.places = array("I", [stream_seq - chunk.base + 1]) * CHUNK
                continue
            for seq in range(max(first, start), min(last, start + CHUNK - 1) + 1):
                self.take(seq, stream_seq, taken_s)

    @staticmethod
    def _begin_later(chunk: _Chunk, later_s: int) -> int:
        """Move a chunk's beginning so that a time fits; return the time. What is out of reach counts as later."""
        by_s = later_s - _LATER_S_MAX
        chunk.began_s += by_s
        chunk.later_s = array("H", [max(0, old_s - by_s) for old_s in chunk.later_s])
        return _LATER_S_MAX

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
        return [seq for run in self._runs(stream_seq) for seq in run]

    def lose(self, stream_seq: int, above_seq: int) -> list[tuple[int, int]]:
        """Forget those above a seq whose place is at or above one in the stream; return them as ranges, ends excluded.

        As ranges: a stream made anew after a day takes a million batches along.
        """
        found: list[tuple[int, int]] = []
        for run in self._runs(stream_seq):
            at = max(run.start, above_seq + 1)
            if at >= run.stop:
                continue
            number, slot = divmod(at, CHUNK)
            self._chunks[number].places[slot : slot + run.stop - at] = array("I", bytes(4 * (run.stop - at)))
            if found and found[-1][1] == at:
                at = found.pop()[0]
            found.append((at, run.stop))
        return found

    def _runs(self, stream_seq: int) -> Iterator[range]:
        """Iterate over the seqs whose place is at or above one, in order, as ranges that lie within a chunk each."""
        for number, chunk in sorted(self._chunks.items()):
            least = max(1, stream_seq - chunk.base + 1)
            start = number * CHUNK
            if min(chunk.places) >= least:
                yield range(start, start + CHUNK)
                continue
            wanted = [place >= least for place in chunk.places]
            for there, slots in groupby(range(CHUNK), wanted.__getitem__):
                if there:
                    run = list(slots)
                    yield range(start + run[0], start + run[-1] + 1)

    def drop(self, up_to_seq: int) -> None:
        """Forget the chunks that lie wholly at or under a seq."""
        for number in [number for number in self._chunks if number * CHUNK + CHUNK - 1 <= up_to_seq]:
            del self._chunks[number]
