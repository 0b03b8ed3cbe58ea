"""What edges have accepted, and what the database says became of it: the judge of a run of the model."""

import contextlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import NamedTuple, Protocol

import asyncpg
import msgspec

from cncmon_agent.accepted_log import AcceptedLog, Mark
from cncmon_agent.batch import Batch
from cncmon_core import frames
from cncmon_core.errors import MessageError
from cncmon_core.identity import ENCODING
from cncmon_core.sample import Sample

Key = tuple[int, int, str]
"""epoch, seq, SHA-256: two processes may give one identity to two batches."""


class Holder(Protocol):
    """An edge."""

    def holds(self, key: Key) -> bool:
        """Whether it has a batch, or still has to declare it."""


class Quality(StrEnum):
    """What becomes of a sample: stored, refused by the decoder, or refused by the database."""

    GOOD = "good"
    FUTURE = "future"
    REFUSED = "refused"


REFUSED_PART_COUNT = -1
"""The model's database has a constraint against it."""

FUTURE = timedelta(days=2)


def sample(number: int, machine: str, quality: Quality) -> Sample:
    """Return a sample that no other equals. Some are large and don't compress, so that segments fill up."""
    now = datetime.now(UTC)
    return Sample(
        machine,
        now + FUTURE if quality is Quality.FUTURE else now,
        20.0,
        1000.0,
        active_program_line=number,
        part_count=REFUSED_PART_COUNT if quality is Quality.REFUSED else 1,
        extras={"poll_counter": number},
    )


class Found(NamedTuple):
    """What a database has at one moment. stored: number of a sample → how often. dead: numbers in dead letters.

    gaps: epoch, first, last. watermarks: epoch → seq.
    """

    stored: dict[int, int]
    dead: set[int]
    gaps: list[tuple[int, int, int]]
    watermarks: dict[int, int]

    def is_gap(self, key: Key) -> bool:
        """Whether a batch is in a gap."""
        return any(epoch == key[0] and low <= key[1] <= high for epoch, low, high in self.gaps)


async def look(connection: asyncpg.Connection) -> Found:
    """Return what the database has now."""
    # One moment: what reads the stream again commits meanwhile.
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        stored = await connection.fetch("SELECT active_program_line, count(*) FROM sensor_data GROUP BY 1")
        letters = await connection.fetch("SELECT frame, headers, payload FROM dead_letters WHERE state <> 'replayed'")
        gaps = await connection.fetch("SELECT epoch, seq_from, seq_to FROM gaps")
        watermarks = await connection.fetch("SELECT epoch, seq FROM watermarks")
    return Found(
        dict(tuple(row) for row in stored),
        {number for row in letters for number in _numbers_of(row)},
        [tuple(row) for row in gaps],
        dict(tuple(row) for row in watermarks),
    )


def _numbers_of(letter: asyncpg.Record) -> Iterable[int]:
    parts = [letter["payload"]]
    if letter["frame"] < 0:
        data = letter["payload"]
        if ENCODING in msgspec.json.decode(letter["headers"]):
            data = frames.decompress(data)
        parts, _ = frames.split(data)
    for part in parts:
        with contextlib.suppress(msgspec.MsgspecError, MessageError):
            yield msgspec.json.decode(part)["active_program_line"]


class Promises(AcceptedLog):
    """All batches of samples that any edge ever accepted; `promised` are those whose sync it has confirmed."""

    def __init__(self) -> None:
        self.batches: dict[Key, list[int]] = {}
        self.quality: dict[int, Quality] = {}
        self.promised: set[Key] = set()
        self.excused: set[Key] = set()
        """Lost together with the disk they were on, and nobody else knew of them."""
        self.regressed: set[Key] = set()
        """The database had them, and was restored to a time before that. At the end they are there, or a gap."""
        self.in_stream: set[Key] = set()
        """Those of them that the stream had. At the end they are there."""
        self.gone: set[Key] = set()
        """Lost with a disk. At the end they are there, or a gap, unless they are excused."""
        self.history: dict[Key, list[str]] = {}
        """What each batch was like, and since when."""

    def number(self, quality: Quality) -> int:
        """Return the next sample's number."""
        number = len(self.quality) + 1
        self.quality[number] = quality
        return number

    def accepted(self, batch: Batch, marks: list[Mark]) -> None:
        """An edge's buffer has taken a batch."""
        name = batch.identity
        self.batches[(name.epoch, name.seq, name.sha256)] = [mark[1] for mark in marks if mark[1] is not None]

    def acked(self, epoch: int, seq: int, stream_seq: int) -> None:
        """The stream has a batch: nothing is promised by that."""

    def synced(self, epoch: int, seq: int) -> None:
        """An edge's disk has everything of an epoch up to a seq."""
        self.promised |= {key for key in self.batches if key[0] == epoch and key[1] <= seq}

    def close(self) -> None:
        """Nothing is open."""

    def is_settled(self, key: Key, found: Found) -> bool:
        """Whether each sample of a batch is stored or a dead letter, or the batch a gap."""
        return found.is_gap(key) or self.is_there(key, found)

    def is_there(self, key: Key, found: Found) -> bool:
        """Whether each sample of a batch is stored or a dead letter."""
        return all(number in found.stored or number in found.dead for number in self.batches[key])

    def note(self, at: str, found: Found, edges: Mapping[str, Holder]) -> None:
        """Write down of each batch what it is like now, where that changed."""
        for key in self.batches:
            words = ["there"] if self.is_there(key, found) else []
            words += ["gap"] if found.is_gap(key) else []
            words += (
                [f"under watermark {found.watermarks[key[0]]}"] if key[1] <= found.watermarks.get(key[0], 0) else []
            )
            words += [f"held by {name}" for name, edge in edges.items() if edge.holds(key)]
            sets = ("promised", "excused", "regressed", "in_stream", "gone")
            words += [name for name in sets if key in getattr(self, name)]
            history = self.history.setdefault(key, [])
            said = ", ".join(words) or "nowhere"
            if not history or history[-1].split(": ", 1)[1] != said:
                history.append(f"{at}: {said}")

    def check(self, found: Found) -> None:
        """Raise AssertionError where a sample is there twice, in the wrong place, or a watermark passed what is not."""
        twice = {number: count for number, count in found.stored.items() if count > 1}
        assert not twice, f"samples stored more than once: {twice}"
        both = found.dead & set(found.stored)
        assert not both, f"samples stored and dead letters: {both}"
        bad = {number for number in found.stored if self.quality.get(number) is not Quality.GOOD}
        assert not bad, f"samples stored that must be dead letters: {bad}"
        good = {number for number in found.dead if self.quality.get(number) is Quality.GOOD}
        assert not good, f"good samples are dead letters: {good}"
        for key in self.batches:
            if key[1] <= found.watermarks.get(key[0], 0):
                assert self.is_settled(key, found), (
                    f"the watermark {found.watermarks[key[0]]} passed {key[:2]}, which is neither there nor a gap: "
                    f"{self._state(key, found)}, {self.history[key]}"
                )

    def _state(self, key: Key, found: Found) -> list[str]:
        """Return of each sample of a batch what it is like and where it is."""
        places = [("stored", found.stored), ("dead", found.dead)]
        return [
            f"{number} ({self.quality[number]}): {[name for name, numbers in places if number in numbers]}"
            for number in self.batches[key]
        ]

    def unsettled(self, found: Found) -> list[Key]:
        """Return what was promised and is neither stored, dead nor a gap."""
        return sorted(key for key in self.promised - self.excused if not self.is_settled(key, found))
