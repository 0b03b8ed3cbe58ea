"""The log on disk: the logs of all epochs in one folder, their bounds, their group commit, their recovery.

Everything here runs in one thread, the event loop's, but for `run` of the works it hands out, which wait for the disk.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from cncmon_agent.buffer import names
from cncmon_agent.buffer.cold import ColdWork
from cncmon_agent.buffer.disk import Disk, DiskCalls
from cncmon_agent.buffer.errors import SpoolError, SpoolLockedError
from cncmon_agent.buffer.footer import PAGE
from cncmon_agent.buffer.log import SegmentLog
from cncmon_agent.buffer.names import SegmentName
from cncmon_agent.buffer.quarantine import Quarantine
from cncmon_agent.buffer.record import Nonce
from cncmon_agent.buffer.recovery import Leftover, NoteEnd, Piece, Recovery, assemble
from cncmon_agent.buffer.segment import Segment, SegmentInfo, Tier
from cncmon_agent.buffer.spool_settings import SpoolSettings
from cncmon_agent.buffer.spool_stats import SpoolStats
from cncmon_agent.buffer.store import Store, is_spare
from cncmon_agent.buffer.sync import Part, SyncWork

__all__ = ["Order", "Piece", "Spool", "SpoolError", "SpoolLockedError", "SpoolSettings", "SpoolStats", "oldest"]

COLD_FOLDER = "cold"
FILL_FOR_SPARE = 0.75
"""A file for the next segment is made ready when the current one is this full."""

Order = Callable[[Sequence[SegmentInfo]], SegmentInfo]
"""Chooses, from segments in order of age, the one to drop."""


def oldest(segments: Sequence[SegmentInfo]) -> SegmentInfo:
    """The order of a spool that nobody told another."""
    return segments[0]


class Spool:
    """All epochs' logs in a folder.

    earlier: logs of earlier starts by epoch, oldest first, each from when all of it is scanned. current: those begun by
    this start. order: which segment is dropped when there is no room. note_end: called before a file is that alone
    says where its epoch ended; where it fails, the file stays.
    """

    def __init__(self, folder: Path, settings: SpoolSettings, disk: DiskCalls | None = None) -> None:
        """List what is in the folder and lock it; nothing is read.

        Raises:
            SpoolLockedError: another process uses the folder.
            SpoolError: the folder can't be used, or the settings leave no room to work in.
        """
        self.earlier: dict[int, SegmentLog] = {}
        self.current: dict[int, SegmentLog] = {}
        self.order: Order = oldest
        self.note_end: NoteEnd = lambda _epoch, _seq: True
        self.settings = settings
        self._disk = disk if disk is not None else Disk()
        self._store = Store(self._disk, folder, settings)
        self._store.shed = self._make_room
        self._cold_folder = Path(settings.cold_dir) if settings.cold_dir else folder / COLD_FOLDER
        self._recovery = Recovery(self._store, self._adopt)
        self._syncing: SyncWork | None = None
        self._moving: ColdWork | None = None
        if settings.segment_bytes % PAGE or settings.spool_bytes_max < 3 * settings.segment_bytes:
            raise SpoolError(
                f"segments are whole pages of {PAGE} bytes and three of them must fit; segment_bytes is "
                f"{settings.segment_bytes}, spool_bytes_max {settings.spool_bytes_max}"
            )
        self._lock = self._open(folder)

    @property
    def recovered(self) -> bool:
        """Whether all that earlier starts left is scanned."""
        return not self._recovery.leftovers

    def begin(self, epoch: int) -> SegmentLog:
        """Return the writable log of a fresh epoch. Its first file is made at the first append."""
        log = SegmentLog(self._store, self._quarantine, epoch, self._generation)
        self.current[epoch] = log
        return log

    def recover_steps(self) -> Iterator[Piece]:
        """Yield one piece of work for each file that earlier starts left, oldest first."""
        return self._recovery.steps()

    def sync_work(self) -> SyncWork | None:
        """Return what has to be made durable; None when there is nothing, or the last work is still under way."""
        if self._syncing is not None:
            return None
        if self._store.used_bytes > self.settings.spool_bytes_max:
            # The bound was lowered since the last start, or files could not be removed: one file at a time.
            self._make_room()
        parts = []
        for log in self.current.values():
            segments = log.appender.begin_sync()
            last = log.appender.next - 1
            for segment in segments:
                segment.pins += 1
            if segments:
                fds = [segment.fd for segment in segments if segment.fd is not None]
                ended = [segment for segment in segments if segment is not log.appender.current]
                parts.append(Part(log, segments, ended, fds, last, log.appender.era))
        work = SyncWork(self._store, parts, self._spare_to_make())
        if not parts and not work.folder:
            return None
        self._store.folder_dirty = False
        self._syncing = work
        return work

    def synced(self, work: SyncWork) -> None:
        """Take back a work that has run: what it made durable is so from now on, the rest is written elsewhere."""
        self._syncing = None
        store = self._store
        if work.folder_failed:
            store.folder_dirty = True
            store.counters.sync_errors += 1
        elif work.folder:
            for spare in work.spares:
                spare.durable = True
        if work.makes:
            store.promised_bytes -= store.segment_bytes
        if work.made is not None:
            work.made.durable = not work.folder_failed
            store.spares.append(work.made)
        for part in work.parts:
            self._end_part(part, folder_failed=work.folder_failed)

    def _end_part(self, part: Part, *, folder_failed: bool) -> None:
        unnamed = folder_failed and any(not segment.named for segment in part.segments)
        failed = part.failed or unnamed
        for segment in part.segments:
            segment.usable = segment.usable and not failed
            segment.named = segment.named or not folder_failed
            self._store.unpin(segment)
        self._store.counters.sync_errors += part.failed
        if part.era != part.log.appender.era:
            return
        if failed:
            part.log.appender.rewrite()
        else:
            part.log.appender.end_sync(part.ended, part.last)

    def shed(self, order: Order | None = None) -> SegmentInfo | None:
        """Drop one segment that is still needed, the oldest or the one that an order chooses; None: there is none."""
        return self._drop_one(order or self.order, None)

    def cold_work(self, level: int) -> ColdWork | None:
        """Return the work of moving the oldest warm segment to the cold tier, at a zstd level; None: nothing to do."""
        if self._moving is not None:
            return None
        for log in self._logs():
            for segment, idle in log.infos():
                if (
                    idle
                    and segment.tier == "warm"
                    and segment.batches
                    and (segment.sealed or segment.index is not None)
                ):
                    return self._move(log, segment, level) if self._cold_has_room(segment.file_bytes) else None
        return None

    def moved(self, work: ColdWork) -> bool:
        """Take back a work that has run; whether the segment is in the cold tier now."""
        self._moving = None
        self._promise_cold(-work.segment.file_bytes)
        segment, made, log = work.segment, work.made, work.log
        wanted = not segment.released and segment in log.segments
        if made is not None and wanted:
            self._store.cold_bytes += made.file_bytes
            new = made.missing() - sum(
                min(high, made.last) - max(low, made.first) + 1
                for low, high in segment.bad
                if high >= made.first and low <= made.last
            )
            self._store.counters.quarantined_records += max(0, new)
            self._store.unpin(segment)
            log.replace(segment, made)
            return True
        if made is None:
            self._store.counters.cold_errors += 1
        else:
            work.discard(made.path)
        self._store.unpin(segment)
        return False

    def forget(self, epoch: int) -> None:
        """Give up all that an epoch still has, an earlier one or one that ended since: it is delivered to its end."""
        log = self.earlier.pop(epoch, None) or self.current.pop(epoch, None)
        if log is not None:
            log.free(log.range()[1])
            log.close()

    def segments(self) -> list[SegmentInfo]:
        """Return the segments, oldest first; not those that are not scanned yet."""
        return [segment.info(log.range()[0]) for log in self._logs() for segment, _ in log.infos()]

    def stats(self) -> SpoolStats:
        """Return how full it is."""
        store, settings = self._store, self.settings
        try:
            free = self._disk.free_bytes(store.folder)
        except OSError:
            free = -1
        return SpoolStats(
            warm_bytes=store.warm_bytes + len(store.spares) * store.segment_bytes,
            cold_bytes=store.cold_bytes,
            capacity_bytes=settings.spool_bytes_max + (settings.cold_bytes_max if settings.cold_dir else 0),
            free_bytes=free,
            segments=sum(len(log.segments) for log in self._logs()) + sum(map(len, self._recovery.leftovers.values())),
            spares=len(store.spares),
            **msgspec.structs.asdict(store.counters),
        )

    def close(self) -> None:
        """Close the files and give the lock back. Nothing is synced by it."""
        for log in self._logs():
            log.close()
        self._disk.close(self._lock)

    def _open(self, folder: Path) -> int:
        disk = self._disk
        try:
            disk.make_folder(folder)
            lock = disk.lock(folder / names.LOCK)
        except BlockingIOError as error:
            raise SpoolLockedError(f"another agent runs on {folder}; two must never share a folder") from error
        except OSError as error:
            raise SpoolError(f"the folder {folder} can't be used for the log: {error.strerror}") from error
        try:
            self._quarantine = Quarantine(disk, folder, self.settings.quarantine_bytes_max)
            found = self._list(folder, "warm")
            disk.make_folder(folder / COLD_FOLDER)
            if self.settings.cold_dir:
                # What was made cold here before that was set takes room here, and may move on.
                found += self._list(folder / COLD_FOLDER, "warm")
            # What was renamed before the last process died is safe only now, and so are the folders.
            disk.sync_folder(folder)
            disk.sync_folder(folder.parent)
        except OSError as error:
            disk.close(lock)
            raise SpoolError(f"the folder {folder} can't be used for the log: {error.strerror}") from error
        found += self._list_cold()
        found.sort(key=lambda leftover: leftover.name)
        self._recovery.add(found)
        self._generation = max((leftover.name.generation for leftover in found), default=0) + 1
        return lock

    def _adopt(self, epoch: int, leftovers: list[Leftover]) -> None:
        """All files of an earlier epoch are scanned: its log is there from now on."""
        segments = assemble(self._store, self._quarantine, leftovers)
        if not segments:
            return
        log = SegmentLog(self._store, self._quarantine, epoch, leftovers[0].name.generation)
        log.install(segments)
        self.earlier[epoch] = log
        ordered = sorted(self.earlier.items(), key=lambda item: item[1].generation)
        self.earlier.clear()
        self.earlier.update(ordered)

    def _list(self, folder: Path, tier: Tier) -> list[Leftover]:
        entries = self._disk.list_files(folder)
        found = []
        spares = []
        for entry in entries:
            name = names.parse(entry.name)
            if name is not None:
                found.append(Leftover(name, folder, tier, entry.bytes))
            elif is_spare(entry.name) and tier == "warm" and entry.bytes == self.settings.segment_bytes:
                spares.append(entry.name)
            elif is_spare(entry.name) or entry.name.endswith(names.UNFINISHED_SUFFIX):
                self._disk.unlink(folder / entry.name)
        self._store.adopt_spares(spares)
        used = sum(leftover.file_bytes for leftover in found)
        if tier == "warm":
            self._store.warm_bytes += used
        else:
            self._store.cold_bytes += used
        return found

    def _list_cold(self) -> list[Leftover]:
        try:
            if self.settings.cold_dir:
                self._disk.make_folder(self._cold_folder)
                self._disk.sync_folder(self._cold_folder.parent)
            return self._list(self._cold_folder, "cold")
        except OSError:
            # A USB disk that is not there must not keep the agent from running.
            self._store.counters.cold_errors += 1
            return []

    def _spare_to_make(self) -> Path | None:
        """Make the next segment's file ready before it is needed: a spare here, or a path to make one at."""
        store = self._store
        fill = max((log.appender.fill for log in self.current.values() if log.appender.current), default=0.0)
        if store.spares or fill < FILL_FOR_SPARE:
            return None
        try:
            if store.has_room(store.segment_bytes):
                store.promised_bytes += store.segment_bytes
                return store.folder / names.spare_name()
        except OSError:
            return None
        self._make_room()
        return None

    def _make_room(self) -> bool:
        # Files of a separate cold folder give no room in this one.
        return self._drop_one(self.order, "warm" if self.settings.cold_dir else None) is not None

    def _drop_one(self, order: Order, tier: Tier | None) -> SegmentInfo | None:
        earlier = self._droppable(list(self.earlier.values()), tier)
        if not earlier and (leftover := self._recovery.drop_one(tier, self.note_end)) is not None:
            return leftover
        found = earlier + self._droppable(list(self.current.values()), tier)
        if not found:
            return None
        infos = [segment.info(log.range()[0]) for log, segment in found]
        chosen = order(infos)
        log, segment = found[infos.index(chosen)]
        if not log.writable and segment is log.segments[-1] and not self.note_end(log.epoch, log.range()[1] - 1):
            return None
        log.drop(segment)
        return chosen

    def _droppable(self, logs: list[SegmentLog], tier: Tier | None) -> list[tuple[SegmentLog, Segment]]:
        return [
            (log, segment)
            for log in logs
            for segment, idle in log.infos()
            if idle and (tier is None or segment.tier == tier)
        ]

    def _cold_has_room(self, more_bytes: int) -> bool:
        store = self._store
        try:
            if not self.settings.cold_dir:
                return store.has_room(more_bytes)
            while store.cold_bytes + more_bytes > self.settings.cold_bytes_max:
                if self._drop_one(oldest, "cold") is None:
                    return False
            return self._disk.free_bytes(self._cold_folder) >= more_bytes
        except OSError:
            store.counters.cold_errors += 1
            return False

    def _move(self, log: SegmentLog, segment: Segment, level: int) -> ColdWork:
        first = max(segment.first, log.range()[0])
        name = SegmentName(log.generation, log.epoch, first, log.appender.serial, Nonce.draw())
        log.appender.serial += 1
        segment.pins += 1
        self._promise_cold(segment.file_bytes)
        self._moving = ColdWork(self._disk, log, segment, first, self._cold_folder, name, level)
        return self._moving

    def _promise_cold(self, more_bytes: int) -> None:
        if not self.settings.cold_dir:
            self._store.promised_bytes += more_bytes

    def _logs(self) -> list[SegmentLog]:
        return [*self.earlier.values(), *self.current.values()]
