"""How much Python does: counted in steps, which are the same on every machine, where a time would not be."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_TOOL: Final = 4  # none of those that sys.monitoring keeps for debuggers, coverage and profilers


@dataclass
class Work:
    """steps: lines that ran and jumps within them, of loops in one line. What C does in one call is not seen."""

    steps: int = 0


@contextlib.contextmanager
def counting() -> Iterator[Work]:
    """Count the steps of everything in the block."""
    work = Work()

    def count(*_: object) -> None:
        work.steps += 1

    monitoring = sys.monitoring
    kinds = (monitoring.events.LINE, monitoring.events.JUMP)
    monitoring.use_tool_id(_TOOL, "cncmon steps")
    try:
        for kind in kinds:
            monitoring.register_callback(_TOOL, kind, count)
        monitoring.set_events(_TOOL, sum(kinds))
        yield work
    finally:
        monitoring.set_events(_TOOL, 0)
        for kind in kinds:
            monitoring.register_callback(_TOOL, kind, None)
        monitoring.free_tool_id(_TOOL)
