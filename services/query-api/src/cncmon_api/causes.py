"""Why nothing is known of a machine over a time: what its edge was doing then, as its heartbeats tell."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec

from cncmon_api.database import Database
from cncmon_api.models import Cause

LATE_S: Final = 15.0
"""Younger batches on an edge are on their way as always."""

# A database of before, or one whose edges we may not see, tells no causes.
_READABLE_SQL: Final = """
SELECT bool_and(coalesce(has_table_privilege(to_regclass(name), 'SELECT'), false)) AS readable
FROM unnest(ARRAY['edges', 'edge_silences', 'machine_owners']) AS name
"""

# What an edge still has on its disk is late once it is heard of again; before that nobody knows whether it has any.
_SQL: Final = """
SELECT CASE
    WHEN now() - edge.received > $4 AND hole.ends > edge.received THEN 'edge_silent'
    WHEN edge.oldest_age_s > $5 AND hole.ends > edge.time - make_interval(secs => edge.oldest_age_s) THEN 'late'
    WHEN EXISTS (
        SELECT FROM edge_silences s
        WHERE s.site = edge.site AND s.edge = edge.edge AND s.from_time < hole.ends AND s.to_time > hole.begins
    ) THEN 'edge_silent'
    ELSE 'unknown'
END AS cause
FROM unnest($2::timestamptz[], $3::timestamptz[]) WITH ORDINALITY AS hole(begins, ends, number)
LEFT JOIN LATERAL (
    SELECT site, edge FROM machine_owners
    WHERE machine_id = $1 AND from_time <= hole.begins ORDER BY from_time DESC LIMIT 1
) AS owner ON true
LEFT JOIN machines m ON m.machine_id = $1
LEFT JOIN LATERAL (
    SELECT site, edge, time, received, CASE WHEN jsonb_typeof(document #> '{buffer,oldest_age_s}') = 'number'
        THEN least((document #>> '{buffer,oldest_age_s}')::float8, 1e9) END AS oldest_age_s
    FROM edges WHERE (site, edge) = (coalesce(owner.site, m.site), coalesce(owner.edge, m.edge))
) AS edge ON true
ORDER BY hole.number
"""


async def causes_of(
    database: Database, machine_id: str, holes: Sequence[tuple[datetime, datetime]], silent_after: timedelta
) -> list[Cause]:
    """Return the cause of each hole [begin, end) of a machine, in their order.

    Raises:
        UnavailableError: the database can't answer.
    """
    (probe,) = await database.fetch(_READABLE_SQL)
    if not probe["readable"]:
        return ["unknown"] * len(holes)
    begins, ends = zip(*holes, strict=True)
    rows = await database.fetch(_SQL, machine_id, begins, ends, silent_after, LATE_S)
    return msgspec.convert([row["cause"] for row in rows], list[Cause])
