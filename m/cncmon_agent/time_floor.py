"""The lower bound of wall time: what it must be at least, kept on disk for the next boot."""

from typing import Final, Protocol

import msgspec

from cncmon_agent.time_source import TimeSource

BUILD_NS: Final = 1_767_225_600_000_000_000
"""2026-01-01T00:00:00Z, before the first release: no clock that says less can be right."""

SAVE_EVERY_S: Final = 600
"""How often the bound is written. One page in ten minutes wears no card; a bound ten minutes lower harms little."""


class SmallFile(Protocol):
    """A file that is replaced whole, as `durable_file.DurableFile`."""

    def read(self) -> bytes | None:
        """Return the content, or None where there is none. Raises OSError."""
        ...

    def write(self, content: bytes) -> None:
        """Replace the content durably. Raises OSError."""
        ...


class Mark(msgspec.Struct):
    """The file's content: at `boottime_ns` of kernel boot `boot_id`, Unix time was at least `wall_ns`."""

    wall_ns: int
    boot_id: str
    boottime_ns: int


class TimeFloor:
    """base_ns: what Unix time was at least when this kernel began (ns), so that base + boottime is the bound now.

    A boot that never learns the time makes the bound grow by its own duration, so the next begins above it.
    """

    def __init__(self, source: TimeSource, file: SmallFile | None = None) -> None:
        self._source = source
        self._file = file
        self._saved_ns: int | None = None
        self.base_ns = BUILD_NS
        mark = self._read()
        if mark is not None:
            same_boot = mark.boot_id == source.boot_id()
            self.base_ns = max(BUILD_NS, mark.wall_ns - (mark.boottime_ns if same_boot else 0))

    def now_ns(self) -> int:
        """Return what Unix time is at least, in ns."""
        return self.base_ns + self._source.boottime_ns()

    def known(self, anchor_ns: int) -> None:
        """Take the right time, given as Unix time less boottime in ns; it may be less than the bound, if that erred."""
        if anchor_ns != self.base_ns:
            # Written at once then: a step must not leave a bound of next year on disk for ten minutes.
            self._saved_ns = None
            self.base_ns = anchor_ns

    def raise_base(self, base_ns: int) -> None:
        """Take a better lower bound, of what was found of earlier boots."""
        self.base_ns = max(self.base_ns, base_ns)

    def keep(self) -> bool:
        """Write the bound where it is due, and return whether it was. Blocks for the disk, once in `SAVE_EVERY_S`.

        May run in a thread, in one at a time.

        Raises:
            OSError: tried again at the next call.
        """
        now_ns = self._source.boottime_ns()
        if self._file is None or (
            self._saved_ns is not None and now_ns - self._saved_ns < SAVE_EVERY_S * 1_000_000_000
        ):
            return False
        base_ns = self.base_ns
        self._file.write(msgspec.json.encode(Mark(base_ns + now_ns, self._source.boot_id(), now_ns)))
        # Written in a thread, perhaps, while a step made it another bound: then that one is still due.
        self._saved_ns = now_ns if base_ns == self.base_ns else None
        return True

    def _read(self) -> Mark | None:
        try:
            content = self._file.read() if self._file is not None else None
            return None if content is None else msgspec.json.decode(content, type=Mark)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            # Without it the bound is lower, and nothing is wrong.
            return None
