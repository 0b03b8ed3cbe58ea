"""The buffer of an epoch of which nothing is held any more, and something is still to be said."""

from collections.abc import Iterator

from cncmon_agent.batch import Batch
from cncmon_agent.buffer import Stats


class Emptied:
    """Holds nothing and takes nothing. next_seq: one above the last that was ever in it."""

    def __init__(self, next_seq: int) -> None:
        self._next = next_seq

    def append(self, batch: Batch) -> bool:
        """Take nothing."""
        del batch
        return False

    def get(self, seq: int) -> Batch | None:
        """Return None."""
        del seq
        return None

    def free(self, up_to_seq: int) -> int:
        """Free nothing."""
        del up_to_seq
        return 0

    def range(self) -> tuple[int, int]:
        """Return where it ends."""
        return self._next, self._next

    def holes(self) -> list[tuple[int, int]]:
        """Return none: nothing lies within its range."""
        return []

    def __iter__(self) -> Iterator[Batch]:
        return iter(())

    def stats(self) -> Stats:
        """Return zeros."""
        return Stats(batches=0, samples=0, bytes=0, capacity_bytes=0, oldest_created_ms=None)
