"""What batches are kept in: memory, and a spool on disk with its cold tier; or memory alone, which it says."""

import asyncio
from pathlib import Path
from typing import Final, NamedTuple

from prometheus_client import Counter, Gauge

from cncmon_agent.accepted_log import AcceptedLog
from cncmon_agent.batch import OVERHEAD_BYTES
from cncmon_agent.buffer.errors import SpoolError, SpoolLockedError
from cncmon_agent.buffer.hot import HotRing
from cncmon_agent.buffer.log import SegmentLog
from cncmon_agent.buffer.segment import Segment
from cncmon_agent.buffer.spool import Order, Spool
from cncmon_agent.buffer.store import SpoolSettings
from cncmon_agent.buffer.tiered import TieredBuffer
from cncmon_agent.cold_disk import ColdDisk
from cncmon_agent.folder import SPOOL
from cncmon_agent.settings import AgentSettings
from cncmon_agent.spool_care import SpoolCare
from cncmon_core import logs

log = logs.get(__name__)

COLD_EVERY_S: Final = 1.0
"""How often it is looked whether a segment is to be moved."""

RETRY_S: Final = 5.0
"""Pause after the disk failed under a move."""

BUFFER_BATCHES = Gauge("cncmon_edge_buffer_batches", "Batches that are not in the database yet.")
BUFFER_SAMPLES = Gauge("cncmon_edge_buffer_samples", "Samples that are not in the database yet.")
BUFFER_BYTES = Gauge("cncmon_edge_buffer_bytes", "Bytes of them, by tier.", ["tier"])
BUFFER_CAPACITY = Gauge("cncmon_edge_buffer_capacity_bytes", "Bytes that the buffer may take.")
MEMORY_ONLY = Gauge("cncmon_edge_buffer_memory_only", "1 while there is no disk under the buffer.")
COLD_MISSING = Gauge("cncmon_edge_cold_tier_missing", "1 while the cold tier's disk can't be used.")
COLD_SEGMENTS = Counter("cncmon_edge_cold_segments", "Segments compressed harder and moved to the cold tier.")
COUNTED = {
    name: Gauge(f"cncmon_edge_spool_{name}", text)
    for name, text in (
        ("segments", "Segment files in use."),
        ("dropped_batches", "Batches dropped at the cap or on a full disk since the start."),
        ("dropped_samples", "Samples in them."),
        ("quarantined_records", "Records that were damaged on the disk."),
        ("abandoned_files", "Files left because a sync failed under them."),
        ("refused_batches", "Batches that the disk did not take."),
        ("cold_errors", "Failures of the cold tier's disk."),
        ("free_bytes", "What the disk has left."),
    )
}


class Held(NamedTuple):
    """What is held of all epochs, by tier, and the room for it."""

    batches: int
    samples: int
    bytes: int
    hot_bytes: int
    warm_bytes: int
    cold_bytes: int
    capacity_warm_bytes: int
    capacity_cold_bytes: int
    oldest_created_ms: int | None
    dropped_samples: int
    quarantined_records: int


