"""A batch: frames with an identity, compressed once, never changed."""

from typing import Final

import msgspec

from cncmon_core import frames, identity
from cncmon_core.identity import Identity, Kind

OVERHEAD_BYTES: Final = 300
"""What a batch takes beside its data, roughly: identity, index, Python's objects."""


class Source(msgspec.Struct, frozen=True, gc=False):
    """Which samples of an unstamped log, numbered from 1, a batch holds: a crash must not move them twice (rule A8)."""

    log: int
    first: int
    last: int


class Batch(msgspec.Struct, frozen=True, gc=False):
    """What is kept and published.

    data: the payload, compressed. samples: frames that are samples (events are none). created_ms: Unix time by the
    agent's clock, for ages and nothing else.
    """

    identity: Identity
    data: bytes
    samples: int
    created_ms: int
    source: Source | None = None

    @property
    def bytes(self) -> int:
        """How much memory it takes, roughly."""
        return len(self.data) + OVERHEAD_BYTES


def make(
    epoch: int,
    seq: int,
    base: int,
    kind: Kind,
    parts: list[bytes],
    level: int,
    created_ms: int,
    source: Source | None = None,
) -> Batch:
    """Return a batch of frames, compressed at a zstd level."""
    payload = frames.join(parts)
    name = Identity(epoch, seq, len(parts), base, identity.digest(payload), kind)
    return Batch(name, frames.compress(payload, level), len(parts) if kind == "samples" else 0, created_ms, source)
