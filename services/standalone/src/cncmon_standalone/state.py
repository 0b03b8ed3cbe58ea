"""What a running supervisor says of itself, for `status`, `doctor`, `dlq` and `down` in other terminals."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from cncmon_standalone.errors import NotRunningError, UnusableError
from cncmon_standalone.folder import DataFolder, default_folder


class ProcessState(msgspec.Struct, frozen=True):
    """One part. `since`: Unix time of its present state."""

    name: str
    group: str
    pid: int | None
    state: str
    restarts: int
    since: float
    log: str
    monitor_port: int | None = None


class RunState(msgspec.Struct, frozen=True):
    """A running `up` or `demo`. The file holds the database password: it is for its owner only."""

    pid: int
    command: str
    version: str
    started: float
    data: str
    api_url: str
    nats_url: str
    database_dsn: str
    processes: list[ProcessState]
    simulator_url: str | None = None

    @property
    def ports(self) -> set[int]:
        """The ports of page, NATS and PostgreSQL."""
        urls = (self.api_url, self.nats_url, self.database_dsn)
        return {port for url in urls if (port := urlsplit(url).port) is not None}

    @property
    def folder(self) -> DataFolder:
        """The data folder it runs on."""
        return DataFolder(Path(self.data))


def write(folder: DataFolder, state: RunState) -> None:
    """Replace the state file as a whole: a reader sees the old or the new one, never a half."""
    new = folder.state_file.with_suffix(".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(state))
    new.replace(folder.state_file)


def read(folder: DataFolder) -> RunState | None:
    """Return the state of the supervisor that runs on a folder; None when none does, whatever a dead one left."""
    holder = folder.holder()
    if holder is None:
        return None
    try:
        state = msgspec.json.decode(folder.state_file.read_bytes(), type=RunState)
    except (OSError, msgspec.MsgspecError):
        return None
    return state if state.pid == holder else None


def find(data: Path | None) -> RunState:
    """Return what runs on a folder; without one: on the default folder, else the demo that was started last.

    Raises:
        NotRunningError: nothing does.
    """
    if data is not None:
        state = _read_patiently(DataFolder(data.absolute()))
        if state is None:
            raise NotRunningError(f"cncmon does not run on {data}. Start it with: cncmon up -f FILE --data {data}")
        return state
    default = default_folder()
    for folder in (default, *_announced()):
        state = _read_patiently(DataFolder(folder))
        if state is not None:
            return state
    raise NotRunningError(
        f"cncmon does not run (looked at {default} and for this user's demos). "
        "Start it with: cncmon demo, or cncmon up -f FILE"
    )


def _read_patiently(folder: DataFolder) -> RunState | None:
    # One that has just taken the lock writes its first state a moment later.
    for _ in range(20):
        state = read(folder)
        if state is not None or folder.holder() is None:
            return state
        time.sleep(0.05)
    return None


@contextlib.contextmanager
def announced(folder: DataFolder) -> Iterator[None]:
    """Leave a note of where a supervisor runs, so that `cncmon status` finds a demo without being told its folder."""
    note = _notes() / str(os.getpid())
    # A home that can't be written to costs the convenience only.
    with contextlib.suppress(OSError, UnusableError):
        note.parent.mkdir(parents=True, exist_ok=True)
        for old in note.parent.iterdir():
            if DataFolder(Path(old.read_text(encoding="utf-8"))).holder() is None:
                old.unlink()
        note.write_text(str(folder.root), encoding="utf-8")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            note.unlink()


def _announced() -> list[Path]:
    try:
        notes = sorted(_notes().iterdir(), key=lambda note: note.stat().st_mtime, reverse=True)
        return [Path(note.read_text(encoding="utf-8")) for note in notes]
    except OSError:
        return []


def _notes() -> Path:
    import platformdirs

    return platformdirs.user_state_path("cncmon") / "running"
