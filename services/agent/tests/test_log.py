"""The log of one epoch on a real disk."""

import os
import tracemalloc
from pathlib import Path

import pytest

from cncmon_agent.batch import Batch, Source, make
from cncmon_agent.buffer.log import SegmentLog
from cncmon_agent.buffer.spool import Spool, SpoolSettings

SETTINGS = SpoolSettings(segment_bytes=32 << 10, spool_bytes_max=4 << 20, reserve_bytes=0)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", SETTINGS)


def fill(log: SegmentLog, count: int, size: int = 3000) -> list[Batch]:
    first = log.range()[1]
    made = [
        make(log.epoch, seq, seq - 1, "samples", [os.urandom(size)], 1, seq, Source(1, seq, seq) if seq % 2 else None)
        for seq in range(first, first + count)
    ]
    assert all(log.append(batch) for batch in made)
    return made


def sync(spool: Spool) -> None:
    work = spool.sync_work()
    if work is not None:
        work.run()
        spool.synced(work)


def test_it_holds_what_is_appended_over_many_segments(spool: Spool) -> None:
    log = spool.begin(77)
    assert log.range() == (1, 1)
    assert log.stats().oldest_created_ms is None
    batches = fill(log, 60)
    assert len(log.segments) > 5
    for _ in range(2):
        assert list(log) == batches
        assert log.range() == (1, 61)
        assert log.holes() == []
        stats = log.stats()
        assert (stats.batches, stats.samples, stats.oldest_created_ms) == (60, 60, 1)
        assert stats.bytes == sum(batch.bytes for batch in batches)
        sync(spool)
    assert log.synced_seq == 60
    assert log.unsynced == {}


def test_what_is_freed_gives_its_files_back(spool: Spool, tmp_path: Path) -> None:
    log = spool.begin(77)
    batches = fill(log, 60)
    sync(spool)
    assert log.free(3) == 3
    assert log.range() == (4, 61)
    assert log.stats().samples == 57
    assert list(log) == batches[3:]
    assert log.free(3) == 0
    assert log.free(59) == 56
    assert [batch.identity.seq for batch in log] == [60]
    files = sorted(path.suffix for path in (tmp_path / "spool").iterdir() if path.is_file() and path.suffix)
    assert files == [".seg", ".spare", ".spare"]
    assert log.free(1000) == 1
    assert log.range() == (61, 61)
    assert log.stats().bytes == 0


@pytest.mark.parametrize("seq", [0, 2, -1, 1 << 40])
def test_a_seq_that_is_not_the_next_is_a_fault_of_the_caller(spool: Spool, batch_of, seq: int) -> None:
    log = spool.begin(77)
    with pytest.raises(ValueError, match="1 is next"):
        log.append(batch_of(seq))
    with pytest.raises(ValueError, match="epoch 78"):
        log.append(batch_of(1, epoch=78))


def test_a_batch_larger_than_a_segment_is_refused_and_counted(spool: Spool) -> None:
    log = spool.begin(77)
    assert not log.append(make(77, 1, 0, "samples", [os.urandom(40_000)], 1, 1))
    assert spool.stats().refused_batches == 1
    assert log.range() == (1, 1)
    fill(log, 1)


def test_unsynced_batches_are_bounded(tmp_path: Path) -> None:
    spool = Spool(tmp_path, SpoolSettings(reserve_bytes=0, unsynced_bytes_max=1 << 16))
    log = spool.begin(77)
    taken = sum(log.append(make(77, seq, 0, "samples", [os.urandom(10_000)], 1, 1)) for seq in range(1, 7))
    assert taken == 6
    assert not log.append(make(77, 7, 0, "samples", [os.urandom(10_000)], 1, 1))
    sync(spool)
    fill(log, 1)


def test_a_damaged_record_is_a_hole_counted_and_kept_for_people(spool: Spool, tmp_path: Path) -> None:
    log = spool.begin(77)
    batches = fill(log, 20)
    sync(spool)
    segment = log.segments[0]
    assert segment.index is not None
    place = (segment.index[2] >> 40 << 3) + 200
    with segment.path.open("r+b") as file:
        file.seek(place)
        file.write(b"\xff\x00\xff")
    assert log.get(3) is None
    assert log.get(3) is None
    assert log.holes() == [(3, 3)]
    assert spool.stats().quarantined_records == 1
    assert len(list((tmp_path / "spool" / "quarantine").iterdir())) == 1
    assert list(log) == batches[:2] + batches[3:]
    assert log.stats().batches == 19
    log.free(2)
    assert log.range() == (4, 21)
    assert log.holes() == []


def test_a_file_that_is_gone_is_a_hole(spool: Spool) -> None:
    log = spool.begin(77)
    fill(log, 60)
    sync(spool)
    log.segments[1].path.unlink()
    first, last = log.segments[1].first, log.segments[1].last
    assert log.get(first) is None
    assert log.holes() == [(first, last)]
    assert spool.stats().quarantined_records == last - first + 1
    assert log.stats().batches == 60 - (last - first + 1)
    log.free(60)
    assert log.stats().batches == 0


def test_memory_does_not_grow_with_the_backlog(tmp_path: Path) -> None:
    spool = Spool(tmp_path, SpoolSettings(segment_bytes=1 << 20, spool_bytes_max=64 << 20, reserve_bytes=0))
    log = spool.begin(77)
    one = make(77, 1, 0, "samples", [bytes(400)], 1, 1)

    def more(count: int) -> None:
        for seq in range(log.range()[1], log.range()[1] + count):
            name = one.identity
            renamed = type(name)(77, seq, name.frames, seq, name.sha256, name.kind)
            assert log.append(Batch(renamed, one.data, 1, seq))
            if seq % 500 == 0:
                sync(spool)

    tracemalloc.start()
    more(40_000)
    sync(spool)
    before = tracemalloc.get_traced_memory()[0]
    more(40_000)
    sync(spool)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(log.segments) > 5
    assert grown < 40_000, f"{grown / 40_000:.1f} bytes a batch"
    assert log.get(20_000) is not None


def test_freeing_and_appending_while_iterating(spool: Spool) -> None:
    log = spool.begin(77)
    fill(log, 5)
    seen = []
    for batch in log:
        seen.append(batch.identity.seq)
        if seen == [1, 2]:
            log.free(3)
            fill(log, 1)
    assert seen == [1, 2, 4, 5, 6]
