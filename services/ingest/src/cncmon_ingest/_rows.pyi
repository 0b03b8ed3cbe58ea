"""Built from _rows.c where there is a C compiler; `fast` stands before it."""

from typing import Final

FIELDS: Final[tuple[str, ...]]
"""The fields it knows, in the order of `Sample`."""
STATES: Final[tuple[str, ...]]
"""The machine states it knows."""

TICK_US: Final[int]
"""How long its ticks are."""

def pack(
    payload: bytes, oldest_us: int, newest_us: int
) -> tuple[list[bytes | None], set[str], set[int], list[int]] | None: ...
