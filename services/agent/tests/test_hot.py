"""The ring in memory, beside what every buffer promises (`test_buffer.py`)."""

import gc
import random
import threading
import tracemalloc

import msgspec
import pytest

from cncmon_agent.batch import Source
from cncmon_agent.buffer.hot import BATCH_BYTES_MIN, REFUSED, HotRing
from cncmon_core import frames
from cncmon_core.identity import EPOCH_MAX, digest

KIB = 1 << 10


@pytest.mark.parametrize(
    ("asked", "got"), [(1, 1), (2, 2), (1023, 512), (1024, 1024), (1025, 1024), (3 << 20, 2 << 20)]
)
def test_its_capacity_is_a_power_of_two_and_never_more_than_asked_for(asked: int, got: int) -> None:
    assert HotRing(asked).stats().capacity_bytes == got


@pytest.mark.parametrize(("capacity_bytes", "batches_max"), [(0, 1), (-1, 1), (16, 0)])
def test_a_ring_of_nothing_is_refused(capacity_bytes: int, batches_max: int) -> None:
    with pytest.raises(ValueError, match="holds nothing"):
        HotRing(capacity_bytes, batches_max)


def test_it_begins_at_any_seq(batch_of) -> None:
    ring = HotRing(4 * KIB, 4, first_seq=1 << 40)
    assert ring.append(batch_of(1 << 40))
    assert ring.range() == (1 << 40, (1 << 40) + 1)


def test_what_is_not_committed_is_not_there(batch_of) -> None:
    ring = HotRing(4 * KIB, 4)
    ring.append(batch_of(1))
    before = ring.stats()
    packed = msgspec.msgpack.encode(batch_of(2))
    start = ring.reserve(len(packed))
    assert start == before.bytes

    def not_there() -> None:
        assert ring.range() == (1, 2)
        assert ring.get(2) is None
        assert [batch.identity.seq for batch in ring] == [1]
        assert ring.stats() == before

    not_there()
    ring.copy(packed[: len(packed) // 2], start)
    not_there()
    ring.copy(packed, start)
    not_there()
    ring.commit(start, len(packed), 1)
    assert ring.get(2) == batch_of(2)


def test_round_the_end_of_the_ring_at_every_place(batch_of) -> None:
    ring = HotRing(KIB, 8)
    places = set()
    for seq in range(1, 3000):
        batch = batch_of(seq, frames=[random.Random(seq).randbytes(seq % 89)])
        places.add(ring.reserve(1) % KIB)
        assert ring.append(batch)
        assert ring.get(seq) == batch
        if seq > 1:
            assert ring.get(seq - 1) is not None
            assert ring.free(seq - 1) == 1
    assert len(places) > KIB * 0.9


def test_what_is_refused_is_counted_and_nothing_else_changes(batch_of) -> None:
    ring = HotRing(KIB, 2)
    before = REFUSED._value.get()
    assert ring.append(batch_of(1))
    assert not ring.append(batch_of(2, frames=[random.Random(1).randbytes(900)]))
    assert ring.append(batch_of(2))
    assert not ring.append(batch_of(3))
    assert REFUSED._value.get() == before + 2
    assert list(ring) == [batch_of(1), batch_of(2)]


def test_no_batch_takes_more_than_it_says(batch_of) -> None:
    largest = batch_of(EPOCH_MAX, epoch=EPOCH_MAX, created_ms=EPOCH_MAX, source=Source(EPOCH_MAX, EPOCH_MAX, EPOCH_MAX))
    assert len(msgspec.msgpack.encode(largest)) < largest.bytes
    assert len(msgspec.msgpack.encode(batch_of(1))) < BATCH_BYTES_MIN


def test_what_is_held_costs_no_objects_and_memory_stays_flat(batch_of) -> None:
    batches = [batch_of(seq) for seq in range(1, 20_001)]
    ring = HotRing(2 << 20)
    gc.collect()
    objects = len(gc.get_objects())
    tracemalloc.start()
    try:
        held = 0
        for batch in batches:
            while not ring.append(batch):
                held = max(held, ring.stats().batches)
                ring.free(ring.range()[0] + 100)
        gc.collect()
        grown_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held > 5000
    assert grown_bytes < 16 * KIB
    assert len(gc.get_objects()) - objects < 50


def test_what_is_written_anew_while_it_is_copied_is_not_read(batch_of) -> None:
    """As a reader in another thread may have it: the copy is half of one batch and half of another."""
    ring = HotRing(KIB, 4)
    ring.append(batch_of(1, frames=[random.Random(1).randbytes(500)]))

    class Interrupted(bytearray):
        pending = True

        def __getitem__(self, place):  # type: ignore[no-untyped-def]
            if self.pending:
                self.pending = False
                ring.free(1)
                for seq in (2, 3):
                    assert ring.append(batch_of(seq, frames=[random.Random(seq).randbytes(280)]))
            return super().__getitem__(place)

    ring._ring = Interrupted(ring._ring)
    assert ring.get(1) is None
    assert [batch.identity.seq for batch in ring] == [2, 3]


def test_a_reader_in_another_thread_sees_whole_batches_only(batch_of) -> None:
    ring = HotRing(16 * KIB, 64)
    faults: list[str] = []
    read = 0
    done = threading.Event()

    def check(seq: int) -> None:
        nonlocal read
        batch = ring.get(seq)
        if batch is None:
            return
        read += 1
        if batch.identity.seq != seq:
            faults.append(f"asked for {seq}, got {batch.identity.seq}")
        if digest(frames.decompress(batch.data)) != batch.identity.sha256:
            faults.append(f"seq {seq}: not the frames that were put in")

    def reading() -> None:
        while not done.is_set():
            first, end = ring.range()
            check(first)
            check(end - 1)

    threads = [threading.Thread(target=reading) for _ in range(2)]
    for thread in threads:
        thread.start()
    kinds = [random.Random(number).randbytes(50 + number * 13) for number in range(61)]
    try:
        for seq in range(1, 15_001):
            batch = batch_of(seq, frames=[kinds[seq % 61]])
            while not ring.append(batch):
                ring.free(ring.range()[0] + 3)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert faults == []
    assert read > 100
