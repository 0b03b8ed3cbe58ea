"""The files of a data folder, found by their names, while an agent may be making and removing some of them."""

import os
from pathlib import Path
from typing import NamedTuple

import msgspec

from cncmon_agent.buffer import names
from cncmon_agent.buffer.names import SegmentName
from cncmon_agent.buffer.segment import Tier
from cncmon_agent.buffer.spool import COLD_FOLDER
from cncmon_agent.epochs import FILE as EPOCHS_FILE
from cncmon_agent.epochs import EpochsFile
from cncmon_agent.folder import SPOOL, UNSTAMPED
from cncmon_agent.inspect.errors import InspectError


class SegmentFile(NamedTuple):
    """A segment file that was there a moment ago; sorts by age."""

    name: SegmentName
    path: Path
    tier: Tier
    bytes: int


class DataFolder(NamedTuple):
    """An agent's data folder, or a copy of one. cold: the folder of a cold tier elsewhere, such as a USB disk."""

    path: Path
    cold: Path | None = None

    def check(self) -> None:
        """Raise InspectError where there is nothing to look at."""
        if self.cold is not None and not self.cold.is_dir():
            raise InspectError(f"{self.cold} is not a folder: --cold-dir must be the agent's CNCMON_AGENT_COLD_DIR")
        if not (self.path / SPOOL).is_dir():
            raise InspectError(
                f"{self.path} has no folder {SPOOL!r}: --data-dir must be an agent's data folder or a copy of one"
            )

    def segments(self) -> list[SegmentFile]:
        """Return the segment files of all epochs, oldest first.

        Raises:
            InspectError: a folder can't be read.
        """
        spool = self.path / SPOOL
        found = [*_segments(spool, "warm"), *_segments(spool / COLD_FOLDER, "cold")]
        if self.cold is not None:
            found += _segments(self.cold, "cold")
        return sorted(found, key=lambda file: (file.name[:4], file.tier))

    def unstamped(self) -> list[SegmentFile]:
        """Return those of samples without time. Raises InspectError."""
        return sorted(_segments(self.path / UNSTAMPED, "warm"), key=lambda file: file.name[:4])

    def epochs(self) -> EpochsFile | None:
        """Return what the epochs file says; None where it is not there or damaged."""
        try:
            return msgspec.json.decode((self.path / EPOCHS_FILE).read_bytes(), type=EpochsFile)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None


def _segments(folder: Path, tier: Tier) -> list[SegmentFile]:
    try:
        return [file for entry in os.scandir(folder) if (file := _segment(entry, tier)) is not None]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InspectError(f"{folder} can't be read: {error.strerror}") from error


def _segment(entry: "os.DirEntry[str]", tier: Tier) -> SegmentFile | None:
    name = names.parse(entry.name)
    if name is None:
        return None
    try:
        return SegmentFile(name, Path(entry.path), tier, entry.stat().st_size)
    except FileNotFoundError:
        # The agent has let go of it since the folder was read.
        return None
