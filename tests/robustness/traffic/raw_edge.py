"""An edge whose batches are written byte by byte: what no agent would send, in the midst of what is sound."""

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import msgspec
from nats.aio.client import Client

from cncmon_core.sample import encode_sample
from robustness.traffic.generator import Generator
from testkit.ingest import publish_batch


class RawEdge:
    """Publishes batches of `machines` generated machines; accepted log and poll log are kept as an agent keeps them."""

    def __init__(self, folder: Path, edge: str, *, machines: int, seed: int) -> None:
        folder.mkdir(parents=True)
        self.edge = edge
        self.epoch = secrets.randbits(62)
        self.accepted = folder / "accepted.jsonl"
        self.polls = folder / "polls.jsonl"
        self._generator = Generator(edge, machines, seed, self.polls, datetime.now(UTC))
        self._log: IO[bytes] = self.accepted.open("ab", buffering=0)
        self._seq = 0
        self._base = 0

    async def send(self, client: Client, polls: int, spoilt: Mapping[int, bytes] | None = None) -> int:
        """Publish one batch of so many polls of every machine; return its number of frames.

        spoilt: frame number → the bytes in that frame's place, which are to become a dead letter.
        """
        samples = [sample for _ in range(polls) for sample in self._generator.poll_now()]
        parts = [encode_sample(sample) for sample in samples]
        for number, data in (spoilt or {}).items():
            parts[number] = data
        marks = [(each.machine_id, (each.extras or {}).get("poll_counter"), each.timestamp) for each in samples]
        self._generator.log.flush()
        self._seq += 1
        line = {"epoch": self.epoch, "seq": self._seq, "kind": "samples", "base": self._base, "samples": marks}
        self._log.write(msgspec.json.encode(line) + b"\n")
        await publish_batch(client, self._seq, parts, epoch=self.epoch, edge=self.edge, base=self._base)
        self._base += len(parts)
        return len(parts)

    def close(self) -> None:
        """Write both logs to their end."""
        self._generator.close()
        self._log.close()
