"""Every tier as the conformance suite takes it, and what may differ between them, said as properties.

A new tier adds an entry to TIERS.
"""

import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from cncmon_agent.batch import Batch, make
from cncmon_agent.buffer import Buffer, Stats
from cncmon_agent.buffer.disk import Disk
from cncmon_agent.buffer.hot import HotRing
from cncmon_agent.buffer.log import SegmentLog
from cncmon_agent.buffer.spool import Spool
from cncmon_agent.buffer.store import SpoolSettings
from cncmon_agent.buffer.tiered import TieredBuffer
from cncmon_core import frames

EPOCH = 77
SEGMENT_BYTES = 16 << 10


class QuickDisk(Disk):
    """The real disk without its syncs, which are tested elsewhere."""

    def fdatasync(self, fd: int) -> None:
        del fd

    def sync_folder(self, folder: Path) -> None:
        del folder


class Then:
    """A log, and what is done to its disk after each batch it takes."""

    def __init__(self, log: SegmentLog, then: Callable[[], None]) -> None:
        self.log = log
        self._then = then

    def append(self, batch: Batch) -> bool:
        taken = self.log.append(batch)
        self._then()
        return taken

    @property
    def synced_seq(self) -> int:
        return self.log.synced_seq

    def get(self, seq: int) -> Batch | None:
        return self.log.get(seq)

    def free(self, up_to_seq: int) -> int:
        return self.log.free(up_to_seq)

    def range(self) -> tuple[int, int]:
        return self.log.range()

    def holes(self) -> list[tuple[int, int]]:
        return self.log.holes()

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.log)

    def stats(self) -> Stats:
        return self.log.stats()


class Spools:
    """Makes spools in a folder of its own each, and closes them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.made: list[Spool] = []

    def make(self, bytes_max: int = 0, **changes: Any) -> Spool:
        bytes_max = max(bytes_max, 3 * SEGMENT_BYTES)
        settings = SpoolSettings(
            segment_bytes=SEGMENT_BYTES, spool_bytes_max=bytes_max, **({"reserve_bytes": 0} | changes)
        )
        self.made.append(Spool(Path(tempfile.mkdtemp(dir=self._folder)) / "spool", settings, QuickDisk()))
        return self.made[-1]

    def close(self) -> None:
        for spool in self.made:
            spool.close()
        self.made.clear()


def sync(spool: Spool) -> None:
    work = spool.sync_work()
    if work is not None:
        work.run()
        spool.synced(work)


def move_to_cold(spool: Spool, level: int = 9) -> None:
    while (work := spool.cold_work(level)) is not None:
        work.run()
        assert spool.moved(work)


def packed(batch: Batch) -> int:
    """What a batch takes in a ring."""
    return len(msgspec.msgpack.encode(batch))


def in_full(batch: Batch) -> int:
    """What a log says that a batch takes, and what a ring over a log keeps free for it."""
    return batch.bytes


class Tier(NamedTuple):
    """How to make a buffer of at most so many batches and bytes (its first seq is 1), and what it promises.

    when_full: what an append does. counts: whether it minds how many batches there are. takes: what a batch takes by
    `stats`. needs: what must be free in the ring for a batch to be appended; None: there is no ring that would refuse.
    frame_bytes: size of a frame at which the tier is really used: several files, for those that have files.
    """

    make: Callable[[Spools, int, int], Buffer]
    when_full: Literal["refuses", "drops"]
    counts: bool
    takes: Callable[[Batch], int]
    needs: Callable[[Batch], int] | None = None
    frame_bytes: int = 10

    def has_room(self, held: list[Batch], batch: Batch, batches_max: int, bytes_max: int) -> bool | None:
        """Whether a batch must be taken; None: that depends on what else is on the disk."""
        if self.needs is None:
            return True if self.when_full == "drops" else None
        return len(held) < batches_max and sum(map(packed, held)) + self.needs(batch) <= bytes_max

    def batch(self, seq: int, size: int | None = None, **changes: Any) -> Batch:
        """Return a batch of one frame that can't be compressed."""
        frame = random.Random(seq).randbytes(self.frame_bytes if size is None else size)
        return make(EPOCH, seq, seq - 1, changes.get("kind", "samples"), [frame], 1, changes.get("created_ms", 0))


def _hot(_: Spools, batches_max: int, bytes_max: int) -> Buffer:
    return HotRing(bytes_max, batches_max)


def _warm(spools: Spools, _: int, bytes_max: int) -> Buffer:
    return spools.make(bytes_max).begin(EPOCH)


def _warm_synced(spools: Spools, _: int, bytes_max: int) -> Buffer:
    spool = spools.make(bytes_max)
    return Then(spool.begin(EPOCH), lambda: sync(spool))


def _cold(spools: Spools, _: int, bytes_max: int) -> Buffer:
    spool = spools.make(bytes_max)

    def then() -> None:
        sync(spool)
        move_to_cold(spool)

    return Then(spool.begin(EPOCH), then)


def _tiered(spools: Spools, batches_max: int, bytes_max: int) -> Buffer:
    return TieredBuffer(HotRing(bytes_max, batches_max), spools.make(64 << 20).begin(EPOCH))


def _tiered_synced(spools: Spools, batches_max: int, bytes_max: int) -> Buffer:
    del batches_max
    spool = spools.make(bytes_max)
    return TieredBuffer(HotRing(16 << 10, 3), Then(spool.begin(EPOCH), lambda: sync(spool)))


def _memory_only(_: Spools, batches_max: int, bytes_max: int) -> Buffer:
    return TieredBuffer(HotRing(bytes_max, batches_max))


TIERS = {
    "hot": Tier(_hot, "refuses", True, packed, packed),
    "warm": Tier(_warm_synced, "drops", False, in_full, frame_bytes=1000),
    # A file is never dropped while it is not synced.
    "warm, not synced": Tier(_warm, "refuses", False, in_full),
    "cold": Tier(_cold, "drops", False, in_full, frame_bytes=3500),
    "tiered": Tier(_tiered_synced, "drops", False, in_full, frame_bytes=2000),
    # What is not synced stays in the ring, which refuses then as it does alone.
    "tiered, not synced": Tier(_tiered, "refuses", True, in_full, in_full),
    "tiered, memory only": Tier(_memory_only, "refuses", True, packed, packed),
}


def content(batch: Batch | None) -> Any:
    """Return what a tier must keep of a batch: all of it but how hard it is compressed."""
    return batch and (batch.identity, frames.decompress(batch.data), batch.samples, batch.created_ms, batch.source)
