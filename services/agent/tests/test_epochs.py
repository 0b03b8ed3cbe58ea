"""Epochs on disk: rule A1 of the delivery protocol."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.json import encode

from cncmon_agent.epochs import FILE, Epoch, Epochs, EpochsFile
from cncmon_core.identity import EPOCH_MAX


def on_disk(folder: Path) -> dict:
    found: dict = json.loads((folder / FILE).read_bytes())
    return found


def test_delivery_a1_every_start_draws_a_new_random_epoch(tmp_path: Path) -> None:
    drawn = [Epochs(tmp_path).current.epoch for _ in range(50)]
    assert len(set(drawn)) == 50
    assert all(1 <= epoch <= EPOCH_MAX for epoch in drawn)
    # Of 63 random bits: that none of 50 is in the upper half happens once in 10^15.
    assert max(drawn) > 1 << 62


def test_delivery_a1_the_epoch_is_on_disk_before_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def recorded_fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        content = json.loads(path.read_bytes())["current"]["epoch"] if path.is_file() else None
        done.append(f"sync {path.name} {content}")
        fsync(descriptor)

    def recorded_replace(self: Path, target: Path) -> Path:
        done.append(f"rename {self.name} {target.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    folder = tmp_path / "data"
    epochs = Epochs(folder)
    assert done == [
        f"sync epochs.json.new {epochs.current.epoch}",
        "rename epochs.json.new epochs.json",
        "sync data None",
    ]
    assert on_disk(folder)["current"]["epoch"] == epochs.current.epoch


def test_delivery_a1_earlier_epochs_stay_open_until_they_are_confirmed(tmp_path: Path) -> None:
    first = Epochs(tmp_path)
    first.current.acked_seq, first.current.acked_samples, first.current.freed_seq = 7, 70, 5
    first.save()
    second = Epochs(tmp_path)
    was = Epoch(first.current.epoch, acked_seq=7, acked_samples=70, freed_seq=5)
    assert second.open == [was]
    third = Epochs(tmp_path)
    assert third.open == [was, Epoch(second.current.epoch)]
    third.forget(first.current.epoch)
    third.forget(12345)
    assert [epoch.epoch for epoch in third.open] == [second.current.epoch]
    # Not saved yet: a crash here asks again.
    assert len(Epochs(tmp_path).open) == 3
    third.save()
    assert [epoch.epoch for epoch in Epochs(tmp_path).open] == [second.current.epoch, third.current.epoch]


def test_delivery_a1_the_current_epoch_can_not_be_closed(tmp_path: Path) -> None:
    epochs = Epochs(tmp_path)
    epochs.forget(epochs.current.epoch)
    epochs.save()
    assert on_disk(tmp_path)["current"]["epoch"] == epochs.current.epoch


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\0" * 100,
        b"\xff\xfe",
        b"null",
        b"[]",
        b'{"open":[]}',
        b'{"current":{"epoch":"x"}}',
        b'{"current":{"epoch":0}}',
        b'{"current":{"epoch":-5}}',
        b'{"current":{"epoch":9223372036854775808}}',
        b'{"current":{"epoch":5,"acked_seq":-1}}',
        b'{"current":{"epoch":5},"x":' + b"[" * 100_000,
        b'{"current":{"epoch":5},"open":"\xff"}',
    ],
    ids=lambda content: content[:30],
)
def test_delivery_a1_a_damaged_file_costs_the_closings_and_not_the_start(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    epochs = Epochs(tmp_path)
    assert epochs.unreadable
    assert epochs.open == []
    assert on_disk(tmp_path)["current"]["epoch"] == epochs.current.epoch
    assert not Epochs(tmp_path).unreadable


@given(st.data())
def test_delivery_a1_no_damage_stops_the_start(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    content = bytearray(
        encode(EpochsFile(Epoch(1 << 60, 9, 90, 7), [Epoch(5), Epoch(EPOCH_MAX, 3, 30, 3)], "made", "s", "e"))
    )
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=3))
        content = content or bytearray(b" ")
    (folder / FILE).write_bytes(content)
    epochs = Epochs(folder)
    assert all(1 <= epoch.epoch <= EPOCH_MAX for epoch in epochs.open)


def test_the_first_start_makes_the_folder(tmp_path: Path) -> None:
    epochs = Epochs(tmp_path / "a" / "b")
    assert not epochs.unreadable
    assert epochs.open == []


def test_delivery_a1_without_a_writable_folder_there_is_no_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Epochs(tmp_path / "file")
    with pytest.raises(OSError, match="proc"):
        Epochs(Path("/proc/cncmon"))


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_delivery_a1_a_crash_while_saving_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    epochs = Epochs(tmp_path)
    before = (tmp_path / FILE).read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(*((os, "fsync", fail) if failing == "fsync" else (Path, "replace", fail)))
        epochs.current.acked_seq = 9
        with pytest.raises(OSError, match="No space left"):
            epochs.save()
        with pytest.raises(OSError, match="No space left"):
            Epochs(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before
    epochs.save()
    assert on_disk(tmp_path)["current"]["acked_seq"] == 9


def test_nothing_is_written_where_nothing_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs = Epochs(tmp_path)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    epochs.save()
    assert synced == []
    epochs.current.freed_seq = 1
    epochs.save()
    assert len(synced) == 2


def test_delivery_a1_a_loop_of_crashes_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cncmon_agent.epochs.OPEN_MAX", 5)
    begun = [Epochs(tmp_path).current.epoch for _ in range(9)]
    assert [epoch.epoch for epoch in Epochs(tmp_path).open] == begun[-5:]
