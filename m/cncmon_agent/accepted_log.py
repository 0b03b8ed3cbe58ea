"""A record of what the agent accepted and the stream acknowledged, for those who check the promise from outside."""

from datetime import datetime
from pathlib import Path
from typing import IO

import msgspec

from cncmon_agent.batch import Batch

Mark = tuple[str, int | None, datetime]
"""machine_id, poll counter where the machine has one, timestamp."""

_encode = msgspec.json.Encoder().encode


class AcceptedLog:
    """JSON lines: `{"epoch","seq","kind","base","samples"}` at acceptance, `{"epoch","seq","acked"}` at the PubAck,
    `{"epoch","synced"}` after each sync: everything up to that seq survives a power cut.

    Each line is given to the operating system at once, so that it survives a kill -9 of the agent.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = path.open("ab", buffering=0)

    def accepted(self, batch: Batch, marks: list[Mark]) -> None:
        """Record a batch that the buffer has taken."""
        name = batch.identity
        line = {"epoch": name.epoch, "seq": name.seq, "kind": name.kind, "base": name.base, "samples": marks}
        self._file.write(_encode(line) + b"\n")

    def acked(self, epoch: int, seq: int, stream_seq: int) -> None:
        """Record that the stream has a batch."""
        line = {"epoch": epoch, "seq": seq, "acked": stream_seq}
        self._file.write(_encode(line) + b"\n")

    def synced(self, epoch: int, seq: int) -> None:
        """Record up to which seq the disk has everything."""
        self._file.write(_encode({"epoch": epoch, "synced": seq}) + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
