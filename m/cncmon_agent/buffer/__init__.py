"""Where batches wait until they are in the database. One interface, one conformance suite for every tier.

Hot in memory, warm and cold on disk, and one that lays the first over the others. What belongs here: tiers, and nothing
that knows NATS or a driver.
"""

from collections.abc import Iterator
from typing import Protocol

import msgspec

from cncmon_agent.batch import Batch


class Stats(msgspec.Struct, frozen=True):
    """How full a buffer is.

    bytes: what the batches take, in the measure of `capacity_bytes`. oldest_created_ms: when the oldest batch was made,
    Unix time by the agent's clock; None when empty.
    """

    batches: int
    samples: int
    bytes: int
    capacity_bytes: int
    oldest_created_ms: int | None


class Buffer(Protocol):
    """Batches of one epoch in order of seq. Positions only grow; nothing is overwritten.

    A full one refuses, but for a log on disk, which drops its oldest segments and tells of it by `range` and `holes`.
    """

    def append(self, batch: Batch) -> bool:
        """Take a batch whose seq is one above the last; False (and nothing changed) when there is no room."""
        ...

    def get(self, seq: int) -> Batch | None:
        """Return the batch of a seq; None when it is freed, not appended yet, dropped or damaged."""
        ...

    def free(self, up_to_seq: int) -> int:
        """Give up every batch up to a seq and return how many those were."""
        ...

    def range(self) -> tuple[int, int]:
        """Return the first seq held and the one that the next append must have; equal when empty."""
        ...

    def holes(self) -> list[tuple[int, int]]:
        """Return the ranges of seqs within `range()`, both ends included, that are not held."""
        ...

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over what is held, oldest first."""
        ...

    def stats(self) -> Stats:
        """Return how full it is."""
        ...
