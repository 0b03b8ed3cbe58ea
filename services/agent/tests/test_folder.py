"""The data folder: made, locked, tried; and what is said where that fails."""

from pathlib import Path

import pytest

from cncmon_agent.errors import FolderError, FolderInUseError
from cncmon_agent.folder import DataFolder
from robustness.faults.small_disk import fill_up, small_disk


def test_it_is_made_and_nothing_is_left_of_the_trial(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    folder = DataFolder(path)
    assert [entry.name for entry in path.iterdir()] == ["lock"]
    folder.close()


def test_what_lies_in_it_stays(tmp_path: Path) -> None:
    (tmp_path / "epochs.json").write_text("{}")
    DataFolder(tmp_path).close()
    assert (tmp_path / "epochs.json").read_text() == "{}"


def test_two_never_share_it_and_the_next_may_have_it(tmp_path: Path) -> None:
    first = DataFolder(tmp_path)
    with pytest.raises(FolderInUseError) as refused:
        DataFolder(tmp_path)
    assert str(refused.value) == (
        f"another agent runs on data folder {tmp_path}: give each its own (CNCMON_AGENT_DATA_DIR)"
    )
    first.close()
    DataFolder(tmp_path).close()


def test_who_is_refused_keeps_no_file_open(tmp_path: Path) -> None:
    first = DataFolder(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(FolderInUseError):
            DataFolder(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    first.close()


@pytest.mark.parametrize(
    ("where", "why"),
    [("file", "a file has that name"), ("file/below", "Not a directory"), ("locked", "Is a directory")],
)
def test_what_is_no_folder_is_named(tmp_path: Path, where: str, why: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "locked" / "lock").mkdir(parents=True)
    with pytest.raises(FolderError) as refused:
        DataFolder(tmp_path / where)
    assert str(refused.value) == f"data folder {tmp_path / where} can't be used: {why}"
    assert not isinstance(refused.value, FolderInUseError)


@pytest.mark.needs("root")
def test_a_full_disk_is_found_at_once_and_the_lock_is_given_back(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 256 << 10) as disk:
        fill_up(disk / "others")
        with pytest.raises(FolderError, match=r"can't be used: No space left on device$"):
            DataFolder(disk / "agent")
        assert [entry.name for entry in (disk / "agent").iterdir()] == ["lock"]
        (disk / "others").unlink()
        DataFolder(disk / "agent").close()
