"""One segment file: written, sealed, scanned, whole and damaged."""

import os
import zlib
from pathlib import Path

import pytest

from cncmon_agent.batch import Batch
from cncmon_agent.buffer import footer as footers
from cncmon_agent.buffer import record, scan
from cncmon_agent.buffer.disk import Disk
from cncmon_agent.buffer.names import HEADER, HEADER_BYTES, SegmentName, header_of, parse
from cncmon_agent.buffer.record import Nonce
from cncmon_agent.buffer.scan import Found
from cncmon_agent.buffer.segment import of_scan
from cncmon_agent.buffer.writer import Writer

SIZE = 64 << 10
NAME = SegmentName(1, 77, 1, 0, Nonce(b"abcd", 5))


class Written:
    """A segment file with batches in it."""

    def __init__(self, folder: Path, batches: list[Batch], *, seal: bool, name: SegmentName = NAME) -> None:
        self.path = folder / str(name)
        self.name = name
        self.batches = batches
        self.places: list[int] = []
        disk = Disk()
        fd = disk.open(self.path, write=True, create=not self.path.exists())
        disk.allocate(fd, SIZE)
        writer = Writer(disk, fd, name, SIZE)
        index = footers.empty()
        for batch in batches:
            at = writer.append(record.encode(batch, name.nonce))
            self.places.append(at)
            index.append(footers.pack(at, len(batch.data), batch.samples))
            if batch.identity.seq % 3 == 0:
                writer.end_group()
        if seal:
            assert writer.seal(index, 1)[1] == SIZE
        disk.close(fd)

    def scan(self) -> Found:
        fd = os.open(self.path, os.O_RDONLY)
        try:
            return scan.scan(Disk(), fd, self.name, self.path.stat().st_size)
        finally:
            os.close(fd)

    def change(self, at: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(at)
            file.write(data)

    def read(self, found: Found) -> list[Batch | None]:
        segment = of_scan(self.name, self.path.parent, "warm", SIZE, found)
        fd = os.open(self.path, os.O_RDONLY)
        try:
            index = segment.load_index(Disk(), fd)
            return [
                segment.read(Disk(), fd, seq, index[seq - 1]) if segment.is_held(seq) else None
                for seq in range(1, segment.last + 1)
            ]
        finally:
            os.close(fd)


@pytest.fixture
def batches(batch_of) -> list[Batch]:
    made = [batch_of(seq, created_ms=seq) for seq in range(1, 21)]
    return [Batch(one.identity, os.urandom(seq * 97), 1, seq) for seq, one in enumerate(made, start=1)]


@pytest.mark.parametrize("seal", [True, False])
def test_a_scan_finds_what_was_written(tmp_path: Path, batches: list[Batch], seal: bool) -> None:
    written = Written(tmp_path, batches, seal=seal)
    found = written.scan()
    assert (found.first, found.last, found.samples, found.bad) == (1, 20, 20, [])
    assert found.bytes == sum(batch.bytes for batch in batches)
    assert found.whole == seal
    assert written.read(found) == batches


@pytest.mark.parametrize("seal", [True, False])
@pytest.mark.parametrize("hit", [1, 7, 19])
def test_a_damaged_record_costs_itself(tmp_path: Path, batches: list[Batch], seal: bool, hit: int) -> None:
    written = Written(tmp_path, batches, seal=seal)
    written.change(written.places[hit - 1] + 40, b"\xff\xff\xff")
    found = written.scan()
    assert found.bad == [(hit, hit)]
    assert not found.whole
    assert len(found.damaged) == 1
    low, high = found.damaged[0]
    assert low <= written.places[hit - 1] + 40 < high
    assert written.read(found) == [batch if batch.identity.seq != hit else None for batch in batches]


def test_the_last_record_of_a_sealed_segment_is_missed_too(tmp_path: Path, batches: list[Batch]) -> None:
    written = Written(tmp_path, batches, seal=True)
    written.change(written.places[-1], b"\0\0\0\0")
    assert written.scan().bad == [(20, 20)]


def test_a_length_that_leads_astray_is_not_followed(tmp_path: Path, batches: list[Batch]) -> None:
    written = Written(tmp_path, batches, seal=False)
    written.change(written.places[4] + 8, (20_000).to_bytes(4, "little"))
    assert written.scan().bad == [(5, 5)]


def test_a_torn_tail_is_cut_off(tmp_path: Path, batches: list[Batch]) -> None:
    written = Written(tmp_path, batches, seal=False)
    written.change(written.places[-1] + 100, bytes(4000))
    found = written.scan()
    assert (found.last, found.bad, found.damaged, found.torn) == (19, [], [], True)


def test_a_damaged_footer_costs_no_record(tmp_path: Path, batches: list[Batch]) -> None:
    written = Written(tmp_path, batches, seal=True)
    for at in (SIZE - 1, SIZE - 60, SIZE - footers.size_of(20) + 3):
        written.change(at, b"\x55")
        found = written.scan()
        assert written.read(found) == batches
        assert found.bad == []


def test_a_damaged_header_costs_no_record(tmp_path: Path, batches: list[Batch]) -> None:
    written = Written(tmp_path, batches, seal=False)
    written.change(0, os.urandom(HEADER_BYTES))
    assert written.read(written.scan()) == batches


def test_under_another_name_all_of_it_is_void(tmp_path: Path, batches: list[Batch]) -> None:
    """The header still says the old nonce, as when its write was lost; the name decides."""
    for seal in (True, False):
        written = Written(tmp_path, batches, seal=seal)
        anew = SegmentName(2, 77, 1, 9, Nonce.draw())
        written.path.rename(tmp_path / str(anew))
        written.path, written.name = tmp_path / str(anew), anew
        found = written.scan()
        assert (found.last, found.bad, found.footer) == (0, [], None)


def test_old_records_do_not_follow_new_ones(tmp_path: Path, batches: list[Batch]) -> None:
    old = Written(tmp_path, batches, seal=True)
    anew = SegmentName(2, 77, 1, 9, Nonce.draw())
    old.path.rename(tmp_path / str(anew))
    new = Written(tmp_path, batches[:3], seal=False, name=anew)
    assert new.read(new.scan()) == batches[:3]


def test_a_file_of_a_later_version_is_left_alone(tmp_path: Path, batches: list[Batch]) -> None:
    written = Written(tmp_path, batches, seal=True)
    header = bytearray(header_of(NAME))
    header[8] = 2
    crc_at = HEADER.size - 4
    header[crc_at : crc_at + 4] = zlib.crc32(header[:crc_at]).to_bytes(4, "little")
    written.change(0, bytes(header))
    assert written.scan().newer


def test_what_the_disk_cannot_read_is_damaged(tmp_path: Path, batches: list[Batch]) -> None:
    class Bad(Disk):
        def pread(self, fd: int, count: int, offset: int) -> bytes:
            if offset <= 8192 < offset + count:
                raise OSError(5, "input/output error")
            return super().pread(fd, count, offset)

    written = Written(tmp_path, batches, seal=True)
    fd = os.open(written.path, os.O_RDONLY)
    found = scan.scan(Bad(), fd, NAME, SIZE)
    os.close(fd)
    assert found.unreadable_pages == 1
    hit = [
        batch.identity.seq
        for at, batch in zip(written.places, batches, strict=True)
        if at < 12288 and at + record.size_of(batch) > 8192
    ]
    assert found.bad == [(hit[0], hit[-1])]


def test_a_group_begins_in_a_new_page_where_that_saves_one(tmp_path: Path, batch_of) -> None:
    disk = Disk()
    fd = disk.open(tmp_path / "x", write=True, create=True)
    writer = Writer(disk, fd, NAME, SIZE)
    for group in range(4):
        for _ in range(5):
            writer.append(bytes(424))
        assert writer.written_bytes // 4096 == group
        writer.end_group()
    for _ in range(9):
        writer.append(bytes(104))
        writer.end_group()
    assert writer.written_bytes == 4 * 4096 + 9 * 104
    disk.close(fd)


def test_names_sort_by_age_and_are_read_back() -> None:
    assert parse(str(NAME)) == NAME
    assert str(NAME) < str(NAME._replace(first=2)) < str(NAME._replace(epoch=78)) < str(NAME._replace(generation=2))
    for other in ("lock", "x.spare", str(NAME) + ".new", str(NAME)[1:]):
        assert parse(other) is None
