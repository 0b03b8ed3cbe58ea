"""Which of the values that come from a bucket is the one that it holds now: the rules, without I/O.

The bucket's value now is the truth, whatever its revision. A bucket that was deleted, made anew and filled again, or
restored from a backup, may hold a lower revision at a lower place in its stream, and that is what the edge must run.
But a read may also come late: direct gets are answered by any replica, which may lag behind. The two are told apart by
what the server says of each message:

* a higher sequence, or a later time than the last one's: newer in any case; a bucket made anew has later times;
* a lower sequence at an earlier time: a lagging replica, or a restored backup. It is believed once nothing but it has
  been read for `DOUBT_S`, longer than a replica that still serves reads lags.
"""

from datetime import datetime
from typing import Final, NamedTuple

DOUBT_S: Final = 5.0


class Version(NamedTuple):
    """A value's place in the bucket's stream, and when the server took it."""

    seq: int
    time: datetime


class Current:
    """Judges what is read, one value after the other."""

    def __init__(self) -> None:
        self._believed: Version | None = None
        self._doubted: Version | None = None
        self._doubted_since_s = 0.0

    @property
    def doubts(self) -> bool:
        """Whether a value waits to be believed: then it should be read again soon."""
        return self._doubted is not None

    def believe(self, read: Version, now_s: float) -> bool:
        """Return whether a value that was just read is what the bucket holds now. now_s: monotonic."""
        last = self._believed
        if last is None or read == last or read.seq > last.seq or read.time > last.time:
            self._believed, self._doubted = read, None
            return True
        if read != self._doubted:
            self._doubted, self._doubted_since_s = read, now_s
        if now_s - self._doubted_since_s < DOUBT_S:
            return False
        self._believed, self._doubted = read, None
        return True
