"""The usual frames to rows in one pass, by the C extension `_rows`, where that could be built.

It saves time and decides nothing: what it does not take is decoded by `cncmon_core.sample` and packed by `rows`, whose
bytes it must give where it does take a frame.
"""

from typing import Final

from cncmon_core.sample import FIELDS, STATES
from cncmon_ingest.rows import TICK_US

try:
    from cncmon_ingest import _rows
except ImportError:
    _built = False
else:
    # One that was built from another version's source would leave fields out.
    _built = (_rows.FIELDS, frozenset(_rows.STATES), getattr(_rows, "TICK_US", 0)) == (FIELDS, STATES, TICK_US)

NATIVE: Final = _built
"""Whether rows are packed natively."""


def pack(
    payload: bytes, oldest_us: int, newest_us: int
) -> tuple[list[bytes | None], set[str], set[int], list[int]] | None:
    """Return a message's rows, None for each frame that is not of the usual form; their machines and ticks; and the
    numbers of the frames that are left to be looked at one by one.

    None: the payload is not made of whole frames alone, or there is no extension. oldest_us, newest_us: between which
    times (`rows.microseconds`) a sample may lie; others are left.
    """
    return _rows.pack(payload, oldest_us, newest_us) if NATIVE else None
