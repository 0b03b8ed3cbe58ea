"""The agent's data folder: whether it can be used, and that nobody else uses it."""

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Final

from cncmon_agent.errors import FolderError, FolderInUseError

LOCK: Final = "lock"
SPOOL: Final = "spool"
"""Within it: the log of batches."""
UNSTAMPED: Final = "unstamped"
"""Within it: the log of samples that have no time yet."""
PROBE: Final = "probe"

PROBE_BYTES: Final = 64 << 10
"""More than the small files of an agent take together."""


class DataFolder:
    """A folder that is ours alone as long as this process lives."""

    def __init__(self, path: Path) -> None:
        """Make the folder where it does not exist, lock it, and write to it, so that a full disk is found now.

        Raises:
            FolderInUseError: another agent runs on it.
            FolderError: it can't be written.
        """
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileExistsError as error:
            raise FolderError(f"data folder {path} can't be used: a file has that name") from error
        except OSError as error:
            raise FolderError(f"data folder {path} can't be used: {error.strerror}") from error
        try:
            # Ends with the process, however it ends.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _probe(path / PROBE)
        except BlockingIOError as error:
            os.close(self._lock)
            raise FolderInUseError(
                f"another agent runs on data folder {path}: give each its own (CNCMON_AGENT_DATA_DIR)"
            ) from error
        except OSError as error:
            os.close(self._lock)
            raise FolderError(f"data folder {path} can't be used: {error.strerror}") from error

    def close(self) -> None:
        """Let another agent have it."""
        os.close(self._lock)


def _probe(path: Path) -> None:
    """Write a file, sync it and remove it. Raises OSError."""
    try:
        with path.open("wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    finally:
        # On a disk that takes no write the error above says it all.
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
