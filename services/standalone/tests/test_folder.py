import os
import subprocess
import sys
from pathlib import Path

import pytest

from cncmon_standalone import state
from cncmon_standalone.errors import InUseError, NotRunningError, UnusableError
from cncmon_standalone.folder import DataFolder, default_folder
from cncmon_standalone.state import ProcessState, RunState

HOLD = """
import sys, time
from pathlib import Path
from cncmon_standalone.folder import DataFolder
folder = DataFolder(Path(sys.argv[1])); folder.make()
with folder.locked():
    print("held", flush=True)
    time.sleep(60)
"""


def run_state(folder: DataFolder, pid: int) -> RunState:
    process = ProcessState("api", "api", pid, "running", 0, 0.0, str(folder.logs / "api.log"), 8480)
    return RunState(
        pid=pid,
        command="up",
        version="0",
        started=0.0,
        data=str(folder.root),
        api_url="http://127.0.0.1:8480",
        nats_url="nats://127.0.0.1:8481",
        database_dsn="postgresql://cncmon:secret@127.0.0.1:8482/cncmon",
        processes=[process],
    )


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    made = DataFolder(tmp_path / "data")
    made.make()
    return made


def test_a_second_supervisor_is_refused_with_the_pid_of_the_first(folder: DataFolder) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder.root)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        first.stdout.readline()
        assert folder.holder() == first.pid
        with (
            pytest.raises(InUseError, match=rf"already, pid {first.pid}\. Stop it with: cncmon down --data"),
            folder.locked(),
        ):
            pass
        first.kill()
        first.wait()
    assert folder.holder() is None
    with folder.locked():
        assert folder.holder() == os.getpid()


def test_a_look_at_the_lock_does_not_refuse_a_start(folder: DataFolder) -> None:
    watching = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import sys\nfrom pathlib import Path\nfrom cncmon_standalone.folder import DataFolder\n"
            "f = DataFolder(Path(sys.argv[1]))\nprint(flush=True)\nwhile True: f.holder()",
            str(folder.root),
        ],
        stdout=subprocess.PIPE,
    )
    assert watching.stdout is not None
    try:
        watching.stdout.readline()
        for _ in range(50):
            with folder.locked():
                pass
    finally:
        watching.kill()
        watching.wait()
        watching.stdout.close()


def test_what_a_dead_supervisor_left_counts_for_nothing(folder: DataFolder) -> None:
    state.write(folder, run_state(folder, pid=1))
    assert state.read(folder) is None
    with pytest.raises(NotRunningError, match="does not run on"):
        state.find(folder.root)


def test_the_state_of_another_pid_than_the_holder_is_not_believed(folder: DataFolder) -> None:
    with folder.locked():
        state.write(folder, run_state(folder, pid=1))
        assert state.read(folder) is None
        state.write(folder, run_state(folder, pid=os.getpid()))
        found = state.read(folder)
        assert found is not None
        assert found.ports == {8480, 8481, 8482}


def test_the_state_file_is_for_its_owner_only(folder: DataFolder) -> None:
    state.write(folder, run_state(folder, pid=1))
    assert folder.state_file.stat().st_mode & 0o077 == 0


def test_a_running_demo_is_found_without_being_told_where(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "none"))
    monkeypatch.setattr(state, "default_folder", lambda: tmp_path / "none")
    with pytest.raises(NotRunningError, match="cncmon demo"):
        state.find(None)
    with folder.locked(), state.announced(folder):
        state.write(folder, run_state(folder, pid=os.getpid()))
        assert state.find(None).data == str(folder.root)
    with pytest.raises(NotRunningError):
        state.find(None)


def test_notes_of_dead_demos_are_cleared_away(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    old = tmp_path / "state" / "cncmon" / "running" / "1"
    old.parent.mkdir(parents=True)
    old.write_text(str(tmp_path / "gone"))
    with folder.locked(), state.announced(folder):
        assert [note.name for note in old.parent.iterdir()] == [str(os.getpid())]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnusableError, match="Choose another with --data DIR"):
        DataFolder(tmp_path / "file" / "data").make()


def test_the_default_folder_is_one_that_postgresql_can_enter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reachable: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(reachable))
    assert default_folder() == reachable / "cncmon"
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_DATA_HOME", str(closed))
    assert default_folder() == (Path("/var/lib/cncmon") if os.geteuid() == 0 else closed / "cncmon")