class Storage:
    """The current epoch's buffer, and the spool with the logs of all epochs where there is a disk."""

    def __init__(
        self,
        settings: AgentSettings,
        epoch: int,
        folder: Path | None,
        record: AcceptedLog | None,
        unusable: str | None = None,
    ) -> None:
        """folder: the data folder, None where it can't be used; unusable: why, for people.

        Raises:
            SpoolError: there is no disk to be used, and the settings demand one.
        """
        self._settings = settings
        self._record = record
        self.memory_only: str | None = None
        self.cold_missing: str | None = None
        """Why the cold tier can't be used; what earlier starts left on its disk is not known of then."""
        self._cold_disk: ColdDisk | None = None
        spool = self._open(folder, unusable or f"data folder {settings.data_dir} can't be used")
        self.care = SpoolCare(SPOOL, spool, settings.sync_interval_ms) if spool is not None else None
        self.log: SegmentLog | None = spool.begin(epoch) if spool is not None else None
        self._noted_seq = 0
        self._hot = HotRing(settings.hot_bytes_max)
        self._ended: list[TieredBuffer] = []
        self.buffer = TieredBuffer(self._hot, self.log)
        self.cold_level: int | None = None
        """zstd level at which the oldest warm segment is to be moved; None: none is to be."""
        self.recompress_gain: float | None = None
        self.recompress_level = 1
        MEMORY_ONLY.set(spool is None)
        COLD_MISSING.set(self.cold_missing is not None)

    def _open(self, folder: Path | None, unusable: str) -> Spool | None:
        settings = self._settings
        if settings.spool == "off":
            self.memory_only = "batches are kept in memory alone, as configured (CNCMON_AGENT_SPOOL=off)"
            return None
        try:
            if folder is None:
                raise SpoolError(unusable)
            if settings.cold_dir:
                self._cold_disk = ColdDisk(folder, settings.cold_dir)
                self.cold_missing = self._cold_disk.missing()
            spool = Spool(folder / SPOOL, spool_settings(settings, cold=self.cold_missing is None))
            if (full := no_room(spool)) is not None:
                spool.close()
                raise SpoolError(f"data folder {settings.data_dir}: {full}")
            if spool.stats().cold_errors:
                self._cold_disk = None
                self.cold_missing = f"cold tier {settings.cold_dir} can't be used: batches stay in {settings.data_dir}"
            if self.cold_missing is not None:
                log.error("the cold tier can't be used", reason=self.cold_missing)
            return spool
        except SpoolLockedError:
            raise
        except SpoolError as error:
            if settings.spool == "required":
                raise
            self.memory_only = str(error)
            log.error("no disk under the buffer: what is in memory is lost at a stop", reason=self.memory_only)
            return None

    @property
    def accepted_bytes(self) -> int:
        """Compressed bytes accepted since the start."""
        return self.buffer.accepted_bytes

    @property
    def spool(self) -> Spool | None:
        """The logs on disk, where there is one."""
        return self.care.spool if self.care is not None else None

    def begin(self, epoch: int) -> TieredBuffer:
        """Keep the batches of another epoch from now on, return their buffer; those of the one before only drain."""
        ended = self.buffer
        self._ended.append(ended)
        if self.care is not None and self.log is not None:
            self.log.end()
            self.log = self.care.spool.begin(epoch)
            self._noted_seq = 0
        self._hot = HotRing(self._settings.hot_bytes_max)
        self.buffer = TieredBuffer(self._hot, self.log)
        self.buffer.accepted_bytes = ended.accepted_bytes
        return self.buffer

    async def wait_recovered(self) -> None:
        """Wait until everything that earlier starts left on disk is known."""
        if self.care is not None:
            await self.care.recovered.wait()

    @property
    def fell_back(self) -> bool:
        """Whether it runs in memory because the disk can't be used, which may hold what earlier starts left."""
        return self.spool is None and self._settings.spool != "off"

    @property
    def cold_is_back(self) -> bool:
        """Whether the cold tier's disk was not there at the start, and is now: only a start takes it in use."""
        return self.cold_missing is not None and self._cold_disk is not None and self._cold_disk.missing() is None

    @property
    def recovered(self) -> bool:
        """Whether everything that earlier starts left on disk is known."""
        return self.care is None or self.care.recovered.is_set()

    def sync_overdue_s(self, now_s: float) -> float:
        """Return for how long the next sync has been overdue; 0 without a disk."""
        if self.care is None:
            return 0.0
        return max(0.0, now_s - self.care.turned_s - self._settings.sync_interval_ms / 1000)

    async def run(self) -> None:
        """Recover what earlier starts left, sync, and move to the cold tier, until cancelled."""
        if self.care is None:
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self.care.run())
            group.create_task(self._note_syncs(self.care))
            group.create_task(self._cold_loop(self.care))

    async def _note_syncs(self, care: SpoolCare) -> None:
        while True:
            await care.turn()
            self._note_sync()
            self._ended = [buffer for buffer in self._ended if not buffer.leave_memory()]

    def _note_sync(self) -> None:
        if self._record is not None and self.log is not None and self.log.synced_seq > self._noted_seq:
            self._noted_seq = self.log.synced_seq
            self._record.synced(self.log.epoch, self._noted_seq)

    @property
    def synced_seq(self) -> int:
        """Up to which seq the current epoch is synced; without a disk, what it has."""
        return self.log.synced_seq if self.log is not None else self.buffer.range()[1] - 1

    async def synced(self, seq: int, epoch: int | None = None) -> None:
        """Return when everything up to a seq of the current or an ended epoch is synced, or freed; at once without a
        disk.

        What the database has is freed before it is synced where the way there is the shorter one: no sync tells of it.
        """
        log = self.log if epoch is None or self.spool is None else self.spool.current.get(epoch)
        while self.care is not None and log is not None and log.synced_seq < seq and log.range()[0] <= seq:
            await self.care.turn()

    async def _cold_loop(self, care: SpoolCare) -> None:
        """Move the oldest sealed segment to the cold tier while the controller wants it, one at a time."""
        await care.recovered.wait()
        spool = care.spool
        while True:
            level = self.cold_level
            work = spool.cold_work(level) if level is not None else None
            if work is None or level is None:
                await asyncio.sleep(COLD_EVERY_S)
                continue
            await asyncio.to_thread(work.run)
            before, made = _data_bytes(work.segment), work.made
            if not spool.moved(work) or made is None:
                if made is None:
                    log.error("a segment could not be moved to the cold tier", segment=str(work.segment.path))
                    await asyncio.sleep(RETRY_S)
                continue
            COLD_SEGMENTS.inc()
            if level > 1 and before:
                self.recompress_gain = 1 - _data_bytes(made) / before
                self.recompress_level = level

    def shed_by(self, order: Order) -> None:
        """Let somebody else choose what is dropped at the cap."""
        if self.spool is not None:
            self.spool.order = order

    def held(self) -> Held:
        """Return what is held of all epochs."""
        return self._in_memory() if self.spool is None else self._on_disk(self.spool)

    def tell(self, held: Held) -> None:
        """Set the metrics."""
        BUFFER_BATCHES.set(held.batches)
        BUFFER_SAMPLES.set(held.samples)
        for tier, size in (("hot", held.hot_bytes), ("warm", held.warm_bytes), ("cold", held.cold_bytes)):
            BUFFER_BYTES.labels(tier).set(size)
        BUFFER_CAPACITY.set(held.capacity_warm_bytes + held.capacity_cold_bytes)
        if self.spool is not None:
            stats = self.spool.stats()
            for name, gauge in COUNTED.items():
                gauge.set(getattr(stats, name))

    def _in_memory(self) -> Held:
        self._ended = [buffer for buffer in self._ended if buffer.stats().batches]
        found = [buffer.stats() for buffer in (*self._ended, self.buffer)]
        size = sum(one.bytes for one in found)
        return Held(
            batches=sum(one.batches for one in found),
            samples=sum(one.samples for one in found),
            bytes=size,
            hot_bytes=size,
            # Where there is no disk the rings are all the room there is.
            warm_bytes=size,
            cold_bytes=0,
            capacity_warm_bytes=sum(one.capacity_bytes for one in found),
            capacity_cold_bytes=0,
            oldest_created_ms=next((one.oldest_created_ms for one in found if one.batches), None),
            dropped_samples=0,
            quarantined_records=0,
        )

    def _on_disk(self, spool: Spool) -> Held:
        found, stats = [log.stats() for log in (*spool.earlier.values(), *spool.current.values())], spool.stats()
        settings = spool.settings
        spare_bytes = stats.spares * settings.segment_bytes
        capacity = settings.spool_bytes_max
        if stats.free_bytes >= 0:
            # Others may have filled the disk: then there is less room than was allowed.
            capacity = min(capacity, stats.warm_bytes + max(0, stats.free_bytes - settings.reserve_bytes))
        return Held(
            batches=sum(one.batches for one in found),
            samples=sum(one.samples for one in found),
            bytes=sum(one.bytes for one in found),
            hot_bytes=self._hot.stats().bytes,
            warm_bytes=stats.warm_bytes - spare_bytes,
            cold_bytes=stats.cold_bytes,
            capacity_warm_bytes=capacity,
            capacity_cold_bytes=settings.cold_bytes_max if settings.cold_dir else 0,
            oldest_created_ms=next((one.oldest_created_ms for one in found if one.batches), None),
            dropped_samples=stats.dropped_samples,
            quarantined_records=stats.quarantined_records,
        )

    def close(self) -> None:
        """Sync and close. Blocks for the disk."""
        if self.care is not None:
            self.care.close()
            self._note_sync()


