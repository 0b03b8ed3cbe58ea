"""The agent's data folder: whether it can be used, and that nobody else uses it."""

import fcntl
import os
from pathlib import Path

from cncmon_agent.errors import FolderError, FolderInUseError

LOCK = "lock"


class DataFolder:
    """A folder that is ours alone as long as this process lives."""

    def __init__(self, path: Path) -> None:
        """Make the folder where it does not exist, and lock it.

        Raises:
            FolderInUseError: another agent runs on it.
            FolderError: it can't be written.
        """
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise FolderError(f"data folder {path} can't be used: {error.strerror}") from error
        try:
            # Ends with the process, however it ends.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise FolderInUseError(
                f"another agent runs on data folder {path}: give each its own (CNCMON_AGENT_DATA_DIR)"
            ) from error

    def close(self) -> None:
        """Let another agent have it."""
        os.close(self._lock)
