"""`cncmon-agent buffer ls|verify|export` on folders that a real spool has written, whole, damaged and in use."""

import argparse
import base64
import errno
import itertools
import json
import random
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cncmon_agent.batch import Batch, Source, make
from cncmon_agent.buffer import footer as footers
from cncmon_agent.buffer import names
from cncmon_agent.buffer.disk import Disk
from cncmon_agent.buffer.spool import Spool
from cncmon_agent.buffer.store import SpoolSettings
from cncmon_agent.epochs import FILE as EPOCHS_FILE
from cncmon_agent.epochs import Epoch, EpochsFile
from cncmon_agent.inspect import command, export, jsonl, listing, reading, text, verify
from cncmon_agent.inspect.errors import InspectError
from cncmon_agent.inspect.folder import DataFolder
from cncmon_core import frames
from cncmon_core.identity import digest
from testkit.buffers import SEGMENT_BYTES, QuickDisk, move_to_cold, sync

OLD, NEW = 1111, 2**62 + 12345
MADE_MS = 1_700_000_000_000


def sample(number: int, filling: int = 600) -> bytes:
    return json.dumps(
        {
            "machine_id": f"mill-{number % 3}",
            "timestamp": "2026-03-01T06:00:00.123456+00:00",
            "temperature": number / 7,
            "spindle_speed": None,
            "extras": {"n": number, "x": random.Random(number).randbytes(filling // 2).hex()},
        },
        separators=(",", ":"),
    ).encode()


def batch(epoch: int, seq: int, parts: list[bytes] | None = None, kind: Any = "samples") -> Batch:
    parts = parts or [sample(seq * 10 + number) for number in range(3)]
    return make(epoch, seq, (seq - 1) * 3, kind, parts, 1, MADE_MS + seq * 1000)


class Edge:
    """An agent's data folder, and the spool that writes into it."""

    def __init__(self, path: Path, cold_dir: str = "") -> None:
        self.path = path
        self.cold_dir = cold_dir
        self.spool = self.open()

    def open(self) -> Spool:
        settings = SpoolSettings(
            segment_bytes=SEGMENT_BYTES, spool_bytes_max=8 << 20, reserve_bytes=0, cold_dir=self.cold_dir
        )
        return Spool(self.path / "spool", settings, QuickDisk())

    def fill(self, epoch: int, batches: list[Batch], *, cold: bool = False) -> None:
        log = self.spool.current.get(epoch) or self.spool.begin(epoch)
        for one in batches:
            assert log.append(one)
            sync(self.spool)
        if cold:
            move_to_cold(self.spool)

    def restart(self) -> None:
        self.spool.close()
        self.spool = self.open()

    def note(self, **changes: Any) -> None:
        content = EpochsFile(Epoch(NEW), [Epoch(OLD, last_seq=30, freed_seq=2)], "", "plant-1", "line-2")
        for name, value in changes.items():
            setattr(content, name, value)
        (self.path / EPOCHS_FILE).write_bytes(msgspec.json.encode(content))

    def files(self, epoch: int, *, sealed: bool | None = None) -> list[Path]:
        found = [info for info in self.spool.segments() if info.epoch == epoch]
        return [Path(info.path) for info in found if sealed is None or info.sealed is sealed]


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    """Two epochs: one whose sealed segments are cold, and the one that is being written."""
    made = Edge(tmp_path / "data")
    made.fill(OLD, [batch(OLD, seq) for seq in range(1, 31)], cold=True)
    made.fill(NEW, [batch(NEW, seq) for seq in range(1, 13)])
    made.note()
    yield made
    made.spool.close()


def run(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser(prog="cncmon-agent")
    command.add_parser(parser.add_subparsers(dest="command"))
    return command.run(parser.parse_args(["buffer", *map(str, arguments)]))


def exported(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    header, *rest = [json.loads(line) for line in path.read_bytes().splitlines()]
    return header, rest


def names_of(lines: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(line["epoch"], line["seq"]) for line in lines]


ALL = [*((OLD, seq) for seq in range(1, 31)), *((NEW, seq) for seq in range(1, 13))]


# ls


def test_ls_says_what_is_where(edge: Edge, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ls", "--data-dir", edge.path) == 0
    said = capsys.readouterr().out
    assert "site plant-1, edge line-2" in said
    assert "42 batches with 126 samples in 2 epochs" in said
    assert f"epoch {OLD}, in the database up to 2" in said
    assert f"epoch {NEW}  (the agent's last start)" in said
    assert "2023-11-14 22:13:21" in said
    assert run("ls", "--files", "--data-dir", edge.path) == 0
    said = capsys.readouterr().out
    for path in (*edge.files(OLD), *edge.files(NEW)):
        assert path.name in said


def test_ls_for_programs(edge: Edge, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ls", "--json", "--data-dir", edge.path) == 0
    found = json.loads(capsys.readouterr().out)
    old, new = found["epochs"]
    assert (old["epoch"], old["first_seq"], old["last_seq"], old["batches"], old["samples"]) == (OLD, 1, 30, 30, 90)
    assert (new["epoch"], new["first_seq"], new["last_seq"], new["batches"], new["samples"]) == (NEW, 1, 12, 12, 36)
    assert (old["oldest_created_ms"], old["newest_created_ms"]) == (MADE_MS + 1000, MADE_MS + 30_000)
    assert (old["current"], new["current"], old["delivered_seq"]) == (False, True, 2)
    assert old["missing"] == new["missing"] == found["unstamped"] == []
    infos = {info.path: info for info in edge.spool.segments()}
    files = [file for epoch in found["epochs"] for file in epoch["files"]]
    assert {file["path"] for file in files} == set(infos)
    assert {file["tier"] for file in files} == {"cold", "warm"}
    for file in files:
        info = infos[file["path"]]
        assert (file["first_seq"], file["last_seq"], file["tier"]) == (info.first, info.last, info.tier)
        assert (file["batches"], file["samples"]) == (info.batches, info.samples)
        assert file["state"] == ("sealed" if info.sealed else "open")
        assert file["disk_bytes"] == Path(file["path"]).stat().st_size


def test_a_segment_that_is_there_twice_counts_once(edge: Edge, capsys: pytest.CaptureFixture[str]) -> None:
    """A power cut between the copy to the cold tier and the end of the warm file leaves both."""
    kept = {path: path.read_bytes() for path in edge.files(NEW, sealed=True)}
    move_to_cold(edge.spool)
    for path, content in kept.items():
        path.write_bytes(content)
    assert run("ls", "--json", "--data-dir", edge.path) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["batches"], found["samples"]) == (42, 126)
    assert run("verify", "--data-dir", edge.path) == 0
    assert "42 batches with 126 samples are undamaged" in capsys.readouterr().out
    assert run("export", "--data-dir", edge.path, "--out", edge.path / "out") == 0
    assert names_of(exported(edge.path / "out")[1]) == ALL


def test_ls_shows_samples_without_time_apart(edge: Edge, capsys: pytest.CaptureFixture[str]) -> None:
    settings = SpoolSettings(segment_bytes=SEGMENT_BYTES, reserve_bytes=0)
    unstamped = Spool(edge.path / "unstamped", settings, QuickDisk())
    assert unstamped.begin(99).append(batch(99, 1))
    assert run("ls", "--data-dir", edge.path) == 0
    said = capsys.readouterr().out
    assert "samples without time, log 99" in said
    assert "42 batches" in said
    assert run("export", "--data-dir", edge.path, "--out", edge.path / "out") == 0
    assert "not exported: samples that wait for the time to be known" in capsys.readouterr().out
    unstamped.close()


@pytest.mark.parametrize("action", [["ls"], ["verify"], ["export", "--site", "a", "--edge", "b", "--out", "x"]])
def test_a_folder_that_is_none_of_an_agent_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], action: list[str]
) -> None:
    assert run(*action, "--data-dir", tmp_path / "none") == 2
    assert f"{tmp_path / 'none'} has no folder 'spool'" in capsys.readouterr().err
    (tmp_path / "spool").mkdir()
    assert run(*action, "--data-dir", tmp_path, "--cold-dir", tmp_path / "gone") == 2
    assert "gone is not a folder" in capsys.readouterr().err


def test_an_empty_spool(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spool").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run("ls", "--data-dir", tmp_path) == 0
    assert "0 batches with 0 samples in 0 epochs" in capsys.readouterr().out
    assert run("verify", "--data-dir", tmp_path) == 0
    assert run("export", "--data-dir", tmp_path, "--site", "a", "--edge", "b", "--out", "x") == 0
    assert exported(tmp_path / "x")[1] == []


def test_a_cold_tier_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cold = tmp_path / "stick"
    edge = Edge(tmp_path / "data", str(cold))
    edge.fill(OLD, [batch(OLD, seq) for seq in range(1, 31)], cold=True)
    assert any(cold.glob("*.seg"))
    assert run("ls", "--json", "--data-dir", edge.path, "--cold-dir", cold) == 0
    assert json.loads(capsys.readouterr().out)["batches"] == 30
    assert run("ls", "--json", "--data-dir", edge.path) == 0
    assert json.loads(capsys.readouterr().out)["batches"] < 30
    edge.spool.close()


# verify


def test_verify_reads_everything_beside_the_agent_that_holds_the_lock(
    edge: Edge, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in edge.path.rglob("*")}
    assert run("verify", "--data-dir", edge.path) == 0
    said = capsys.readouterr().out
    assert "42 batches with 126 samples are undamaged" in said
    assert "no damage found" in said
    assert {path: path.stat().st_mtime_ns for path in edge.path.rglob("*")} == before


def test_verify_of_a_copied_folder(edge: Edge, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(edge.path, tmp_path / "copy")
    shutil.rmtree(edge.path)
    assert run("verify", "--data-dir", tmp_path / "copy") == 0
    assert "42 batches" in capsys.readouterr().out


def place_of(path: Path, epoch: int, seq: int) -> int:
    """Return where the data of a batch begins in a file."""
    file = next(file for file in DataFolder(path.parent.parent).segments() if file.path == path)
    fd = Disk().open(path)
    try:
        footer = footers.read(Disk(), fd, file.bytes, file.name.nonce)
        assert footer is not None
        index = footers.read_index(Disk(), fd, footer, file.name.nonce)
        assert index is not None
        return footers.place(index[seq - footer.first]) + 90
    finally:
        Disk().close(fd)


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0x10
    path.write_bytes(raw)


def test_a_flipped_bit_is_found_named_and_costs_that_batch_only(edge: Edge, capsys: pytest.CaptureFixture[str]) -> None:
    path = edge.files(NEW, sealed=True)[0]
    at = place_of(path, NEW, 2)
    flip(path, at)
    assert run("verify", "--data-dir", edge.path) == 1
    said = capsys.readouterr().out
    assert f"DAMAGED: {path}: record 2: missing, or the CRC is wrong (bytes " in said
    assert "lost: seq 2" in said
    assert "SHA-256 or its index is not as sealed" in said
    assert "41 batches" in said
    assert run("ls", "--data-dir", edge.path) == 0
    assert run("export", "--data-dir", edge.path, "--out", edge.path / "out") == 1
    said = capsys.readouterr().out
    assert "not exported: seq 2" in said
    assert f"epoch {NEW}: not on disk, so not exported: seq 2" in said
    assert "41 batches, 123 samples, 0 events" in said
    assert "skipped as damaged: 1 batch" in said
    assert names_of(exported(edge.path / "out")[1]) == [name for name in ALL if name != (NEW, 2)]


def test_no_flipped_bit_of_a_sealed_segment_goes_unseen(edge: Edge) -> None:
    path = edge.files(NEW, sealed=True)[0]
    file = next(file for file in DataFolder(edge.path).segments() if file.path == path)
    raw = path.read_bytes()
    footer = footers.parse(raw[-footers.TRAILER.size :], file.name.nonce)
    assert footer is not None
    held = set(range(footer.first, footer.last + 1))
    index = range(footer.index_at, footer.index_at + len(held) * footers.ENTRY_BYTES)
    for at in range(0, SEGMENT_BYTES, 61):
        flip(path, at)
        reader = reading.Reader(Disk(), file)
        out = [content.batch for content in reader.contents()]
        assert all(one == batch(NEW, one.identity.seq) for one in out)
        lost = {seq for damage in reader.damage for seq in range(damage.first, damage.last + 1)}
        assert {one.identity.seq for one in out} | lost == held
        assert reader.damage or (at >= footer.data_bytes and at not in index)
        path.write_bytes(raw)


def test_a_batch_that_is_not_what_its_hash_says(edge: Edge, capsys: pytest.CaptureFixture[str]) -> None:
    """The CRC is right: it was damaged before it was written."""
    other = batch(NEW, 13, [sample(1)])
    wrong = msgspec.structs.replace(batch(NEW, 13), data=other.data)
    too_few = make(NEW, 14, 0, "samples", [sample(1)], 1, 0)
    too_few = msgspec.structs.replace(too_few, identity=msgspec.structs.replace(too_few.identity, frames=2))
    no_zstd = msgspec.structs.replace(batch(NEW, 15), data=b"no zstd")
    edge.fill(NEW, [wrong, too_few, no_zstd, batch(NEW, 16)])
    assert run("verify", "--data-dir", edge.path) == 1
    said = capsys.readouterr().out
    assert "record 13 (byte " in said
    assert "SHA-256 is not the Cncmon-Sha256 header's; lost: seq 13" in said
    assert "it has not the 2 frames that it says it has; lost: seq 14" in said
    assert "not a zstd frame" in said
    assert "lost: seq 15" in said
    assert "43 batches" in said
    assert "3 problems found" in said
    assert run("verify", "--json", "--data-dir", edge.path) == 1
    assert [problem["lost"] for problem in json.loads(capsys.readouterr().out)["problems"]] == [
        [[13, 13]],
        [[14, 14]],
        [[15, 15]],
    ]


def test_half_a_record_at_the_end_is_being_written_and_no_damage(
    edge: Edge, capsys: pytest.CaptureFixture[str]
) -> None:
    path = edge.files(NEW, sealed=False)[0]
    raw = bytearray(path.read_bytes())
    last = raw.index(batch(NEW, 12).data)
    raw[last + 100 : last + len(batch(NEW, 12).data)] = bytes(len(batch(NEW, 12).data) - 100)
    path.write_bytes(raw)
    assert run("verify", "--data-dir", edge.path) == 0
    said = capsys.readouterr().out
    assert f"note: {path.name}: ends in half a record" in said
    assert "41 batches" in said


def test_a_segment_of_a_later_version_is_left_alone(edge: Edge, capsys: pytest.CaptureFixture[str]) -> None:
    path = edge.files(NEW, sealed=False)[0]
    name = names.parse(path.name)
    assert name is not None
    raw = bytearray(path.read_bytes())
    header = bytearray(names.header_of(name))
    fields = list(names.HEADER.unpack_from(header))
    fields[1] = names.VERSION + 1
    packed = names.HEADER.pack(*fields)
    packed = packed[:-4] + zlib.crc32(packed[:-4]).to_bytes(4, "little")
    raw[: len(packed)] = packed
    path.write_bytes(raw)
    assert run("verify", "--data-dir", edge.path) == 1
    assert "written by a later version" in capsys.readouterr().out
    assert run("ls", "--data-dir", edge.path) == 0
    assert "of a later version" in capsys.readouterr().out


class BadDisk(Disk):
    """A disk that can't read some bytes of some files, or can't open them."""

    def __init__(self, path: Path, first: int, last: int) -> None:
        self.path, self.first, self.last = path, first, last
        self.opened: dict[int, Path] = {}
        self.closed: list[int] = []

    def open(self, path: Path, *, write: bool = False, create: bool = False) -> int:
        if path == self.path and self.first < 0:
            raise OSError(errno.EIO, "Input/output error")
        fd = super().open(path, write=write, create=create)
        self.opened[fd] = path
        return fd

    def close(self, fd: int) -> None:
        self.closed.append(fd)
        super().close(fd)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        if self.opened[fd] == self.path and offset <= self.last and offset + count > self.first:
            raise OSError(errno.EIO, "Input/output error")
        return super().pread(fd, count, offset)


def test_a_page_that_the_disk_cannot_read_costs_what_is_on_it(edge: Edge, tmp_path: Path) -> None:
    path = edge.files(NEW, sealed=True)[0]
    disk = BadDisk(path, 100, 4095)
    verdict = verify.check(DataFolder(edge.path), disk)
    assert "the disk can't read 1 of its pages of 4 KiB" in [problem.what for problem in verdict.problems]
    lost = [seq for problem in verdict.problems for low, high in problem.lost for seq in range(low, high + 1)]
    assert lost[0] == 1
    assert verdict.batches == 42 - len(lost)
    summary = export.write(DataFolder(edge.path), disk, export.Wanted("a", "b"), tmp_path / "x", jsonl.JsonLines)
    assert names_of(exported(tmp_path / "x")[1]) == [name for name in ALL if name not in {(NEW, seq) for seq in lost}]
    assert any("the disk can't read" in line for line in export.lines(summary))
    assert set(disk.closed) == set(disk.opened)


def test_a_file_that_cannot_be_opened_is_named(edge: Edge) -> None:
    path = edge.files(NEW, sealed=True)[0]
    verdict = verify.check(DataFolder(edge.path), BadDisk(path, -1, -1))
    assert [(problem.path, problem.what) for problem in verdict.problems] == [
        (str(path), "can't be opened: Input/output error")
    ]
    found = listing.look(DataFolder(edge.path), BadDisk(path, -1, -1))
    assert "can't be opened: Input/output error" in [file.state for one in found.epochs for file in one.files]


def test_ls_goes_around_what_the_disk_cannot_read(edge: Edge) -> None:
    path = edge.files(NEW, sealed=True)[0]
    found = listing.look(DataFolder(edge.path), BadDisk(path, SEGMENT_BYTES - 4096, SEGMENT_BYTES))
    assert "damaged" in [file.state for one in found.epochs for file in one.files if file.path == str(path)]
    assert found.batches == 42


# beside a running agent


class Meanwhile(Disk):
    """The agent does something while the command is at its nth opening of a file."""

    def __init__(self, at: int, do: Callable[[], None]) -> None:
        self._at, self._do = at, do
        self._opened = 0

    def open(self, path: Path, *, write: bool = False, create: bool = False) -> int:
        self._opened += 1
        if self._opened == self._at:
            self._do()
        return super().open(path, write=write, create=create)


def test_segments_that_move_to_the_cold_tier_meanwhile_are_exported(edge: Edge, tmp_path: Path) -> None:
    first_warm = len(edge.files(OLD)) + 1
    disk = Meanwhile(first_warm, lambda: move_to_cold(edge.spool))
    summary = export.write(DataFolder(edge.path), disk, export.Wanted("a", "b"), tmp_path / "x", jsonl.JsonLines)
    assert sorted(names_of(exported(tmp_path / "x")[1])) == sorted(ALL)
    assert summary.damage == []
    assert summary.missing == {}


def test_segments_that_are_freed_and_used_anew_meanwhile_are_no_damage(edge: Edge) -> None:
    log = edge.spool.current[NEW]

    def use_anew() -> None:
        log.free(12)
        edge.fill(NEW, [batch(NEW, seq) for seq in range(13, 30)])

    first_warm = len(edge.files(OLD)) + 1
    verdict = verify.check(DataFolder(edge.path), Meanwhile(first_warm + 1, use_anew))
    assert verdict.problems == []
    assert any("let go of it meanwhile" in note for note in verdict.notes)


def test_a_file_used_anew_while_it_is_read_is_no_damage(edge: Edge) -> None:
    path = edge.files(NEW, sealed=True)[0]
    file = next(file for file in DataFolder(edge.path).segments() if file.path == path)
    reader = reading.Reader(Disk(), file)
    contents = reader.contents()
    next(contents)
    edge.spool.current[NEW].free(12)
    edge.fill(NEW, [batch(NEW, seq) for seq in range(13, 30)])
    assert not path.exists()
    assert all(content.batch == batch(NEW, content.batch.identity.seq) for content in contents)
    assert reader.gone


# export


def test_an_export_has_every_batch_once_with_its_identity_and_frames(edge: Edge, tmp_path: Path, capsys) -> None:
    odd = [
        b'{"b":1.50,  "a":"\xc3\xa4\\u00e4", "n":1e400000}',
        b'{"n":12345678901234567890123456789,"z":-0.0}',
        b'{"deep":' + b"[" * 50 + b"]" * 50 + b"}",
    ]
    event = b'{"type":"gap","timestamp":"2026-03-01T06:00:00Z"}'
    edge.fill(NEW, [batch(NEW, 13, odd), batch(NEW, 14, [event], kind="events")])
    out = tmp_path / "out.jsonl"
    assert run("export", "--data-dir", edge.path, "--out", out) == 0
    assert "44 batches, 129 samples, 1 event" in capsys.readouterr().out
    header, lines = exported(out)
    assert (header["cncmon_export"], header["site"], header["edge"]) == (1, "plant-1", "line-2")
    assert [one["epoch"] for one in header["epochs"]] == [OLD, NEW]
    assert names_of(lines) == [*ALL, (NEW, 13), (NEW, 14)]
    for line, raw in zip(lines, out.read_bytes().splitlines()[1:], strict=True):
        assert (line["site"], line["edge"]) == ("plant-1", "line-2")
        parts = _parts(raw) if "frames" in line else [base64.b64decode(part) for part in line["frames_base64"]]
        assert digest(frames.join(parts)) == line["sha256"]
        assert line["created_ms"] == MADE_MS + line["seq"] * 1000
        assert line["base"] == (line["seq"] - 1) * 3
    assert lines[-1]["kind"] == "events"


class _Line(msgspec.Struct):
    frames: list[msgspec.Raw]


def _parts(raw: bytes) -> list[bytes]:
    return [bytes(part) for part in msgspec.json.decode(raw, type=_Line).frames]


ODD_FRAMES = [
    b"",
    b"no json",
    b"\x00\xff\xfe",
    b'{"a":1}\n',
    b'{"a":\n1}',
    b' {"a":1}',
    b'{"a":1} ',
    b'{"a":1}{"b":2}',
    b'{"a":"\xff"}',
    b'{"a":NaN}',
    b"[1]",
    b"null",
    b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}",
    b'{"a":1}\r',
]


@pytest.mark.parametrize("odd", ODD_FRAMES, ids=[repr(frame[:12]) for frame in ODD_FRAMES])
def test_a_frame_that_cannot_stand_in_a_line_comes_in_base64(tmp_path: Path, odd: bytes) -> None:
    edge = Edge(tmp_path / "data")
    edge.fill(NEW, [batch(NEW, 1, [b'{"a":1}', odd]), batch(NEW, 2)])
    edge.spool.close()
    out = tmp_path / "out"
    assert run("export", "--data-dir", edge.path, "--site", "a", "--edge", "b", "--out", out) == 0
    _, lines = exported(out)
    assert [base64.b64decode(part) for part in lines[0]["frames_base64"]] == [b'{"a":1}', odd]
    assert "frames" not in lines[0]
    assert len(lines[1]["frames"]) == 3


def test_what_recompression_left_alone_is_exported_as_it_was(edge: Edge, tmp_path: Path) -> None:
    assert run("export", "--data-dir", edge.path, "--epoch", str(OLD), "--out", tmp_path / "x") == 0
    lines = (tmp_path / "x").read_bytes().splitlines()[1:]
    assert [_parts(line) for line in lines] == [
        frames.split(frames.decompress(batch(OLD, seq).data))[0] for seq in range(1, 31)
    ]


def test_an_export_of_one_epoch_or_of_late(edge: Edge, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", "--data-dir", edge.path, "--epoch", str(NEW), "--out", tmp_path / "a") == 0
    assert names_of(exported(tmp_path / "a")[1]) == [(NEW, seq) for seq in range(1, 13)]
    since = datetime.fromtimestamp(MADE_MS / 1000 + 10, UTC).isoformat()
    assert run("export", "--data-dir", edge.path, "--since", since, "--out", tmp_path / "b") == 0
    assert names_of(exported(tmp_path / "b")[1]) == [name for name in ALL if name[1] >= 10]
    assert run("export", "--data-dir", edge.path, "--since", "1h", "--out", tmp_path / "c") == 0
    assert exported(tmp_path / "c")[1] == []
    capsys.readouterr()
    assert run("export", "--data-dir", edge.path, "--epoch", "5", "--out", tmp_path / "d") == 2
    assert "nothing of epoch 5 is on this disk" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("said", "options", "environ", "expected"),
    [
        (("plant-1", "line-2"), [], {"SITE": "x", "EDGE": "y"}, ("plant-1", "line-2")),
        (("plant-1", "line-2"), ["--site", "s", "--edge", "e"], {}, ("s", "e")),
        (("", ""), [], {"SITE": "x", "EDGE": "y"}, ("x", "y")),
        (("", ""), ["--edge", "e"], {"SITE": "x"}, ("x", "e")),
        (None, [], {"SITE": "x", "EDGE": "y"}, ("x", "y")),
        (None, [], {"SITE": "x"}, "does not say which edge"),
        (("", ""), [], {}, "does not say which site"),
        (None, ["--site", "Not a name", "--edge", "e"], {}, "site 'Not a name'"),
    ],
)
def test_whose_export_it_is(edge: Edge, tmp_path: Path, monkeypatch, capsys, said, options, environ, expected) -> None:
    for name in ("SITE", "EDGE"):
        monkeypatch.delenv(f"CNCMON_AGENT_{name}", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(f"CNCMON_AGENT_{name}", value)
    if said is None:
        (edge.path / EPOCHS_FILE).write_bytes(b"damaged")
    else:
        edge.note(site=said[0], edge=said[1])
    status = run("export", "--data-dir", edge.path, "--out", tmp_path / "x", *options)
    if isinstance(expected, str):
        assert status == 2
        assert expected in capsys.readouterr().err
        assert not (tmp_path / "x").exists()
    else:
        assert status == 0
        header, _ = exported(tmp_path / "x")
        assert (header["site"], header["edge"]) == expected


def test_an_export_overwrites_nothing_unless_told(edge: Edge, tmp_path: Path, capsys) -> None:
    out = tmp_path / "x"
    out.write_text("precious")
    assert run("export", "--data-dir", edge.path, "--out", out) == 2
    assert "exists: give another name, or --overwrite" in capsys.readouterr().err
    assert out.read_text() == "precious"
    assert run("export", "--data-dir", edge.path, "--out", out, "--overwrite") == 0
    assert len(exported(out)[1]) == 42


def test_an_export_into_no_folder(edge: Edge, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", "--data-dir", edge.path, "--out", tmp_path / "none" / "x") == 2
    assert "can't be written: No such file or directory" in capsys.readouterr().err


def test_a_stick_that_fills_up_leaves_no_half_export(edge: Edge, tmp_path: Path) -> None:
    class Full(jsonl.JsonLines):
        written = 0

        def add(self, content: reading.Content) -> None:
            self.written += 1
            if self.written > 20:
                raise OSError(errno.ENOSPC, "No space left on device")
            super().add(content)

    (tmp_path / "stick").mkdir()
    with pytest.raises(InspectError, match="x can't be written: No space left on device"):
        export.write(DataFolder(edge.path), Disk(), export.Wanted("a", "b"), tmp_path / "stick" / "x", Full)
    assert list((tmp_path / "stick").iterdir()) == []


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_stick_that_fails_at_the_end_leaves_no_half_export(edge: Edge, tmp_path: Path, monkeypatch, failing) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "stick").mkdir()
    monkeypatch.setattr(*((export.os, "fsync") if failing == "fsync" else (Path, "replace")), fail)
    with pytest.raises(InspectError, match="Input/output error"):
        export.write(DataFolder(edge.path), Disk(), export.Wanted("a", "b"), tmp_path / "stick" / "x", jsonl.JsonLines)
    assert list((tmp_path / "stick").iterdir()) == []


# Parquet


def test_parquet_has_every_frame_as_it_is_and_a_sample_s_fields(edge: Edge, tmp_path: Path) -> None:
    from pyarrow import parquet

    event = b'{"type":"note","timestamp":"2026-03-01T06:00:00Z","machine_id":"mill-1"}'
    edge.fill(NEW, [batch(NEW, 13, [event], kind="events"), batch(NEW, 14, [b"no json", sample(3)])])
    out = tmp_path / "out.parquet"
    assert run("export", "--data-dir", edge.path, "--format", "parquet", "--out", out) == 0
    table = parquet.read_table(out)
    assert json.loads(table.schema.metadata[b"cncmon"])["cncmon_export"] == 1
    rows = table.to_pylist()
    assert len(rows) == 42 * 3 + 3
    batches = itertools.groupby(rows, key=lambda row: (row["epoch"], row["seq"], row["sha256"], row["base"]))
    for (epoch, seq, sha256, base), group in batches:
        held = list(group)
        assert digest(frames.join([row["raw"] for row in held])) == sha256
        assert [row["frame"] for row in held] == list(range(len(held)))
        assert base == (seq - 1) * 3
        assert epoch in (OLD, NEW)
    first, note, broken = rows[0], rows[-3], rows[-2]
    assert (first["site"], first["edge"], first["kind"]) == ("plant-1", "line-2", "samples")
    assert first["created"] == datetime.fromtimestamp(MADE_MS / 1000 + 1, UTC)
    assert (first["machine_id"], first["temperature"], first["spindle_speed"]) == ("mill-1", 10 / 7, None)
    assert first["timestamp"] == datetime(2026, 3, 1, 6, 0, 0, 123456, UTC)
    assert (note["kind"], note["machine_id"], note["timestamp"]) == (
        "events",
        "mill-1",
        datetime(2026, 3, 1, 6, tzinfo=UTC),
    )
    assert (broken["machine_id"], broken["timestamp"], broken["raw"]) == (None, None, b"no json")


def test_parquet_of_nothing_is_an_empty_table(edge: Edge, tmp_path: Path) -> None:
    from pyarrow import parquet

    out = tmp_path / "x"
    assert run("export", "--data-dir", edge.path, "--format", "parquet", "--since", "1s", "--out", out) == 0
    assert parquet.read_table(out).num_rows == 0


def test_without_its_library_parquet_says_how_to_install_it(edge: Edge, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "stick").mkdir()
    out = tmp_path / "stick" / "x"
    assert run("export", "--data-dir", edge.path, "--format", "parquet", "--out", out) == 2
    assert "pip install 'cncmon-agent[parquet]'" in capsys.readouterr().err
    assert list((tmp_path / "stick").iterdir()) == []


# text


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("2026-03-01", "2026-03-01T00:00:00+00:00"),
        ("2026-03-01T06:00", "2026-03-01T06:00:00+00:00"),
        ("2026-03-01T06:00:00+02:00", "2026-03-01T04:00:00+00:00"),
        ("2026-03-01T06:00:00Z", "2026-03-01T06:00:00+00:00"),
        ("90m", "2026-03-01T10:30:00+00:00"),
        ("1.5h", "2026-03-01T10:30:00+00:00"),
        ("7d", "2026-02-22T12:00:00+00:00"),
    ],
)
def test_times(said: str, expected: str) -> None:
    assert text.iso(text.parse_time(said, datetime(2026, 3, 1, 12, tzinfo=UTC))) == expected


@pytest.mark.parametrize("said", ["", "yesterday", "h", "-3h", "5", "1e3h", "2026-13-01", "...h"])
def test_what_is_no_time_is_refused(said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="is no time: say 2026-03-01"):
        text.parse_time(said, datetime.now(UTC))
    with pytest.raises(SystemExit):
        run("export", "--out", "x", f"--since={said}")
    assert "is no time" in capsys.readouterr().err


def test_a_time_out_of_this_world_is_still_shown() -> None:
    assert text.time((1 << 63) - 1).startswith(str((1 << 63) - 1)[:10])


def test_a_source_does_not_change_an_export(tmp_path: Path) -> None:
    edge = Edge(tmp_path / "data")
    edge.fill(NEW, [msgspec.structs.replace(batch(NEW, 1), source=Source(9, 1, 3))])
    edge.spool.close()
    assert run("export", "--data-dir", edge.path, "--site", "a", "--edge", "b", "--out", tmp_path / "x") == 0
    assert exported(tmp_path / "x")[1][0]["sha256"] == batch(NEW, 1).identity.sha256
