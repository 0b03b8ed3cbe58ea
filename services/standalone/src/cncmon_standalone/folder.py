"""The data folder: where everything of one installation lies, and who runs on it.

DATA/postgres, DATA/nats, DATA/agent-…   what the parts keep
DATA/logs/<part>.log                     their output, bounded
DATA/run/lock, DATA/run/state.json       the supervisor that runs on it, and what it says of itself
"""

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cncmon_standalone.embedded.postgres import Owner
from cncmon_standalone.errors import InUseError, UnusableError

SYSTEM_FOLDER = Path("/var/lib/cncmon")
_LOCK_WAIT_S = 1.0
"""`status` holds the lock for a moment to see whether it is free; a start waits that out."""


class DataFolder:
    """The paths in a data folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.logs = root / "logs"
        self.run = root / "run"
        self.state_file = self.run / "state.json"
        self._lock_file = self.run / "lock"

    def make(self) -> None:
        """Make the folders.

        Raises:
            UnusableError: they can't be made or written to.
        """
        try:
            for folder in (self.root, self.logs, self.run):
                folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.root, os.W_OK | os.X_OK):
                raise PermissionError(f"no permission to write to {self.root}")
        except OSError as error:
            raise UnusableError(f"the data folder can't be used: {error}. Choose another with --data DIR") from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder: one supervisor at a time. The kernel lets go of it when we die, however we die.

        Raises:
            InUseError: another one has it; names its pid.
        """
        with self._open_lock(os.O_RDWR | os.O_CREAT) as lock:
            deadline = time.monotonic() + _LOCK_WAIT_S
            while not _try_lock(lock, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    raise InUseError(
                        f"cncmon runs on {self.root} already, pid {self.holder() or 'unknown'}. "
                        f"Stop it with: cncmon down --data {self.root}, or choose another folder with --data DIR"
                    )
                time.sleep(0.05)
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            try:
                yield
            finally:
                os.ftruncate(lock, 0)

    def holder(self) -> int | None:
        """Return the pid of the supervisor that runs on this folder, or None; never one that is gone."""
        try:
            with self._open_lock(os.O_RDONLY) as lock:
                if _try_lock(lock, fcntl.LOCK_SH):
                    return None
                text = os.pread(lock, 32, 0).decode(errors="replace").strip()
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise UnusableError(f"{error.filename} can't be read: run this as the user who runs cncmon") from error
        return int(text) if text.isdigit() else None

    @contextlib.contextmanager
    def _open_lock(self, flags: int) -> Iterator[int]:
        lock = os.open(self._lock_file, flags | os.O_CLOEXEC, 0o644)
        try:
            yield lock
        finally:
            os.close(lock)


def _try_lock(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def default_folder() -> Path:
    """Return where data lie without --data: the user's data folder, or a system one where PostgreSQL can't go."""
    import platformdirs

    own = platformdirs.user_data_path("cncmon")
    return own if _reachable(own) else SYSTEM_FOLDER


def make_temporary() -> Path:
    """Return a fresh folder for a demo, on disk rather than in memory where there is a choice."""
    chosen = [os.environ["TMPDIR"]] if os.environ.get("TMPDIR") else []
    for parent in (*chosen, "/var/tmp", tempfile.gettempdir()):  # noqa: S108 mkdtemp makes the folder itself safely
        if os.access(parent, os.W_OK | os.X_OK) and _reachable(Path(parent)):
            folder = Path(tempfile.mkdtemp(prefix="cncmon-demo-", dir=parent))
            folder.chmod(0o755)
            return folder
    raise UnusableError("found no folder for temporary data; choose one with --data DIR")


def _reachable(path: Path) -> bool:
    """Whether PostgreSQL's user could enter the folder once it exists."""
    while not path.exists():
        path = path.parent
    return Owner.find().can_enter(path)
