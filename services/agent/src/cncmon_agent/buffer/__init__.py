"""Where batches wait until they are in the database. One interface, one conformance suite for every tier.

Here now: the hot tier in memory. What belongs here: tiers, and nothing that knows NATS or a driver.
"""

from collections.abc import Iterator
from typing import Protocol

import msgspec

from cncmon_agent.batch import Batch


class Stats(msgspec.Struct, frozen=True):
    """How full a buffer is. oldest_created_s: monotonic time of the oldest batch, None when empty."""

    batches: int
    samples: int
    bytes: int
    capacity_bytes: int
    oldest_created_s: float | None


class Buffer(Protocol):
    """Batches of one epoch in order of seq. Positions only grow; nothing is overwritten, a full buffer refuses."""

    def append(self, batch: Batch) -> bool:
        """Take a batch whose seq is one above the last; False (and nothing changed) when there is no room."""
        ...

    def get(self, seq: int) -> Batch | None:
        """Return the batch of a seq, or None when it is freed or not appended yet."""
        ...

    def free(self, up_to_seq: int) -> int:
        """Give up every batch up to a seq and return how many those were."""
        ...

    def range(self) -> tuple[int, int]:
        """Return the first seq held and the one that the next append must have; equal when empty."""
        ...

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over what is held, oldest first."""
        ...

    def stats(self) -> Stats:
        """Return how full it is."""
        ...
