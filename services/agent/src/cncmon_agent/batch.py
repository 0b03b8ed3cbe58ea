"""A batch: frames with an identity, compressed once, never changed."""

import msgspec

from cncmon_core import frames, identity
from cncmon_core.identity import Identity, Kind


class Batch(msgspec.Struct, frozen=True, gc=False):
    """What is kept and published. data: the payload, compressed. samples: frames that are samples (events are none)."""

    identity: Identity
    data: bytes
    samples: int
    created_s: float

    @property
    def bytes(self) -> int:
        """How much memory it takes, roughly."""
        return len(self.data) + 300


def make(epoch: int, seq: int, base: int, kind: Kind, parts: list[bytes], level: int, created_s: float) -> Batch:
    """Return a batch of frames. created_s: monotonic time, for its age."""
    payload = frames.join(parts)
    name = Identity(epoch, seq, len(parts), base, identity.digest(payload), kind)
    return Batch(name, frames.compress(payload, level), len(parts) if kind == "samples" else 0, created_s)
