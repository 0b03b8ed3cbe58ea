"""Cuts samples into batches and appends them to the buffer: the moment at which they are accepted."""

import asyncio
from collections.abc import Callable
from datetime import datetime

from prometheus_client import Counter

from cncmon_agent.accepted_log import AcceptedLog, Mark
from cncmon_agent.batch import Source, make
from cncmon_agent.buffer import Buffer
from cncmon_agent.settings import AgentSettings
from cncmon_core import logs
from cncmon_core.errors import FrameError
from cncmon_core.frames import MAX_PAYLOAD_RESERVE_BYTES, PREFIX_BYTES
from cncmon_core.identity import Kind
from cncmon_core.sample import Sample, decode_sample, encode_sample

log = logs.get(__name__)

ACCEPTED = Counter("cncmon_edge_samples_accepted", "Samples taken into the buffer.")
REFUSED = Counter("cncmon_edge_samples_refused", "Samples not taken because the buffer was full.")
BATCHES = Counter("cncmon_edge_batches", "Batches cut.", ["kind"])

COUNTER_EXTRA = "poll_counter"
"""The extra by which a sample of a simulated machine is found again in the simulator's own log."""


class Batcher:
    """Collects samples of one epoch. Not for use from several threads."""

    def __init__(
        self,
        settings: AgentSettings,
        epoch: int,
        buffer: Buffer,
        record: AcceptedLog | None,
        now: Callable[[], datetime],
        *,
        counted: bool = True,
    ) -> None:
        """now: the time that batches are said to have been made at, for their age. counted: whether what is taken here
        is accepted for good, or will be again when it is moved.
        """
        self._settings = settings
        self._epoch = epoch
        self._buffer = buffer
        self._record = record
        self._now = now
        self._counted = counted
        self._frames: list[bytes] = []
        self._marks: list[Mark] = []
        self._bytes = 0
        self._bytes_max = settings.batch_bytes_max
        self._frames_max = settings.batch_frames_max
        self._base = 0
        self._samples_before = 0
        self._timer: asyncio.TimerHandle | None = None
        self._refusing = False
        self.refused = 0
        self.online = False
        self.appended = asyncio.Event()

    @property
    def samples(self) -> int:
        """Samples of this epoch accepted so far."""
        return self._base

    @property
    def accepted(self) -> int:
        """Samples accepted since the start, in whatever epoch."""
        return self._samples_before + self._base

    def begin(self, epoch: int, buffer: Buffer) -> None:
        """Append to another epoch from the next batch on, what is collected by now included."""
        self._epoch, self._buffer = epoch, buffer
        self._samples_before, self._base = self.accepted, 0

    @property
    def batch_bytes_max(self) -> int:
        """Bytes of a batch before compression, at most."""
        return self._bytes_max

    def add(self, sample: Sample) -> None:
        """Add a sample to the batch that is being collected, and cut it where it is full."""
        frame = encode_sample(sample)
        size = len(frame) + PREFIX_BYTES
        if self._bytes + size > self._bytes_max:
            self.cut()
        self._frames.append(frame)
        self._bytes += size
        if self._record is not None:
            self._marks.append(_mark(sample))
        if len(self._frames) >= self._frames_max:
            self.cut()
        elif self._timer is None:
            linger_ms = self._settings.linger_ms if self.online else self._settings.linger_offline_ms
            self._timer = asyncio.get_running_loop().call_later(linger_ms / 1000, self.cut)

    def go(self, *, online: bool) -> None:
        """Linger shortly while there is a connection, longer while there is none."""
        if online and not self.online:
            self.cut()
        self.online = online

    def limit(self, payload_bytes_max: int) -> None:
        """Cut batches so that they fit into a message of the server, were they not to compress at all."""
        self._bytes_max = min(self._settings.batch_bytes_max, payload_bytes_max - MAX_PAYLOAD_RESERVE_BYTES)

    def cut(self) -> None:
        """Append what is collected as one batch."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._frames:
            return
        frames, marks = self._frames, self._marks
        self._frames, self._marks, self._bytes = [], [], 0
        if self._append("samples", frames, marks):
            self._base += len(frames)
            if self._counted:
                ACCEPTED.inc(len(frames))
        else:
            self.refused += len(frames)
            REFUSED.inc(len(frames))

    def add_events(self, frames: list[bytes]) -> int | None:
        """Append events as a batch of their own; return its seq, or None where the buffer is full."""
        self.cut()
        _, seq = self._buffer.range()
        return seq if self._append("events", frames, []) else None

    def add_stamped(self, frames: list[bytes], source: Source) -> int | None:
        """Append samples of an unstamped log as one batch; return its seq, or None where the buffer is full."""
        _, seq = self._buffer.range()
        marks = [mark for frame in frames if (mark := _mark_of(frame))] if self._record is not None else []
        if not self._append("samples", frames, marks, source):
            return None
        self._base += len(frames)
        ACCEPTED.inc(len(frames))
        return seq

    def _append(self, kind: Kind, frames: list[bytes], marks: list[Mark], source: Source | None = None) -> bool:
        _, seq = self._buffer.range()
        created_ms = int(self._now().timestamp() * 1000)
        batch = make(self._epoch, seq, self._base, kind, frames, self._settings.compression_level, created_ms, source)
        if not self._buffer.append(batch):
            if not self._refusing:
                log.error(
                    "the buffer is full: samples are refused until it drains", batches=self._buffer.stats().batches
                )
            self._refusing = True
            return False
        if self._refusing:
            log.info("the buffer has room again")
            self._refusing = False
        BATCHES.labels(kind).inc()
        if self._record is not None:
            self._record.accepted(batch, marks)
        self.appended.set()
        return True


def _mark_of(frame: bytes) -> Mark | None:
    try:
        return _mark(decode_sample(frame))
    except FrameError:
        # Goes on as it is; ingest says what is wrong with it.
        return None


def _mark(sample: Sample) -> tuple[str, int | None, datetime]:
    counter = sample.extras.get(COUNTER_EXTRA) if sample.extras else None
    return sample.machine_id, counter, sample.timestamp
