"""Whose a machine is at which time (rule B9): intervals of a machine's owners, and what they make of a sample.

Owner is a site with the edge that reads the machine there. A sample is judged at its own time: what an old edge still
has from before a hand-over stays its own.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import takewhile
from typing import Final, NamedTuple

import asyncpg

from cncmon_core.names import Origin
from cncmon_ingest import rows

ALWAYS_US: Final = -(1 << 62)
"""From the beginning, as the database's -infinity."""

MOVE_GRACE_US: Final = 60_000_000
"""For so long after a move within a site both edges may send: the new one has begun, the old one has not read its
configuration yet.
"""

CONTENDED_MOVES: Final = 3
CONTENDED_US: Final = 3_600_000_000
"""So many moves of a machine within an hour of its samples: two edges of the site read it."""

INTERVALS_MAX: Final = 100
"""Moves recorded for one machine. More of them are accepted and counted."""

_INTERVALS = """
SELECT machine_id, site, edge,
    CASE WHEN from_time = '-infinity' THEN NULL ELSE from_time END AS from_time
FROM machine_owners WHERE machine_id = ANY($1::text[]) ORDER BY machine_id, machine_owners.from_time
"""


class Interval(NamedTuple):
    """An owner from a time on, in `rows.microseconds`, until the next interval of the machine begins."""

    from_us: int
    site: str
    edge: str

    @property
    def origin(self) -> Origin:
        """Site and edge."""
        return Origin(self.site, self.edge)


Intervals = tuple[Interval, ...]
"""Of one machine, by time; empty where nobody owns it, since only senders without a site have sent it."""


class Span(NamedTuple):
    """Times from one on and before another, in `rows.microseconds`."""

    from_us: int
    until_us: int


ALWAYS: Final = Span(ALWAYS_US, 1 << 62)
NEVER: Final = Span(0, 0)


async def read(connection: asyncpg.Connection, machine_ids: Iterable[str]) -> dict[str, Intervals]:
    """Return the intervals of machines; those without an owner are left out."""
    found: dict[str, list[Interval]] = {}
    for row in await connection.fetch(_INTERVALS, sorted(machine_ids)):
        from_us = ALWAYS_US if row["from_time"] is None else rows.microseconds(row["from_time"])
        found.setdefault(row["machine_id"], []).append(Interval(from_us, row["site"], row["edge"]))
    return {machine_id: tuple(intervals) for machine_id, intervals in found.items()}


async def read_locked(connection: asyncpg.Connection, machine_ids: Sequence[str]) -> dict[str, Intervals]:
    """Return machines' intervals; nobody else records a move of them until the caller's transaction ends."""
    await connection.execute(
        "SELECT FROM machines WHERE machine_id = ANY($1) ORDER BY machine_id FOR UPDATE", list(machine_ids)
    )
    return dict.fromkeys(machine_ids, ()) | await read(connection, machine_ids)


def owner_at(intervals: Intervals, time_us: int) -> Interval | None:
    """Return who owns a machine at a time; None where nobody does."""
    owner = None
    for interval in intervals:
        if interval.from_us > time_us:
            break
        owner = interval
    return owner


def is_foreign(intervals: Intervals, origin: Origin, time_us: int) -> bool:
    """Whether a sample is another site's. Within a site machines move from edge to edge by configuration alone."""
    owner = owner_at(intervals, time_us)
    return bool(origin.site) and owner is not None and owner.site != origin.site


def settled_span(intervals: Intervals, origin: Origin) -> Span:
    """Return when all that a sender has of a machine is taken as it is: nothing to refuse or to record.

    All of a message whose first sample lies in the span. intervals: of a machine that the database has.
    """
    if not origin.site:
        return ALWAYS
    ours = list(takewhile(lambda interval: interval.site == origin.site, reversed(intervals)))
    if not ours:
        return NEVER
    from_us = ALWAYS.from_us if len(ours) == len(intervals) else ours[-1].from_us
    return Span(from_us, _moves_from_us(intervals, origin))


def moves(intervals: Intervals, origin: Origin, time_us: int) -> bool:
    """Whether samples from a time on say that the machine moved to another edge of the site that owns it."""
    return time_us >= _moves_from_us(intervals, origin)


def _moves_from_us(intervals: Intervals, origin: Origin) -> int:
    last = intervals[-1] if intervals else None
    if last is None or last.site != origin.site or last.edge == origin.edge:
        return ALWAYS.until_us
    return last.from_us + MOVE_GRACE_US


def is_contended(intervals: Intervals, time_us: int) -> bool:
    """Whether a machine has moved so often in the hour before a time that two edges must be reading it."""
    return sum(one.from_us > time_us - CONTENDED_US for one in intervals[1:]) >= CONTENDED_MOVES


async def record_moves(
    connection: asyncpg.Connection, machine_ids: Sequence[str], origin: Origin, from_time: datetime
) -> None:
    """Let an edge of the same site own machines from a time on; another worker may have recorded it already."""
    await connection.execute(
        "INSERT INTO machine_owners (machine_id, site, edge, from_time) "
        "SELECT m, $2::text, $3::text, $4::timestamptz FROM unnest($1::text[]) AS m ORDER BY 1 ON CONFLICT DO NOTHING",
        *(list(machine_ids), *origin, from_time),
    )
    await show_owner(connection, machine_ids)


async def hand_over(
    connection: asyncpg.Connection, machine_ids: Sequence[str], to: Origin, from_time: datetime | None
) -> list[str]:
    """Let an edge own machines from a time on, whatever was recorded from then on; return those that are known.

    from_time: None: from the beginning. Workers follow within `machines.REFRESH_S`.
    """
    async with connection.transaction():
        known = [
            row["machine_id"]
            for row in await connection.fetch(
                "SELECT machine_id FROM machines WHERE machine_id = ANY($1) ORDER BY 1 FOR UPDATE", list(machine_ids)
            )
        ]
        await connection.execute(
            "DELETE FROM machine_owners "
            "WHERE machine_id = ANY($1) AND from_time >= coalesce($2::timestamptz, '-infinity')",
            *(known, from_time),
        )
        await connection.execute(
            "INSERT INTO machine_owners (machine_id, site, edge, from_time) "
            "SELECT m, $2::text, $3::text, coalesce($4::timestamptz, '-infinity') FROM unnest($1::text[]) AS m",
            *(known, *to, from_time),
        )
        await show_owner(connection, known)
    return known


async def show_owner(connection: asyncpg.Connection, machine_ids: Sequence[str]) -> None:
    """Bring the list of machines up to date: each under its last owner."""
    await connection.execute(
        "UPDATE machines m SET site = o.site, edge = o.edge FROM ("
        "  SELECT DISTINCT ON (machine_id) machine_id, site, edge FROM machine_owners"
        "  WHERE machine_id = ANY($1) ORDER BY machine_id, from_time DESC"
        ") AS o WHERE o.machine_id = m.machine_id AND (m.site, m.edge) IS DISTINCT FROM (o.site, o.edge)",
        list(machine_ids),
    )
