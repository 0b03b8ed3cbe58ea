"""The agent's accepted log: which samples it took on, in which batch, and what the disk and the stream had of them.

JSON lines: `{"epoch","seq","kind","base","samples":[[machine_id, poll_counter|null, timestamp],…]}` when a batch is in
the agent's buffer, `{"epoch","seq","acked": stream_seq}` when the stream has it, `{"epoch","synced": seq}` when a sync
has put everything up to that seq on the disk.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from cncmon_standalone.errors import StandaloneError


class Place(NamedTuple):
    """Where a sample is: its batch, and its frame in it."""

    epoch: int
    seq: int
    frame: int


class Taken(NamedTuple):
    """A sample that the agent accepted. counter is None for one that no poll answered: the machine was offline."""

    machine_id: str
    counter: int | None
    timestamp: datetime
    place: Place


class Line(msgspec.Struct):
    """One line of an accepted log."""

    epoch: int
    seq: int = 0
    kind: str = "samples"
    base: int = 0
    samples: list[tuple[str, int | None, datetime]] = []
    acked: int | None = None
    synced: int | None = None

    @property
    def accepts(self) -> bool:
        """Whether it says that a batch was accepted."""
        return self.acked is None and self.synced is None


decode_line = msgspec.json.Decoder(Line).decode


class AcceptedLog:
    """A log that is complete, or that a killed agent has torn (`torn`: lines that end early are no error).

    promised_only: take a batch as accepted only once it was synced, or the stream had acknowledged it: what an agent
    promises that is killed.
    """

    def __init__(self, path: Path, *, promised_only: bool = False) -> None:
        self._path = path
        self._promised_only = promised_only
        self._acked: set[tuple[int, int]] = set()
        self._synced: dict[int, int] = {}
        for line in self._lines() if promised_only else ():
            if line.acked is not None:
                self._acked.add((line.epoch, line.seq))
            elif line.synced is not None:
                self._synced[line.epoch] = line.synced

    def samples(self, wanted: Callable[[str], bool] = lambda _: True) -> Iterator[Taken]:
        """Yield the accepted samples of the machines that are wanted."""
        for line in self._lines():
            if not line.accepts:
                continue
            if self._promised_only and not self._is_promised(line):
                continue
            for frame, (machine_id, counter, timestamp) in enumerate(line.samples):
                if wanted(machine_id):
                    yield Taken(machine_id, counter, timestamp, Place(line.epoch, line.seq, frame))

    def _is_promised(self, line: Line) -> bool:
        return line.seq <= self._synced.get(line.epoch, 0) or (line.epoch, line.seq) in self._acked

    def machines(self) -> Counter[str]:
        """Return how many samples of each machine there are."""
        return Counter(sample.machine_id for sample in self.samples())

    def _lines(self) -> Iterator[Line]:
        with self._path.open("rb") as file:
            for number, text in enumerate(file, 1):
                try:
                    yield decode_line(text)
                except msgspec.MsgspecError as error:
                    if not self._promised_only:
                        raise StandaloneError(f"the agent's accepted log {self._path}:{number}: {error}") from error
                    # What the killed agent was writing; the next start's first line may hang on to it.
                    start = text.rfind(b'{"epoch"')
                    if start > 0:
                        yield decode_line(text[start:])
