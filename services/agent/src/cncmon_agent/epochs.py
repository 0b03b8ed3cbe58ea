"""The epochs file: which epochs this agent has begun, how far each is delivered, and which must still be closed.

An epoch is drawn and synced at every start before anything is published under it: after a power cut the stream may hold
batches that this disk has forgotten, and a number used again would clash with them (rule A1 of docs/delivery.md).
"""

import os
import secrets
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from cncmon_core.identity import EPOCH_MAX

FILE = "epochs.json"

OPEN_MAX = 256
"""Earlier epochs whose closing is repeated. A loop of crashes without a cloud side must not fill the disk with them:
the oldest are given up, and the cloud side finds them abandoned.
"""


class Epoch(msgspec.Struct, omit_defaults=True):
    """One start of the agent. acked: what the stream has taken without a hole; freed: what the database has."""

    epoch: Annotated[int, Meta(ge=1, le=EPOCH_MAX)]
    acked_seq: Annotated[int, Meta(ge=0)] = 0
    acked_samples: Annotated[int, Meta(ge=0)] = 0
    freed_seq: Annotated[int, Meta(ge=0)] = 0


class EpochsFile(msgspec.Struct):
    """The file's content. `open` holds earlier epochs whose closing the database has not confirmed yet."""

    current: Epoch
    open: list[Epoch] = []


class Epochs:
    """The current epoch and the earlier ones, kept on disk."""

    def __init__(self, folder: Path) -> None:
        """Draw a new epoch and sync it to disk.

        Raises:
            OSError: the folder can't be written; nothing may be published then.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / FILE
        earlier = self._read()
        unconfirmed = [*earlier.open, earlier.current][-OPEN_MAX:] if earlier else []
        self.current = Epoch(secrets.randbelow(EPOCH_MAX) + 1)
        self.open = unconfirmed
        self.unreadable = earlier is None and self._path.exists()
        self._saved = b""
        self.save()

    def confirm_closed(self, epochs: set[int]) -> None:
        """Forget earlier epochs whose closing is in the database."""
        self.open = [epoch for epoch in self.open if epoch.epoch not in epochs]

    def save(self) -> None:
        """Write the file where it changed: to a new file, synced, renamed over the old one, the folder synced."""
        content = msgspec.json.encode(EpochsFile(self.current, self.open))
        if content == self._saved:
            return
        fresh = self._path.with_suffix(".new")
        with fresh.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._saved = content

    def _read(self) -> EpochsFile | None:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=EpochsFile)
        except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            # A damaged file costs the closings of earlier epochs, which the cloud side then finds abandoned.
            return None
