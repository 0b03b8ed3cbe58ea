"""Memory over a log, beside what every buffer promises (`test_buffer.py`)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cncmon_agent.batch import Batch
from cncmon_agent.buffer.hot import REFUSED, HotRing
from cncmon_agent.buffer.log import SegmentLog
from cncmon_agent.buffer.spool import Spool
from cncmon_agent.buffer.tiered import TieredBuffer
from testkit.buffers import EPOCH, SEGMENT_BYTES, TIERS, Spools, content, sync


@pytest.fixture
def spools(tmp_path: Path) -> Iterator[Spools]:
    made = Spools(tmp_path)
    yield made
    made.close()


@pytest.fixture
def spool(spools: Spools) -> Spool:
    return spools.make(16 * SEGMENT_BYTES)


@pytest.fixture
def log(spool: Spool) -> SegmentLog:
    return spool.begin(EPOCH)


def batch(seq: int, size: int = 200) -> Batch:
    return TIERS["hot"].batch(seq, size)


def fill(buffer: TieredBuffer, count: int) -> None:
    _, seq = buffer.range()
    for number in range(seq, seq + count):
        assert buffer.append(batch(number))


def seqs(ring: HotRing) -> list[int]:
    return [held.identity.seq for held in ring]


def test_a_batch_is_in_the_log_before_it_can_be_published(log: SegmentLog) -> None:
    """Rule A2 of docs/delivery.md."""
    ring = HotRing(1 << 20)
    seen: list[tuple[int, int]] = []

    class WatchedLog:
        def __getattr__(self, name: str):
            return getattr(log, name)

        def append(self, one: Batch) -> bool:
            taken = log.append(one)
            seen.append((ring.range()[1], log.range()[1]))
            return taken

    buffer = TieredBuffer(ring, WatchedLog())
    fill(buffer, 2)
    assert seen == [(1, 2), (2, 3)]


def test_what_the_log_refuses_is_in_neither(log: SegmentLog, spools: Spools) -> None:
    small = spools.make(3 * SEGMENT_BYTES).begin(EPOCH)
    ring = HotRing(1 << 20)
    buffer = TieredBuffer(ring, small)
    while buffer.append(batch(buffer.range()[1], 2500)):
        pass
    _, end = buffer.range()
    assert end > 3
    assert ring.range() == small.range() == (1, end)
    assert [content(one) for one in buffer] == [content(batch(seq, 2500)) for seq in range(1, end)]


def test_what_is_synced_gives_way_oldest_first_and_is_read_from_the_log(spool: Spool, log: SegmentLog) -> None:
    ring = HotRing(1 << 20, 4)
    buffer = TieredBuffer(ring, log)
    fill(buffer, 4)
    sync(spool)
    assert seqs(ring) == [1, 2, 3, 4], "nothing is given up without need"
    fill(buffer, 2)
    assert seqs(ring) == [3, 4, 5, 6]
    assert [content(buffer.get(seq)) for seq in range(1, 7)] == [content(batch(seq)) for seq in range(1, 7)]
    assert buffer.range() == (1, 7)


@pytest.mark.parametrize("ring", [HotRing(1 << 20, 4), HotRing(2048, 64)], ids=["by count", "by bytes"])
def test_what_is_not_synced_is_pinned_and_then_refused_and_counted(
    spool: Spool, log: SegmentLog, ring: HotRing
) -> None:
    buffer = TieredBuffer(ring, log)
    fill(buffer, 2)
    sync(spool)
    refused = REFUSED._value.get()
    while buffer.append(batch(buffer.range()[1])):
        pass
    _, end = buffer.range()
    assert end > 4
    assert REFUSED._value.get() == refused + 1
    assert seqs(ring) == list(range(3, end)), "the synced ones have given way, the others are all there"
    assert log.range() == (1, end), "the log has not taken what memory refused"
    sync(spool)
    assert buffer.append(batch(end))


def test_a_batch_is_published_from_memory(log: SegmentLog, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = TieredBuffer(HotRing(1 << 20), log)
    fill(buffer, 3)
    monkeypatch.setattr(log, "get", lambda seq: pytest.fail(f"seq {seq} was read from the log"))
    assert [content(buffer.get(seq)) for seq in (1, 2, 3)] == [content(batch(seq)) for seq in (1, 2, 3)]


def test_freed_is_freed_in_both(spool: Spool, log: SegmentLog) -> None:
    ring = HotRing(1 << 20, 4)
    buffer = TieredBuffer(ring, log)
    fill(buffer, 4)
    sync(spool)
    fill(buffer, 2)
    assert buffer.free(4) == 4
    assert seqs(ring) == [5, 6]
    assert log.range() == buffer.range() == (5, 7)
    assert buffer.free(6) == 2
    assert buffer.stats().batches == 0


def test_what_is_in_both_counts_once(spool: Spool, log: SegmentLog) -> None:
    buffer = TieredBuffer(HotRing(1 << 20, 4), log)
    fill(buffer, 4)
    sync(spool)
    fill(buffer, 3)
    stats = buffer.stats()
    assert (stats.batches, stats.samples) == (7, 7)
    assert stats.bytes == sum(batch(seq).bytes for seq in range(1, 8))
    assert buffer.accepted_bytes == sum(len(batch(seq).data) for seq in range(1, 8))


def test_what_was_refused_is_not_counted_as_accepted() -> None:
    buffer = TieredBuffer(HotRing(1 << 20, 1))
    fill(buffer, 1)
    assert not buffer.append(batch(2))
    assert buffer.accepted_bytes == len(batch(1).data)


def test_what_the_disk_lost_is_taken_from_memory_while_it_is_there(spool: Spool, log: SegmentLog) -> None:
    ring = HotRing(1 << 20, 4)
    buffer = TieredBuffer(ring, log)
    fill(buffer, 4)
    sync(spool)
    path = Path(spool.segments()[0].path)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(batch(3).data, bytes(len(batch(3).data))))
    assert log.get(3) is None
    assert log.holes() == [(3, 3)]
    assert content(buffer.get(3)) == content(batch(3))
    assert buffer.holes() == []
    fill(buffer, 2)
    assert content(buffer.get(3)) == content(batch(3))
    sync(spool)
    fill(buffer, 1)
    assert seqs(ring) == [4, 5, 6, 7]
    assert buffer.get(3) is None
    assert buffer.holes() == [(3, 3)]
    assert [one.identity.seq for one in buffer] == [1, 2, 4, 5, 6, 7]


def test_what_the_log_had_to_drop_is_not_held_either(spools: Spools) -> None:
    spool = spools.make(3 * SEGMENT_BYTES)
    log = spool.begin(EPOCH)
    ring = HotRing(1 << 20)
    buffer = TieredBuffer(ring, log)
    while log.range()[0] == 1:
        assert buffer.append(batch(buffer.range()[1], 2500))
        sync(spool)
    first, _ = log.range()
    assert first > 1
    assert ring.get(1) is not None
    assert buffer.range() == log.range()
    assert buffer.get(first - 1) is None
    assert content(buffer.get(first)) == content(batch(first, 2500))
    assert buffer.stats().batches == sum(1 for _ in buffer)


def test_without_a_disk_it_is_memory_alone(log: SegmentLog) -> None:
    assert not TieredBuffer(HotRing(1 << 20), log).memory_only
    buffer = TieredBuffer(HotRing(1 << 20, 2))
    assert buffer.memory_only
    fill(buffer, 2)
    assert not buffer.append(batch(3)), "nothing is given up that is nowhere else"
    assert buffer.free(1) == 1
    assert buffer.append(batch(3))
    assert buffer.holes() == []


def test_both_must_begin_at_the_same_seq(log: SegmentLog) -> None:
    with pytest.raises(ValueError, match="goes on at seq 1, the ring in memory at 5"):
        TieredBuffer(HotRing(1 << 20, 4, first_seq=5), log)
