"""Samples taken before the time was known: in a log of their own, with 1970 plus boottime for a timestamp (rule A8).

A log belongs to one process and is written until the clock settles. What must be known of it to stamp its samples later
is in one small file beside the logs, synced before the first of them. `mover` stamps and moves them.
"""

import secrets
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec
from prometheus_client import Gauge

from cncmon_agent.buffer import Buffer
from cncmon_agent.clock import Clock
from cncmon_agent.ranges import Ranges
from cncmon_agent.time_floor import BUILD_NS, SmallFile
from cncmon_core import logs
from cncmon_core.identity import EPOCH_MAX
from cncmon_core.sample import Sample

log = logs.get(__name__)

UNSTAMPED = Gauge("cncmon_edge_unstamped_samples", "Samples that wait for the time to be known.")

FLAG = "time_uncertain"
"""The extra of a sample whose timestamp is a guess: true, or absent."""


class LogMeta(msgspec.Struct, omit_defaults=True):
    """What is known of one log.

    log: its number, random, where a batch of the main log has its epoch. boot_id: kernel boot in which it was written.
    base_ns: Unix time at the beginning of that boot, at least. anchor_ns: the same, once settled; uncertain: as a
    guess. moved, lost, declared: samples that are in the main log; that are nowhere; of those, that a gap was said of.
    Samples are numbered 1, 2, 3 … within the log (`Identity.base` + 1 is the first of a batch), as in `Source`.
    """

    log: int
    boot_id: str
    base_ns: int
    anchor_ns: int | None = None
    uncertain: bool = False
    moved: Ranges = []
    lost: Ranges = []
    declared: Ranges = []


class LogsFile(msgspec.Struct):
    """The file's content, oldest log first."""

    logs: list[LogMeta]


class Logs(Protocol):
    """A folder of logs, as `buffer.spool.Spool`; a log's number is the epoch of its batches."""

    @property
    def earlier(self) -> Mapping[int, Buffer]:
        """Logs of earlier processes, complete once recovered."""
        ...

    def begin(self, epoch: int) -> Buffer:
        """Begin a log of this process."""
        ...

    def forget(self, epoch: int) -> None:
        """Remove an earlier log."""
        ...


class Sink(Protocol):
    """What collects samples into batches, as `batcher.Batcher`."""

    def add(self, sample: Sample) -> None:
        """Take a sample."""
        ...

    def cut(self) -> None:
        """Append what is collected."""
        ...

    def go(self, *, online: bool) -> None:
        """Linger shortly or long."""
        ...


class Unstamped:
    """This process's log, if it needs one, and the file on all logs. Not for use from several threads."""

    def __init__(self, clock: Clock, spool: Logs, file: SmallFile, make_sink: Callable[[int, Buffer], Sink]) -> None:
        """Begin a log where the time is not known. `make_sink(log, buffer)` makes what cuts batches for it.

        Raises:
            OSError: the file can't be written, or the log not begun; no sample may be taken then.
        """
        self.clock = clock
        self.spool = spool
        self._file = file
        self.metas = self._read()
        self.own: Buffer | None = None
        self.own_log: int | None = None
        self._sink: Sink | None = None
        if not clock.settled:
            self.own_log = secrets.randbelow(EPOCH_MAX) + 1
            self.metas.append(LogMeta(self.own_log, clock.boot_id, clock.floor.base_ns))
            self.write(self.encoded())
            self.own = spool.begin(self.own_log)
            self._sink = make_sink(self.own_log, self.own)
            log.info("wall time is not known: samples are kept until it is", log=self.own_log)

    def add(self, sample: Sample) -> None:
        """Take a sample stamped by `Clock.stamp` before the clock settled."""
        if self._sink is None:
            raise RuntimeError("the clock was settled when this process began")
        self._sink.add(sample)

    def cut(self) -> None:
        """Append what is collected as a batch: when the clock settles, and at a stop."""
        if self._sink is not None:
            self._sink.cut()

    def go(self, *, online: bool) -> None:
        """Cut batches as the main log's are: linger shortly while there is a connection, longer while there is none."""
        if self._sink is not None:
            self._sink.go(online=online)

    def samples(self) -> int:
        """Return how many samples wait here, and set the metric. What is moved and not yet freed counts too."""
        held = [*self.spool.earlier.values(), *([self.own] if self.own is not None else [])]
        number = sum(one.stats().samples for one in held)
        UNSTAMPED.set(number)
        return number

    def meta_of(self, number: int) -> LogMeta:
        """Return what is known of a log; of one that the file does not list, that it is of an earlier boot."""
        for meta in self.metas:
            if meta.log == number:
                return meta
        log.error("nothing is known of a log of samples without time: they get the lowest bound", log=number)
        meta = LogMeta(number, "", BUILD_NS)
        self.metas.insert(0, meta)
        return meta

    def encoded(self) -> bytes:
        """Return the file's content as it should be now."""
        return msgspec.json.encode(LogsFile(self.metas))

    def write(self, content: bytes) -> None:
        """Write the file. Blocks for the disk.

        Raises:
            OSError: tried again by the mover.
        """
        self._file.write(content)

    def _read(self) -> list[LogMeta]:
        content = self._file.read()
        if content is None:
            return []
        try:
            return msgspec.json.decode(content, type=LogsFile).logs
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            log.error("the file on samples without time is damaged: they get the lowest bound", error=str(error))
            return []


class MemoryLogs:
    """Logs in memory, for an agent without a disk: what is not moved at its end is lost. `make` makes a hot ring."""

    def __init__(self, make: Callable[[], Buffer]) -> None:
        self._make = make
        self.earlier: dict[int, Buffer] = {}

    def begin(self, epoch: int) -> Buffer:
        """Begin the only log."""
        del epoch
        return self._make()

    def forget(self, epoch: int) -> None:
        """Do nothing: there are no earlier logs."""


class MemoryFile:
    """A `SmallFile` in memory, for an agent without a disk."""

    def __init__(self) -> None:
        self.content: bytes | None = None

    def read(self) -> bytes | None:
        """Return what was written."""
        return self.content

    def write(self, content: bytes) -> None:
        """Keep it."""
        self.content = content


class Intake:
    """Where pollers put samples: stamped ones into the main log, the others aside."""

    def __init__(self, clock: Clock, stamped: Sink, unstamped: Unstamped) -> None:
        self._clock = clock
        self._stamped = stamped
        self._unstamped = unstamped

    def add(self, sample: Sample) -> None:
        """Take a sample that `Clock.stamp` has stamped since the last await."""
        if not self._clock.settled:
            self._unstamped.add(sample)
            return
        if self._clock.uncertain:
            flag(sample)
        self._stamped.add(sample)


def flag(sample: Sample) -> None:
    """Say in a sample that its timestamp is a guess."""
    sample.extras = (sample.extras or {}) | {FLAG: True}
