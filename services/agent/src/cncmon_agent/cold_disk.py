"""Whether the cold tier's folder is on the disk that it was on: one that is not mounted leaves an empty folder behind.

Without this, batches on a stick that is mounted a moment too late would be taken for lost and declared as gaps, and
what is meant for the stick would fill the card.
"""

import secrets
from pathlib import Path
from typing import Final

import msgspec

from cncmon_agent.durable_file import DurableFile

NOTE: Final = "cold.json"
"""In the data folder: which disk is the cold tier's."""

MARK: Final = "cncmon-cold-tier"
"""On that disk: what tells it from an empty folder of the same path."""


class Note(msgspec.Struct):
    """The note's content: a folder, and what its mark says."""

    folder: str
    mark: str


class ColdDisk:
    """The disk of a cold tier that has a folder of its own."""

    def __init__(self, data: Path, folder: str) -> None:
        """data: the agent's data folder. folder: the cold tier's; another one than is noted begins anew."""
        self.path = Path(folder)
        self._note = DurableFile(data / NOTE)
        self._mark = DurableFile(self.path / MARK)

    def missing(self) -> str | None:
        """Return why it can't be used, or None. A disk that is seen for the first time is marked, and noted."""
        try:
            known = self._known()
            there = self._mark.read()
            if known is not None and there != known:
                return (
                    f"cold tier {self.path}: not the disk that was there before, or not mounted. Batches on it wait"
                    f" for it ({self._note.path} removed: they are given up)"
                )
            if known is None:
                for folder in (self.path, self._note.path.parent):
                    folder.mkdir(parents=True, exist_ok=True)
                mark = there or secrets.token_hex(16).encode()
                if there is None:
                    self._mark.write(mark)
                self._note.write(msgspec.json.encode(Note(str(self.path), mark.decode("ascii", "replace"))))
        except OSError as error:
            return f"cold tier {self.path} can't be used: {error.strerror}. Batches stay in {self._note.path.parent}"
        return None

    def _known(self) -> bytes | None:
        """Return what the mark must say; None where nothing is noted of this folder."""
        content = self._note.read()
        try:
            note = None if content is None else msgspec.json.decode(content, type=Note)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        return note.mark.encode() if note is not None and note.folder == str(self.path) else None
