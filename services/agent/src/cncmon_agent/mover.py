"""Moves samples from the unstamped logs to the main log, once their time can be told (rule A8).

In groups: stamp and append with the range they came from, wait until the main log has them synced, write down how far
that is, then let go of both sides. Until it is written down, what was appended is neither published nor freed:
published and then lost to a power cut it would be moved, and stored, a second time; freed, nothing would tell any more
that it was moved.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple, Protocol

import msgspec
from prometheus_client import Counter

from cncmon_agent import ranges
from cncmon_agent.batch import Batch, Source
from cncmon_agent.buffer import Buffer
from cncmon_agent.clock import from_unix_ns, to_unix_ns
from cncmon_agent.delivery import is_held
from cncmon_agent.unstamped import LogMeta, Unstamped, flag
from cncmon_core import frames, logs
from cncmon_core.errors import MessageError
from cncmon_core.frames import PREFIX_BYTES
from cncmon_core.sample import Sample, encode_sample

log = logs.get(__name__)

GROUP_BATCHES: Final = 32
"""Batches moved between two syncs: 8 MiB at most; 32,000 samples a second at 500 each and two syncs a second."""

RETRY_S: Final = 1.0
"""Pause after the main log was full, or the file on the logs could not be written."""

MOVED = Counter("cncmon_edge_samples_restamped", "Samples that got their time later and were moved to the main log.")
LOST = Counter("cncmon_edge_unstamped_samples_lost", "Samples without time that were dropped, or damaged, before that.")

_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_decode = msgspec.json.Decoder(Sample).decode

InThread = Callable[[Callable[[bytes], None], bytes], Awaitable[None]]


class MainLog(Protocol):
    """The epoch of this process, where stamped samples go."""

    @property
    def batch_bytes_max(self) -> int:
        """Bytes of a batch before compression, at most, length prefixes included."""
        ...

    def add_stamped(self, parts: list[bytes], source: Source) -> int | None:
        """Append one batch of these frames with this source; return its seq, or None when there is no room."""
        ...

    async def synced(self, epoch: int, seq: int) -> None:
        """Return when everything up to a seq of an epoch of this process is synced (or dropped since)."""
        ...


class Lost(NamedTuple):
    """Samples first..last of an unstamped log that no batch will bring: a gap of the epoch `log`."""

    log: int
    first: int
    last: int


class Mover:
    """Not for use from several threads.

    noted: whether what earlier processes moved is written down. Until then no earlier epoch's batch that has a source
    may be published or freed.
    """

    def __init__(
        self, unstamped: Unstamped, main: MainLog, epoch: int, in_thread: InThread = asyncio.to_thread
    ) -> None:
        self._unstamped = unstamped
        self._clock = unstamped.clock
        self._main = main
        self._epoch = epoch
        self._in_thread = in_thread
        self._recovered = asyncio.Event()
        self._writing = asyncio.Lock()
        self._held: dict[tuple[int, int], Source] = {}
        self.noted = False
        self.done = False

    def recovered(self, sources: Iterable[Source]) -> None:
        """Begin, once both spools are recovered: `sources` are those of every batch of earlier epochs in the main one.

        They must be synced: after a kill of the agent alone, a file may hold records that only the page cache has. What
        is noted here as moved is soon gone from the unstamped log.
        """
        for source in sources:
            for meta in self._unstamped.metas:
                if meta.log == source.log:
                    ranges.add(meta.moved, source.first, source.last)
        self._recovered.set()

    def holds(self, batch: Batch) -> bool:
        """Return whether a batch may not be published yet: it was moved here, and that is not written down."""
        if batch.source is None:
            return False
        return not self.noted or (batch.identity.epoch, batch.identity.seq) in self._held

    def pinned_from(self, epoch: int) -> int | None:
        """Return the first seq of an epoch that may not be freed, or None; frees stop one below it."""
        if epoch != self._epoch and not self.noted:
            return 1
        return min((seq for of, seq in self._held if of == epoch), default=None)

    def begin(self, epoch: int) -> None:
        """Append to another epoch from now on; what was appended to the one before is held there."""
        self._epoch = epoch

    def lost(self) -> list[Lost]:
        """Return what is to be declared as gaps, each with its log as the epoch and sample numbers as seqs."""
        return [
            Lost(meta.log, *gap)
            for meta in self._unstamped.metas
            for first, last in meta.lost
            for gap in ranges.missing(meta.declared, first, last)
        ]

    def declared(self, lost: Lost) -> None:
        """Note that a gap is in the database. Written with the next group, or by a later process."""
        ranges.add(self._unstamped.meta_of(lost.log).declared, lost.first, lost.last)

    async def run(self) -> None:
        """Move everything there is and will be; returns when the time is known and nothing is left."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._note_time())
            await self._recovered.wait()
            # What a run before this one appended, and did not come to write down, must not be appended again.
            await self._finish_group()
            await self._begin()
            await self._move_all()
        self.done = True

    async def _note_time(self) -> None:
        """Write down what the time was as soon as that can be told: the move may begin much later."""
        await self._clock.wait_settled()
        for meta in self._unstamped.metas:
            self._time_of(meta)
        await self._persist()

    async def _begin(self) -> None:
        earlier = self._unstamped.spool.earlier
        for number in list(earlier):
            self._unstamped.meta_of(number)
        self._forget_finished(set(earlier))
        self._bound_by_earlier_boots(earlier)
        await self._persist()
        self.noted = True

    async def _move_all(self) -> None:
        earlier = self._unstamped.spool.earlier
        for meta in [meta for meta in self._unstamped.metas if meta.log in earlier]:
            if meta.boot_id == self._clock.boot_id and meta.anchor_ns is None:
                await self._clock.wait_settled()
            await self._move(meta, earlier[meta.log])
            self._unstamped.spool.forget(meta.log)
        if self._unstamped.own is not None and self._unstamped.own_log is not None:
            await self._clock.wait_settled()
            self._unstamped.cut()
            await self._move(self._unstamped.meta_of(self._unstamped.own_log), self._unstamped.own)

    def _forget_finished(self, there: set[int]) -> None:
        """Drop what is known of logs that are gone from disk; not earlier, or one that returns would be moved again."""
        kept = [
            meta
            for meta in self._unstamped.metas
            if meta.log in there or meta.log == self._unstamped.own_log or _undeclared(meta)
        ]
        self._unstamped.metas[:] = kept

    def _bound_by_earlier_boots(self, earlier: Mapping[int, Buffer]) -> None:
        """Raise each boot's lower bound to the end of the boot before it."""
        end_ns, boot, bases = 0, "", dict[str, int]()
        for meta in self._unstamped.metas:
            if meta.boot_id != boot or not boot:
                boot = meta.boot_id
                bases[boot] = end_ns
            meta.base_ns = max(meta.base_ns, bases[boot])
            base_ns = meta.base_ns if meta.anchor_ns is None else meta.anchor_ns
            end_ns = max(end_ns, base_ns + _last_boottime_ns(earlier.get(meta.log)))
        last = self._unstamped.metas[-1].boot_id if self._unstamped.metas else ""
        # Of this boot the bound counts from its beginning; what it has written itself says nothing new.
        self._clock.floor.raise_base(bases.get(last, 0) if last == self._clock.boot_id else end_ns)

    async def _move(self, meta: LogMeta, buffer: Buffer) -> None:
        first, end = buffer.range()
        for seq in range(first, end):
            while (batch := buffer.get(seq)) is None and is_held(buffer, seq):  # noqa: ASYNC110 a disk has no events
                # Not to be read just now: neither lost, nor to be let go of.
                await asyncio.sleep(RETRY_S)
            if batch is None:
                continue
            await self._move_batch(meta, batch)
            # Nothing waits to be written down: all of this batch is, and of those before it.
            if not self._held:
                buffer.free(seq)
            await asyncio.sleep(0)
        await self._finish_group()
        buffer.free(end - 1)

    async def _move_batch(self, meta: LogMeta, batch: Batch) -> None:
        first, last = batch.identity.base + 1, batch.identity.base + batch.identity.frames
        self._note_lost(meta, first - 1)
        left = list(ranges.missing(meta.moved, first, last))
        if not left:
            return
        try:
            parts, _ = frames.split(frames.decompress(batch.data))
        except MessageError as error:
            log.error("samples without time can't be read", log=meta.log, error=str(error))
            self._note_lost(meta, last)
            return
        for low, high in left:
            await self._append(meta, low, parts[low - first : high - first + 1])
            if len(self._held) >= GROUP_BATCHES:
                await self._finish_group()

    async def _append(self, meta: LogMeta, first: int, parts: list[bytes]) -> None:
        """Append samples of one log, whose first has the number `first`, in batches that fit."""
        anchor_ns, uncertain = self._time_of(meta)
        stamped = [stamp(frame, anchor_ns, uncertain=uncertain) for frame in parts]
        for portion in _portions(stamped, self._main.batch_bytes_max):
            source = Source(meta.log, first, first + len(portion) - 1)
            while (seq := self._main.add_stamped(portion, source)) is None:
                # Only what is let go of can be freed and make room.
                await self._finish_group()
                await asyncio.sleep(RETRY_S)
            self._held[self._epoch, seq] = source
            first = source.last + 1

    async def _finish_group(self) -> None:
        """Write down what was moved once it is synced, and let go of it."""
        if not self._held:
            return
        last = dict(sorted(self._held))
        for epoch, seq in last.items():
            await self._main.synced(epoch, seq)
        for source in self._held.values():
            ranges.add(self._unstamped.meta_of(source.log).moved, source.first, source.last)
        await self._persist()
        MOVED.inc(sum(source.last - source.first + 1 for source in self._held.values()))
        self._held.clear()

    async def _persist(self) -> None:
        told = False
        async with self._writing:
            while True:
                try:
                    await self._in_thread(self._unstamped.write, self._unstamped.encoded())
                except OSError as error:
                    if not told:
                        log.error("the file on samples without time can't be written", error=str(error))
                    told = True
                    await asyncio.sleep(RETRY_S)
                else:
                    return

    def _time_of(self, meta: LogMeta) -> tuple[int, bool]:
        """Return wall time less boottime for a log, in ns, and whether that is a guess."""
        ours = meta.boot_id == self._clock.boot_id
        if ours and self._clock.settled and (meta.anchor_ns is None or (meta.uncertain and self._clock.known)):
            meta.anchor_ns, meta.uncertain = self._clock.settled_anchor_ns, self._clock.uncertain
        if meta.anchor_ns is None:
            return meta.base_ns, True
        return meta.anchor_ns, meta.uncertain

    def _note_lost(self, meta: LogMeta, last: int) -> None:
        """Note which of the samples 1..last were neither moved nor are still there: those below a batch that is."""
        if not meta.boot_id:
            # Nothing is known of this log: what was in front may well have been moved.
            ranges.add(meta.moved, 1, last)
            return
        accounted: ranges.Ranges = list(meta.moved)
        held = ((source.first, source.last) for source in self._held.values() if source.log == meta.log)
        for first_last in (*meta.lost, *held):
            ranges.add(accounted, *first_last)
        for low, high in ranges.missing(accounted, 1, last):
            ranges.add(meta.lost, low, high)
            LOST.inc(high - low + 1)
            log.error("samples without time are lost", log=meta.log, samples=high - low + 1)


