"""The spool on a real disk, and on one whose calls fail."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from cncmon_agent.batch import Batch, make
from cncmon_agent.buffer.disk import Disk, Entry
from cncmon_agent.buffer.errors import SpoolError, SpoolLockedError
from cncmon_agent.buffer.log import SegmentLog
from cncmon_agent.buffer.names import parse
from cncmon_agent.buffer.spool import Spool, SpoolSettings
from cncmon_core import frames
from robustness.model.disk import SimulatedDisk

SEGMENT = 32 << 10
SETTINGS = SpoolSettings(segment_bytes=SEGMENT, spool_bytes_max=10 * SEGMENT, reserve_bytes=0)


class FailingDisk(Disk):
    """The real disk, whose calls fail as told: by name, the error number and how many times."""

    def __init__(self) -> None:
        self.fail: dict[str, tuple[int, int]] = {}
        self.synced: list[str] = []
        self.free = 1 << 40

    def _may(self, call: str) -> None:
        number, times = self.fail.get(call, (0, 0))
        if times:
            self.fail[call] = number, times - 1
            raise OSError(number, os.strerror(number))

    def allocate(self, fd: int, count: int) -> None:
        self._may("allocate")
        super().allocate(fd, count)

    def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        self._may("pwrite")
        super().pwrite(fd, data, offset)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        self._may("pread")
        return super().pread(fd, count, offset)

    def fdatasync(self, fd: int) -> None:
        self.synced.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        self._may("fdatasync")
        super().fdatasync(fd)

    def sync_folder(self, folder: Path) -> None:
        self._may("sync_folder")
        super().sync_folder(folder)

    def open(self, path: Path, *, write: bool = False, create: bool = False) -> int:
        self._may("open")
        return super().open(path, write=write, create=create)

    def list_files(self, folder: Path) -> list[Entry]:
        self._may("list_files")
        return super().list_files(folder)

    def unlink(self, path: Path) -> None:
        self._may("unlink")
        super().unlink(path)

    def free_bytes(self, folder: Path) -> int:
        return self.free


@pytest.fixture
def disk() -> FailingDisk:
    return FailingDisk()


@pytest.fixture
def start(tmp_path: Path, disk: FailingDisk) -> Callable[..., Spool]:
    """Return what starts a spool on the same folder, everything recovered unless told otherwise."""

    def of(settings: SpoolSettings = SETTINGS, *, recover: bool = True) -> Spool:
        spool = Spool(tmp_path / "spool", settings, disk)
        if recover:
            for piece in spool.recover_steps():
                piece.run()
                piece.install()
        return spool

    return of


def fill(log: SegmentLog, count: int, size: int = 3000) -> list[Batch]:
    first = log.range()[1]
    made = [make(log.epoch, seq, seq - 1, "samples", [os.urandom(size)], 1, seq) for seq in range(first, first + count)]
    assert all(log.append(batch) for batch in made)
    return made


def sync(spool: Spool) -> None:
    work = spool.sync_work()
    if work is not None:
        work.run()
        spool.synced(work)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".seg")


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("failures", [1, 2, 3])
def test_delivery_a2_what_recovery_could_not_sync_is_written_elsewhere(failures: int, seed: int) -> None:
    """FAULT 6 at a start: what only the page cache has must be safe before its source is freed; a second sync lies."""
    simulated, left = SimulatedDisk(), failures

    def started() -> Spool:
        spool = Spool(Path("/spool"), SETTINGS, simulated)
        for piece in spool.recover_steps():
            piece.run()
            piece.install()
        return spool

    def fail(call: str, _path: Path | None) -> None:
        nonlocal left
        if call == "fdatasync" and left:
            left -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    batches = fill(started().begin(7), 5)
    simulated.end_process()
    simulated.on_call = fail
    assert list(started().earlier[7]) == batches
    assert left == 0
    simulated.cut_power(Random(seed), keep=0.0)
    assert list(started().earlier[7]) == batches


def test_an_earlier_epoch_is_there_when_it_is_scanned(start) -> None:
    spool = start()
    batches = fill(spool.begin(7), 30)
    sync(spool)
    spool.close()

    spool = start(recover=False)
    assert not spool.recovered
    assert spool.earlier == {}
    new = spool.begin(8)
    more = fill(new, 3)
    for piece in spool.recover_steps():
        piece.run()
        piece.install()
    assert spool.recovered
    assert list(spool.earlier) == [7]
    assert list(spool.earlier[7]) == batches
    assert list(new) == more
    with pytest.raises(ValueError, match="only drains"):
        spool.earlier[7].append(make(7, 31, 30, "samples", [b"x"], 1, 1))
    spool.earlier[7].free(30)
    spool.forget(7)
    assert spool.earlier == {}
    assert {info.epoch for info in spool.segments()} == {8}


def test_epochs_come_back_oldest_first(start) -> None:
    for epoch in (9, 3, 5):
        spool = start(recover=False)
        fill(spool.begin(epoch), 2)
        spool.close()
    assert list(start().earlier) == [9, 3, 5]


def test_starting_reads_no_segment(start, disk: FailingDisk) -> None:
    spool = start()
    fill(spool.begin(7), 30)
    spool.close()
    disk.fail["pread"] = errno.EIO, 1 << 30
    spool = start(recover=False)
    fill(spool.begin(8), 1)


def test_a_second_agent_is_refused(start, tmp_path: Path) -> None:
    spool = start()
    with pytest.raises(SpoolLockedError, match="another agent"):
        Spool(tmp_path / "spool", SETTINGS)
    spool.close()
    start().close()


@pytest.mark.parametrize("call", ["sync_folder", "list_files"])
def test_a_folder_that_cannot_be_used_is_said_plainly(start, disk: FailingDisk, call: str) -> None:
    disk.fail[call] = errno.EROFS, 1
    with pytest.raises(SpoolError, match=r"spool can't be used for the log: Read-only file system"):
        start()
    start().close()


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("x")
    with pytest.raises(SpoolError, match="can't be used"):
        Spool(tmp_path / "spool", SETTINGS)


@pytest.mark.parametrize(("segment", "most"), [(SEGMENT + 1, 1 << 20), (SEGMENT, 2 * SEGMENT)])
def test_settings_that_leave_no_room(tmp_path: Path, segment: int, most: int) -> None:
    with pytest.raises(SpoolError, match="three of them must fit"):
        Spool(tmp_path, SpoolSettings(segment_bytes=segment, spool_bytes_max=most))


def test_at_the_cap_the_oldest_segments_go_and_are_counted(start, tmp_path: Path) -> None:
    spool = start()
    log = spool.begin(7)
    batches: list[Batch] = []
    for _ in range(50):
        batches += fill(log, 4)
        sync(spool)
    stats = spool.stats()
    first, end = log.range()
    assert 0 < first - 1 == stats.dropped_batches == stats.dropped_samples
    assert end == 201
    assert list(log) == batches[first - 1 :]
    assert log.holes() == []
    on_disk = sum(path.stat().st_size for path in (tmp_path / "spool").iterdir() if path.is_file())
    assert on_disk <= SETTINGS.spool_bytes_max


def test_another_order_of_dropping(start) -> None:
    spool = start()
    log = spool.begin(7)
    fill(log, 40)
    sync(spool)
    second = spool.segments()[1]
    assert spool.shed(lambda infos: infos[1]) == second
    assert log.holes() == [(second.first, second.last)]
    spool.order = lambda infos: infos[-1]
    last = spool.segments()[-2]
    assert spool.shed() == last
    assert log.range() == (1, 41)


def test_on_a_full_disk_old_segments_make_room_and_nothing_breaks(start, disk: FailingDisk) -> None:
    spool = start()
    log = spool.begin(7)
    fill(log, 30)
    sync(spool)
    disk.free = 0
    for _ in range(20):
        fill(log, 4)
        sync(spool)
    assert spool.stats().dropped_batches == log.range()[0] - 1 > 0
    assert spool.stats().write_errors == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_without_saying_so(start, disk: FailingDisk, number: int) -> None:
    spool = start()
    log = spool.begin(7)
    fill(log, 30)
    sync(spool)
    disk.fail["allocate"] = number, 1 << 30
    for _ in range(20):
        fill(log, 4)
        sync(spool)
    assert spool.stats().dropped_batches == log.range()[0] - 1 > 0


def test_a_disk_that_was_full_from_the_start(start, disk: FailingDisk, tmp_path: Path) -> None:
    disk.free = 0
    spool = start()
    log = spool.begin(7)
    batch = make(7, 1, 0, "samples", [b"x"], 1, 1)
    assert not log.append(batch)
    assert spool.stats().refused_batches == 1
    assert files(tmp_path / "spool") == []
    disk.free = 1 << 30
    assert log.append(batch)


def test_what_a_failed_sync_lost_is_written_elsewhere_and_that_file_never_synced_again(
    start, disk: FailingDisk, tmp_path: Path
) -> None:
    spool = start()
    log = spool.begin(7)
    batches = fill(log, 2)
    sync(spool)
    failing = log.segments[-1].path.name
    batches += fill(log, 3)
    disk.fail["fdatasync"] = errno.EIO, 1
    work = spool.sync_work()
    assert work is not None
    batches += fill(log, 1)
    work.run()
    spool.synced(work)
    assert log.synced_seq == 2
    assert (spool.stats().abandoned_files, spool.stats().sync_errors) == (1, 1)
    disk.synced.clear()
    batches += fill(log, 1)
    sync(spool)
    sync(spool)
    assert log.synced_seq == 7
    assert failing not in disk.synced
    assert list(log) == batches

    # Both files have the seqs 3 to 6 now; they are held once.
    spool.close()
    assert failing in files(tmp_path / "spool")
    spool = start()
    assert list(spool.earlier[7]) == batches
    assert spool.earlier[7].stats().batches == len(batches)
    assert spool.stats().duplicates == 4
    assert spool.stats().quarantined_records == 0


def test_a_file_left_while_its_sync_is_under_way_is_not_taken_for_synced(start, disk: FailingDisk) -> None:
    spool = start()
    log = spool.begin(7)
    fill(log, 3)
    work = spool.sync_work()
    assert work is not None
    disk.fail["pwrite"] = errno.EIO, 1
    fill(log, 1)
    work.run()
    spool.synced(work)
    assert log.synced_seq == 0
    sync(spool)
    assert log.synced_seq == 4
    assert len(list(log)) == 4


def test_names_that_cannot_be_synced_leave_the_file_too(start, disk: FailingDisk) -> None:
    spool = start()
    log = spool.begin(7)
    batches = fill(log, 3)
    disk.fail["sync_folder"] = errno.EIO, 1
    sync(spool)
    assert log.synced_seq == 0
    sync(spool)
    assert log.synced_seq == 3
    assert list(log) == batches


def test_without_a_disk_batches_are_held_in_memory_and_written_when_it_is_back(start, disk: FailingDisk) -> None:
    spool = start()
    log = spool.begin(7)
    batches = fill(log, 3)
    disk.fail = {"fdatasync": (errno.EIO, 1), "allocate": (errno.EIO, 1 << 30)}
    sync(spool)
    assert not log.append(make(7, 4, 3, "samples", [b"x"], 1, 1))
    assert list(log) == batches
    assert log.free(1) == 1
    assert log.stats().batches == 2
    disk.fail.clear()
    sync(spool)
    assert log.synced_seq == 3
    batches += fill(log, 1)
    assert list(log) == batches[1:]


def test_a_page_that_cannot_be_read_costs_its_record(start, disk: FailingDisk) -> None:
    spool = start()
    log = spool.begin(7)
    fill(log, 20)
    sync(spool)
    assert log.get(2) is not None
    disk.fail["pread"] = errno.EIO, 1
    assert log.get(3) is None
    assert log.holes() == [(3, 3)]
    assert (spool.stats().read_errors, spool.stats().quarantined_records) == (1, 1)


@pytest.mark.parametrize("elsewhere", [True, False])
def test_the_cold_tier_holds_the_same(start, tmp_path: Path, elsewhere: bool) -> None:
    settings = SpoolSettings(
        segment_bytes=SEGMENT,
        spool_bytes_max=10 * SEGMENT,
        reserve_bytes=0,
        cold_dir=str(tmp_path / "usb") if elsewhere else "",
    )
    spool = start(settings)
    log = spool.begin(7)
    text = [b"%d,%d;" % (number, number * number) for number in range(4000)]
    batches = []
    for seq in range(1, 60):
        batch = make(7, seq, seq - 1, "samples", [b"".join(text[seq * 20 : seq * 20 + 500])], 1, seq)
        assert log.append(batch)
        batches.append(batch)
    sync(spool)
    log.free(2)
    moved = 0
    while (work := spool.cold_work(19)) is not None:
        work.run()
        assert spool.moved(work)
        moved += 1
    assert moved == len(log.segments) - 1
    assert [info.tier for info in spool.segments()] == ["cold"] * moved + ["warm"]
    assert [batch.identity for batch in log] == [batch.identity for batch in batches[2:]]
    for batch in log:
        batch.identity.check_payload(_payload(batch))
    stats = spool.stats()
    assert 0 < stats.cold_bytes < moved * SEGMENT
    cold = tmp_path / ("usb" if elsewhere else "spool/cold")
    assert sum(path.stat().st_size for path in cold.iterdir()) == stats.cold_bytes
    spool.close()

    spool = start(settings)
    log = spool.earlier[7]
    assert [batch.identity.seq for batch in log] == list(range(3, 60))
    log.free(59)
    spool.forget(7)
    assert files(cold) == []
    assert spool.stats().cold_bytes == 0


@pytest.mark.parametrize("call", ["pwrite", "fdatasync", "sync_folder", "pread"])
def test_a_cold_disk_that_fails_costs_nothing(start, disk: FailingDisk, tmp_path: Path, call: str) -> None:
    spool = start()
    log = spool.begin(7)
    batches = fill(log, 30)
    sync(spool)
    work = spool.cold_work(3)
    assert work is not None
    log.segments[0].index = None
    disk.fail[call] = errno.EIO, 1
    work.run()
    assert not spool.moved(work)
    assert spool.stats().cold_errors == 1
    assert list(log) == batches
    assert list((tmp_path / "spool" / "cold").iterdir()) == []
    again = spool.cold_work(3)
    assert again is not None
    again.run()
    assert spool.moved(again)
    assert list(log) == batches


def test_a_segment_freed_while_it_is_moved_is_gone_from_both(start, tmp_path: Path) -> None:
    spool = start()
    log = spool.begin(7)
    fill(log, 30)
    sync(spool)
    work = spool.cold_work(3)
    assert work is not None
    log.free(25)
    work.run()
    assert not spool.moved(work)
    assert files(tmp_path / "spool" / "cold") == []
    assert [batch.identity.seq for batch in log] == [26, 27, 28, 29, 30]
    assert spool.stats().warm_bytes <= 4 * SEGMENT


def test_the_copy_is_safe_before_the_original_goes(start, disk: FailingDisk) -> None:
    spool = start()
    fill(spool.begin(7), 30)
    sync(spool)
    disk.synced.clear()
    work = spool.cold_work(3)
    assert work is not None
    work.run()
    assert work.made is not None
    assert disk.synced == [f"{work.made.name}.new"]


def test_a_lower_bound_is_reached_in_steps(start) -> None:
    spool = start()
    log = spool.begin(7)
    for _ in range(10):
        fill(log, 8)
        sync(spool)
    spool.close()
    spool = start(SpoolSettings(segment_bytes=SEGMENT, spool_bytes_max=4 * SEGMENT, reserve_bytes=0))
    log = spool.begin(8)
    for _ in range(12):
        fill(log, 1)
        sync(spool)
    assert spool.stats().warm_bytes <= 4 * SEGMENT
    assert spool.stats().dropped_segments > 0


def test_files_that_are_not_scanned_yet_make_room_too(start) -> None:
    spool = start()
    log = spool.begin(7)
    for _ in range(12):
        fill(log, 8)
        sync(spool)
    first, end = log.range()
    spool.close()
    spool = start(recover=False)
    new = spool.begin(8)
    fill(new, 20)
    dropped = spool.stats().dropped_batches
    assert dropped > 0
    for piece in spool.recover_steps():
        piece.run()
        piece.install()
    assert spool.earlier[7].range() == (first + dropped, end)


def test_delivery_a7_the_end_of_an_epoch_is_written_down_before_the_file_goes_that_tells_it(start) -> None:
    spool = start()
    for epoch in (7, 8):
        fill(spool.begin(epoch), 5)
        sync(spool)
    spool.close()
    said: list[tuple[int, int]] = []

    def note_end(epoch: int, seq: int) -> bool:
        said.append((epoch, seq))
        return epoch != 7 or len(said) > 3

    spool = start(recover=False)
    spool.note_end = note_end
    dropped = spool.shed()
    assert (dropped.epoch, dropped.first, dropped.last, dropped.samples) == (8, 1, 5, 5)
    assert said == [(7, 5), (8, 5)], "what could not be written down stays"
    assert spool.stats().dropped_samples == 5
    for piece in spool.recover_steps():
        piece.run()
        piece.install()
    assert spool.earlier.keys() == {7}
    assert spool.shed() is None
    assert spool.shed().epoch == 7
    assert said[2:] == [(7, 5), (7, 5)]
    assert list(spool.earlier[7]) == []


def test_a_last_file_that_can_not_be_read_is_one_batch_at_least(start, disk: FailingDisk) -> None:
    spool = start()
    fill(spool.begin(7), 5)
    sync(spool)
    spool.close()
    spool = start(recover=False)
    disk.fail["open"] = errno.EIO, 1
    dropped = spool.shed()
    assert (dropped.last, dropped.batches) == (1, 1)


def test_spares_are_two_at_most_and_used_again(start, tmp_path: Path) -> None:
    spool = start()
    log = spool.begin(7)
    for _ in range(30):
        fill(log, 4)
        sync(spool)
        log.free(log.range()[1] - 1)
        assert spool.stats().spares <= 2
    inodes = {path.stat().st_ino for path in (tmp_path / "spool").iterdir() if path.suffix in (".seg", ".spare")}
    assert len(inodes) <= 3
    assert spool.stats().warm_bytes <= 3 * SEGMENT
    for name in files(tmp_path / "spool"):
        assert parse(name) is not None


def test_a_spare_is_written_to_only_when_its_name_cannot_be_lost(start, disk: FailingDisk) -> None:
    spool = start()
    log = spool.begin(7)
    fill(log, 30)
    sync(spool)
    log.free(29)
    disk.fail["sync_folder"] = errno.EIO, 1
    taken = [log.append(make(7, seq, seq - 1, "samples", [os.urandom(20_000)], 1, seq)) for seq in (31, 31)]
    assert taken == [False, True]
    assert disk.fail["sync_folder"][1] == 0


def test_quarantine_is_bounded(start, tmp_path: Path) -> None:
    spool = start(SpoolSettings(segment_bytes=SEGMENT, reserve_bytes=0, quarantine_bytes_max=10_000))
    log = spool.begin(7)
    fill(log, 20)
    sync(spool)
    for segment in log.segments[:2]:
        for entry in segment.index or ():
            with segment.path.open("r+b") as file:
                file.seek((entry >> 40 << 3) + 100)
                file.write(bytes(50))
    assert len(list(log)) < 10
    kept = [path.stat().st_size for path in (tmp_path / "spool" / "quarantine").iterdir()]
    assert 0 < sum(kept) <= 10_000
    assert spool.stats().quarantined_records > len(kept)


def _payload(batch: Batch) -> bytes:
    return frames.decompress(batch.data)
