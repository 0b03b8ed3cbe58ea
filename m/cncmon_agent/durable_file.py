"""A small file that is replaced whole: after a power cut it holds the old content or the new, never half of one."""

import os
from pathlib import Path


class DurableFile:
    """One such file. Not for use from two threads at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> bytes | None:
        """Return the content, or None where the file does not exist.

        Raises:
            OSError: it is there and can't be read.
        """
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None

    def write(self, content: bytes) -> None:
        """Write to a new file, sync it, rename it over the old one, sync the folder. Blocks for the disk.

        Raises:
            OSError: what is on disk is then the old content or the new.
        """
        fresh = self.path.with_name(self.path.name + ".new")
        with fresh.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
