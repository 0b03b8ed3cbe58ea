"""The log beside its model: which batches were accepted, which are needed, and which are durable.

After every step what the log holds, by `range` and `holes`, must be what is needed; what is missing must be counted as
dropped (and then be the oldest) or as damaged. After a power cut all that was ever said to be synced must be there.
"""

import errno
import os
from pathlib import Path
from random import Random

from cncmon_agent.batch import Batch, make
from cncmon_agent.buffer import Stats
from cncmon_agent.buffer.cold import ColdWork
from cncmon_agent.buffer.log import SegmentLog
from cncmon_agent.buffer.names import parse
from cncmon_agent.buffer.spool import Spool, SpoolSettings
from cncmon_agent.buffer.sync import SyncWork
from cncmon_core import frames
from robustness.model.disk import KilledError, SimulatedDisk

FOLDER = Path("/spool")
SEGMENT_BYTES = 16 << 10


class World:
    """One folder over many starts of the agent.

    accepted: all batches by epoch and seq. needed: seqs by epoch, neither freed nor known as lost. durable: those of
    them that the log said are synced. must: of an epoch not scanned yet, what has to be found. freed: by epoch, what
    the agent persists. files: seqs that each file ever had. undecided: what was being appended when the process was
    killed. suspect: epochs of starts in which a sync failed: an agent killed before it could write elsewhere leaves
    pages that look synced to the next start, and are not.
    """

    def __init__(self, seed: int, *, segments_max: int = 6, capacity: int = 1 << 30) -> None:
        self.random = Random(seed)
        self.disk = SimulatedDisk(capacity)
        self.settings = SpoolSettings(
            segment_bytes=SEGMENT_BYTES, spool_bytes_max=segments_max * SEGMENT_BYTES, reserve_bytes=0
        )
        self.accepted: dict[int, dict[int, Batch]] = {}
        self.needed: dict[int, set[int]] = {}
        self.durable: dict[int, set[int]] = {}
        self.must: dict[int, set[int]] = {}
        self.freed: dict[int, int] = {}
        self.files: dict[str, tuple[int, int, int]] = {}
        self.fail: dict[str, tuple[int, int]] = {}
        self.undecided: set[tuple[int, int]] = set()
        self.suspect: set[int] = set()
        self.unreadable = False
        self.dropped = False
        self.stuck = False
        self.passing = False
        self.epoch = 0
        self.start()

    def start(self) -> None:
        """Start the agent: a new epoch, nothing recovered yet."""
        self.fail.clear()
        self.disk.on_call = self._call
        self.spool = Spool(FOLDER, self.settings, self.disk)
        self.epoch += 1
        self.log = self.spool.begin(self.epoch)
        self.accepted[self.epoch] = {}
        self.needed[self.epoch] = set()
        self.durable[self.epoch] = set()
        self.freed[self.epoch] = 0
        self.counted = 0
        self.known: set[int] = {self.epoch}
        self.sync: SyncWork | None = None
        self.move: ColdWork | None = None
        self.steps = self.spool.recover_steps()

    def _call(self, call: str, _path: Path | None) -> None:
        number, times = self.fail.get(call, (0, 0))
        if times:
            self.fail[call] = number, times - 1
            self.stuck = self.stuck or call in ("rename", "unlink")
            self.passing = self.passing or call == "open"
            if call == "fdatasync":
                self.suspect.add(self.epoch)
            raise OSError(number, os.strerror(number))

    def logs(self) -> dict[int, SegmentLog]:
        """Return the logs that are there, oldest first."""
        return {**self.spool.earlier, self.epoch: self.log}

    def append(self, size: int) -> bool:
        """Append one batch whose bytes no other has."""
        batch = self.batch(size)
        taken = self.log.append(batch)
        if taken:
            self.accepted[self.epoch][batch.identity.seq] = batch
            self.needed[self.epoch].add(batch.identity.seq)
        self.check()
        return taken

    def append_killed(self, size: int, after: int) -> None:
        """Append one batch, and end the process when so many bytes of it are written."""
        batch = self.batch(size)
        seq = batch.identity.seq
        self.disk.kill_after = after
        self.accepted[self.epoch][seq] = batch
        try:
            if self.log.append(batch):
                self.needed[self.epoch].add(seq)
            else:
                del self.accepted[self.epoch][seq]
        except KilledError:
            self.undecided.add((self.epoch, seq))
        self.restart(power=False)

    def batch(self, size: int) -> Batch:
        """Return the next batch of the current epoch."""
        seq = self.log.range()[1]
        return make(self.epoch, seq, seq - 1, "samples", [self.random.randbytes(size)], 1, seq)

    def begin_sync(self) -> None:
        """Take a snapshot of what is to be synced."""
        if self.sync is None:
            self.sync = self.spool.sync_work()
            if self.sync is not None:
                self.sync.run()
        self.check()

    def end_sync(self) -> None:
        """Give the work back."""
        if self.sync is not None:
            work, self.sync = self.sync, None
            self.spool.synced(work)
        self.check()

    def sync_all(self) -> None:
        """Sync all there is."""
        self.end_sync()
        self.begin_sync()
        self.end_sync()

    def begin_move(self, level: int = 19) -> None:
        """Copy a segment to the cold tier."""
        if self.move is None:
            self.move = self.spool.cold_work(level)
            if self.move is not None:
                self.move.run()
        self.check()

    def end_move(self) -> None:
        """Put the copy in its place."""
        if self.move is not None:
            work, self.move = self.move, None
            self.spool.moved(work)
        self.check()

    def free(self, epoch: int, up_to: int) -> None:
        """Free a log up to a seq."""
        log = self.logs()[epoch]
        before = self.held(log)
        self.passing = False
        count = log.free(up_to)
        if self.passing:
            up_to = min(up_to, log.range()[0] - 1)
        assert count == sum(seq <= up_to for seq in before)
        self.freed[epoch] = max(self.freed[epoch], min(up_to, len(self.accepted[epoch])))
        self.needed[epoch] = {seq for seq in self.needed[epoch] if seq > up_to}
        self.check()

    def recover(self, pieces: int = 1 << 30) -> None:
        """Scan what earlier starts left, or some of it. A disk that fails to sync just then proves nothing."""
        self.fail.pop("fdatasync", None)
        for _ in range(pieces):
            piece = next(self.steps, None)
            if piece is None:
                break
            piece.run()
            piece.install()
            for epoch in set(self.spool.earlier) - self.known:
                self._meet(epoch)
        if self.spool.recovered:
            for epoch in set(self.needed) - set(self.logs()):
                self._missing(epoch, self.needed[epoch])
                self.needed[epoch] = set()
        self.check()

    def _meet(self, epoch: int) -> None:
        """An earlier epoch's log is there: what it holds was accepted, and what must be there is."""
        log = self.spool.earlier[epoch]
        self.known.add(epoch)
        held = self.held(log)
        names = [parse(path.name) for path in self.disk.names]
        for seq in held:
            assert seq in self.accepted[epoch], f"seq {seq} of {epoch} was never accepted"
            if (epoch, seq) in self.undecided:
                continue
            # A file that was to go may be back with what is no longer needed, but under the name that it was written.
            assert seq in self.needed[epoch] or any(
                name.epoch == epoch and name.first <= seq for name in names if name is not None
            ), f"seq {seq} of {epoch} is back from a file used anew"
        self._missing(epoch, self.needed[epoch] - held)
        self.needed[epoch] = held
        self.counted = self._counts()
        log.free(self.freed[epoch])
        self.needed[epoch] = {seq for seq in held if seq > self.freed[epoch]}

    def _missing(self, epoch: int, missing: set[int]) -> None:
        self.dropped = self.dropped or self.spool.stats().dropped_segments > 0
        alive = {str(path) for path in self.disk.names}
        lost = missing & self.must[epoch]
        assert not lost or self.dropped or self.unreadable, f"{sorted(lost)[:9]} of {epoch} were synced"
        for seq in lost if not self.unreadable and not self.stuck else ():
            assert not self._in_files(epoch, seq, alive), f"seq {seq} of {epoch} was synced, and its file is there"

    def _in_files(self, epoch: int, seq: int, alive: set[str]) -> bool:
        return any(
            path in alive and whose == epoch and low <= seq <= high for path, (whose, low, high) in self.files.items()
        )

    def held(self, log: SegmentLog) -> set[int]:
        """Return the seqs that a log says it holds."""
        first, end = log.range()
        missing = {seq for low, high in log.holes() for seq in range(low, high + 1)}
        assert all(first <= seq < end for seq in missing), (log.range(), log.holes())
        assert first not in missing
        return set(range(first, end)) - missing

    def check(self) -> None:
        """Compare what is held with what is needed; what is gone is counted, and was the oldest."""
        gone: list[tuple[int, int]] = []
        kept: list[tuple[int, int]] = []
        for epoch, log in self.logs().items():
            if epoch not in self.known:
                continue
            # First, since reading the oldest may find it damaged.
            stats = log.stats()
            held = self.held(log)
            assert held <= self.needed[epoch], (epoch, sorted(held - self.needed[epoch])[:9])
            gone += [(epoch, seq) for seq in self.needed[epoch] - held]
            kept += [(epoch, seq) for seq in held]
            self.needed[epoch] = held
            if epoch in self.suspect and epoch != self.epoch:
                self.durable[epoch] &= held
            else:
                self.durable[epoch] = {seq for seq in held if seq <= log.synced_seq}
            self._check_stats(stats, epoch)
        counts = self._counts()
        if self.spool.recovered:
            assert counts - self.counted == len(gone), (counts - self.counted, gone)
            if gone and kept and not self.unreadable and self.sync is None and self.move is None:
                assert max(gone) < min(kept), "not the oldest was dropped"
        else:
            self.dropped = self.dropped or self.spool.stats().dropped_segments > 0
            assert counts - self.counted >= len(gone)
        self.counted = counts
        self._check_bounds()

    def _counts(self) -> int:
        stats = self.spool.stats()
        return stats.dropped_batches + stats.quarantined_records

    def _check_stats(self, stats: Stats, epoch: int) -> None:
        assert stats.batches == len(self.needed[epoch])
        assert stats.samples == sum(self.accepted[epoch][seq].samples for seq in self.needed[epoch])
        for info in self.spool.segments():
            _, low, high = self.files.get(info.path, (0, info.first, info.last))
            self.files[info.path] = info.epoch, min(low, info.first), max(high, info.last)

    def _check_bounds(self) -> None:
        stats = self.spool.stats()
        # A power cut brings names back whose removal was not synced; the next syncs remove them again.
        back = 3 * SEGMENT_BYTES if self.epoch > 1 else 0
        assert self.stuck or stats.warm_bytes + stats.cold_bytes <= self.settings.spool_bytes_max + back
        assert stats.spares <= 3

    def read(self, epoch: int, seq: int) -> None:
        """Read a seq: the batch that was accepted, or nothing and then it is not held."""
        log = self.logs()[epoch]
        self.passing = False
        batch = log.get(seq)
        if batch is None:
            assert seq not in self.held(log) or self.passing
        else:
            known = self.accepted[epoch][seq]
            assert seq in self.needed[epoch]
            assert (batch.identity, batch.samples, batch.created_ms) == (
                known.identity,
                known.samples,
                known.created_ms,
            )
            batch.identity.check_payload(_payload(batch))
        self.check()

    def read_all(self) -> None:
        """Read everything that is held."""
        for epoch, log in self.logs().items():
            if epoch in self.known:
                for seq in sorted(self.held(log)):
                    self.read(epoch, seq)

    def break_page(self) -> None:
        """Make a page of a segment file unreadable."""
        files = [file for path, file in self.disk.names.items() if path.suffix == ".seg"]
        if files:
            file = self.random.choice(files)
            file.bad_pages.add(self.random.randrange(max(1, len(file.cache) // 4096)))
            self.unreadable = True

    def restart(self, *, power: bool, keep: float = 0.5) -> None:
        """End the process, or cut the power, and start again. Only a power cut loses what is not synced."""
        self.dropped = self.dropped or self.spool.stats().dropped_segments > 0
        for epoch in self.needed:
            if power:
                self.must[epoch] = set(self.durable[epoch])
            elif epoch in self.known:
                self.must[epoch] = set(self.needed[epoch])
                if epoch == self.epoch and self.log.appender.stranded:
                    # No disk took them: only the process had them.
                    self.must[epoch] -= set(self.log.unsynced)
        if power:
            self.disk.cut_power(self.random, keep)
        else:
            self.disk.end_process()
        self.start()


def _payload(batch: Batch) -> bytes:
    return frames.decompress(batch.data)


ERRORS = {
    "fdatasync": errno.EIO,
    "sync_folder": errno.EIO,
    "pwrite": errno.EIO,
    "allocate": errno.ENOSPC,
    "create": errno.ENOSPC,
    "rename": errno.EIO,
    "unlink": errno.EROFS,
    "open": errno.EMFILE,
    "free_bytes": errno.EIO,
}