def stamp(frame: bytes, anchor_ns: int, *, uncertain: bool) -> bytes:
    """Return a frame whose timestamp, 1970 plus boottime, is made wall time by adding `anchor_ns`; flagged if a guess.

    A frame that can't be read goes on as it is: ingest says what is wrong with it, and nothing is lost quietly.
    """
    try:
        sample = _decode(frame)
    except _UNDECODABLE:
        return frame
    sample.timestamp = from_unix_ns(to_unix_ns(sample.timestamp) + anchor_ns)
    if uncertain:
        flag(sample)
    return encode_sample(sample)


def _portions(parts: list[bytes], bytes_max: int) -> Iterator[list[bytes]]:
    """Iterate over the frames in portions that fit into a batch, at least one each."""
    portion: list[bytes] = []
    size = 0
    for part in parts:
        if portion and size + len(part) + PREFIX_BYTES > bytes_max:
            yield portion
            portion, size = [], 0
        portion.append(part)
        size += len(part) + PREFIX_BYTES
    if portion:
        yield portion


def _undeclared(meta: LogMeta) -> bool:
    return any(any(ranges.missing(meta.declared, first, last)) for first, last in meta.lost)


def _last_boottime_ns(buffer: Buffer | None) -> int:
    """Return the boottime of the last sample of an unstamped log, in ns; 0 where there is none to read."""
    if buffer is None:
        return 0
    first, end = buffer.range()
    for seq in range(end - 1, first - 1, -1):
        batch = buffer.get(seq)
        if batch is None:
            continue
        try:
            parts, _ = frames.split(frames.decompress(batch.data))
            return to_unix_ns(_decode(parts[-1]).timestamp)
        except (MessageError, *_UNDECODABLE):
            continue
    return 0