def no_room(spool: Spool) -> str | None:
    """Return why not one batch can be taken, for people; None where there is room, or something to drop for it."""
    stats, settings = spool.stats(), spool.settings
    wanted = settings.segment_bytes + settings.reserve_bytes
    if stats.segments or stats.spares or not 0 <= stats.free_bytes < wanted:
        return None
    return (
        f"no room for batches on the disk: {stats.free_bytes >> 20} MiB are free, and {wanted >> 20} MiB are needed, "
        f"{settings.reserve_bytes >> 20} of them to be left to others (CNCMON_AGENT_SPOOL_FREE_BYTES_MIN)"
    )


def spool_settings(settings: AgentSettings, *, cold: bool = True) -> SpoolSettings:
    """Return the spool's bounds, from the agent's settings. cold: with its cold tier, where that has its own folder."""
    return SpoolSettings(
        spool_bytes_max=settings.spool_bytes_max,
        cold_dir=settings.cold_dir if cold else "",
        cold_bytes_max=settings.cold_bytes_max,
        reserve_bytes=settings.spool_free_bytes_min,
        unsynced_bytes_max=settings.hot_bytes_max,
    )


def _data_bytes(segment: Segment) -> int:
    """Return the compressed bytes of a segment's batches."""
    return segment.bytes - segment.batches * OVERHEAD_BYTES
