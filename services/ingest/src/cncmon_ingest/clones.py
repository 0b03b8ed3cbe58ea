"""Two edges under one name (a cloned SD card), told by their boot ids (rule A6). Pure: no clock, no I/O."""

from collections import deque
from typing import Final

from cncmon_core.names import Origin

WINDOW_S: Final = 120.0
"""How long what was seen counts, and so how long an alarm lasts after the last sign of the clone."""

RETURNS_MIN: Final = 3
"""So many times must a boot id come back after another one. A restart never goes back to an earlier boot id; one late
heartbeat of the process before makes two returns: its own, and that of the new process after it.
"""

BOOTS_MAX: Final = 100
"""Boot ids remembered of an edge: one that starts anew at each heartbeat must not fill the memory."""


class _Seen:
    def __init__(self) -> None:
        self.boots: dict[str, float] = {}
        self.last = ""
        self.returns: deque[float] = deque(maxlen=RETURNS_MIN)


class Clones:
    """Which edges have a twin."""

    def __init__(self) -> None:
        self._seen: dict[Origin, _Seen] = {}

    def note(self, origin: Origin, boot_id: str, now_s: float) -> None:
        """Take notice of a heartbeat."""
        seen = self._seen.setdefault(origin, _Seen())
        if boot_id != seen.last and boot_id in seen.boots:
            seen.returns.append(now_s)
        seen.boots.pop(boot_id, None)
        seen.boots[boot_id] = now_s
        if len(seen.boots) > BOOTS_MAX:
            del seen.boots[next(iter(seen.boots))]
        seen.last = boot_id

    def found(self, now_s: float) -> dict[Origin, list[str]]:
        """Return the edges of which several processes are alive, with their boot ids; forget what is long ago."""
        cloned = {}
        for origin, seen in list(self._seen.items()):
            for boot_id in [boot for boot, at_s in seen.boots.items() if at_s < now_s - WINDOW_S]:
                del seen.boots[boot_id]
            if not seen.boots:
                del self._seen[origin]
            elif len(seen.returns) == RETURNS_MIN and seen.returns[0] >= now_s - WINDOW_S:
                cloned[origin] = sorted(seen.boots)
        return cloned
