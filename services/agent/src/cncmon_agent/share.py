"""The edge's share of the stream in bytes (rule D2): how much of it is there that the database has not taken.

JetStream bounds what is on one subject by number only. An edge with large batches that publishes faster than the
database commits would fill the stream for all; so it stops by itself, and keeps the rest on its own disk.
"""

from collections import deque
from typing import Final

ROOM_RATIO: Final = 0.75
"""After a share was full, publishing goes on at this part of it, and not with the first batch that is committed."""


class StreamShare:
    """What the stream took of this process, up to where the consumers are. Not of the process before it.

    bytes_max: the share that ingest tells; 0: none.
    """

    def __init__(self) -> None:
        self.bytes_max = 0
        self.bytes = 0
        self._created = ""
        self._taken: deque[tuple[int, int]] = deque()

    @property
    def full(self) -> bool:
        """Whether nothing more is to be published now."""
        return 0 < self.bytes_max <= self.bytes

    @property
    def has_room(self) -> bool:
        """Whether, after it was full, publishing may go on."""
        return self.bytes_max <= 0 or self.bytes <= ROOM_RATIO * self.bytes_max

    def taken(self, stream_seq: int, size: int) -> None:
        """The stream took a message of `size` bytes."""
        while self._taken and self._taken[-1][0] >= stream_seq:
            # The stream went back: what it gave out from there on is lost, and will be sent again.
            self.bytes -= self._taken.pop()[1]
        self._taken.append((stream_seq, size))
        self.bytes += size

    def told(self, bytes_max: int, created: str, floor: int) -> None:
        """Ingest said how large the share is, and that the stream made at `created` is committed up to a sequence."""
        self.bytes_max = bytes_max
        if created != self._created:
            self._created, self.bytes = created, 0
            self._taken.clear()
        while self._taken and self._taken[0][0] <= floor:
            self.bytes -= self._taken.popleft()[1]
