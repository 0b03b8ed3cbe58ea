"""What agents promised: every accepted sample, and of an epoch that a kill -9 ended those that were synced or acked.

The accepted log holds three kinds of lines, each written with one call that a kill of the process does not undo:
`{"epoch","seq","kind","base","samples"}` when a batch is accepted, `{"epoch","synced": seq}` after a group commit, and
`{"epoch","seq","acked": stream_seq}` at the stream's acknowledgement.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from cncmon_standalone.proof.accepted import AcceptedLog, Line, Place, Taken, decode_line

_LINE = b'{"epoch"'


class TornLogError(AssertionError):
    """A log holds a line that is none, though no agent that wrote it was killed."""


class Promised(AcceptedLog):
    """The accepted logs of one or many agents, less what was not promised.

    killed: epochs that a kill -9 ended. A sample of theirs that was neither synced nor acknowledged may be stored or
    lost; like every other it must not be stored twice, which is judged by the machine's own counter.
    lost: epochs whose disk is gone, with the last seq that the cloud side was told of: up to there all must be stored
    or stand in a gap, and above it what was acknowledged.
    """

    def __init__(
        self, paths: Iterable[Path], killed: Collection[int] = (), lost: Mapping[int, int] | None = None
    ) -> None:
        self._paths = list(paths)
        self._lost = dict(lost or {})
        self._killed = frozenset(killed) | self._lost.keys()
        self._acked_seqs: dict[int, set[int]] = defaultdict(set)
        self._synced: dict[int, int] = {}
        for line in self._promises():
            if line.acked is not None:
                self._acked_seqs[line.epoch].add(line.seq)
            elif line.synced is not None:
                self._synced[line.epoch] = max(line.synced, self._synced.get(line.epoch, 0))

    def promised(self, epoch: int, seq: int) -> bool:
        """Whether an accepted batch must be in the database, or be accounted for."""
        if epoch not in self._killed:
            return True
        if epoch in self._lost:
            return seq <= self._lost[epoch] or seq in self._acked_seqs.get(epoch, ())
        return seq <= self._synced.get(epoch, 0) or seq in self._acked_seqs.get(epoch, ())

    def batches(self) -> Iterator[Line]:
        """Yield every accepted batch, promised or not."""
        return (line for line in self.lines() if line.accepts)

    def samples(self, wanted: Callable[[str], bool] = lambda _: True) -> Iterator[Taken]:
        """Yield the promised samples of the machines that are wanted."""
        for line in self.batches():
            if not self.promised(line.epoch, line.seq):
                continue
            for frame, (machine_id, counter, timestamp) in enumerate(line.samples):
                if wanted(machine_id):
                    yield Taken(machine_id, counter, timestamp, Place(line.epoch, line.seq, frame))

    def ends(self) -> dict[int, int]:
        """Return epoch → the seq up to which every batch is promised, events included; 0 where not even the first is.

        The batches of an epoch stand in its log in the order of their seqs.
        """
        ends: dict[int, int] = {}
        for line in self.batches():
            end = ends.setdefault(line.epoch, 0)
            if line.seq == end + 1 and self.promised(line.epoch, line.seq):
                ends[line.epoch] = line.seq
        return ends

    def _promises(self) -> Iterator[Line]:
        return (line for line in self.lines() if not line.accepts)

    def lines(self) -> Iterator[Line]:
        """Yield every line of every log.

        Raises:
            TornLogError: a line ends early in a log of which no epoch was killed.
        """
        for path in self._paths:
            killed = False
            with path.open("rb") as file:
                for number, text in enumerate(file, 1):
                    try:
                        line = decode_line(text)
                    except msgspec.MsgspecError as error:
                        if not (killed or self._killed):
                            raise TornLogError(f"{path}:{number}: {error}") from error
                        # What a killed agent was writing; the next start's first line may hang on to it.
                        start = text.rfind(_LINE)
                        if start <= 0:
                            continue
                        line = decode_line(text[start:])
                    killed = killed or line.epoch in self._killed
                    yield line


def last_epoch(path: Path) -> int | None:
    """Return the epoch that an agent is in, or was in when it was killed; None where its log is empty."""
    ends = newest(path)
    return None if ends is None else ends[0]


def newest(path: Path) -> tuple[int, int] | None:
    """Return (epoch, seq) of the batch that was accepted last, from the end of the file."""
    for line in _backwards(path):
        if line.accepts:
            return line.epoch, line.seq
    return None


def _backwards(path: Path, block_bytes: int = 1 << 20) -> Iterator[Line]:
    """Yield a log's lines from its end; only whole ones."""
    if not path.exists():
        return
    with path.open("rb") as file:
        at = file.seek(0, 2)
        rest = b""
        while at:
            start = max(0, at - block_bytes)
            file.seek(start)
            first, *others = (file.read(at - start) + rest).split(b"\n")
            for text in reversed(others):
                if (line := _try(text)) is not None:
                    yield line
            rest, at = first, start
        if (line := _try(rest)) is not None:
            yield line


def _try(text: bytes) -> Line | None:
    try:
        return decode_line(text)
    except msgspec.MsgspecError:
        return None
