"""The edges, as their last heartbeats told. What an agent of another version leaves out or says otherwise is null."""

from datetime import UTC, datetime, timedelta
from typing import Final

import asyncpg
import msgspec

from cncmon_api.database import Database
from cncmon_api.models import Edge, EdgeBuffer, EdgeClock, EdgeConfig, EdgeList, EdgeMachines

EDGES_MAX: Final = 10_000

# A database of before, or one whose edges we may not see, has none.
_READABLE_SQL: Final = "SELECT coalesce(has_table_privilege(to_regclass('edges'), 'SELECT'), false) AS readable"

# The parts alone: a document lists every machine of its edge.
_EDGES_SQL: Final = """
SELECT site, edge, boot_id, time, received, document -> 'version' AS version, document -> 'buffer' AS buffer,
    document -> 'config' AS config, document -> 'clock' AS clock, document -> 'problems' AS problems,
    (SELECT jsonb_object_agg(state, number) FROM (
        SELECT machine ->> 'state' AS state, count(*) AS number
        FROM jsonb_array_elements(
            CASE WHEN jsonb_typeof(document -> 'machines') = 'array' THEN document -> 'machines' ELSE '[]' END
        ) AS machine WHERE jsonb_typeof(machine -> 'state') = 'string' GROUP BY 1
    ) AS states) AS machines
FROM edges ORDER BY site, edge LIMIT $1
"""


_HEARD_SQL: Final = "SELECT site, edge, received FROM edges ORDER BY site, edge LIMIT $1"


async def read_silences(database: Database, stale_after: timedelta) -> dict[tuple[str, str], datetime | None]:
    """Return by site and name since when each edge has been silent; None: it is heard of.

    Raises:
        UnavailableError
    """
    (probe,) = await database.fetch(_READABLE_SQL)
    rows = await database.fetch(_HEARD_SQL, EDGES_MAX) if probe["readable"] else []
    now = datetime.now(UTC)
    return {
        (row["site"], row["edge"]): row["received"] if now - row["received"] > stale_after else None for row in rows
    }


async def read_edges(database: Database, stale_after: timedelta) -> EdgeList:
    """Return all edges, sorted by site and name.

    Raises:
        UnavailableError
    """
    (probe,) = await database.fetch(_READABLE_SQL)
    rows = await database.fetch(_EDGES_SQL, EDGES_MAX) if probe["readable"] else []
    now = datetime.now(UTC)
    return EdgeList(now, [_edge(row, now, stale_after) for row in rows])


def _edge(row: asyncpg.Record, now: datetime, stale_after: timedelta) -> Edge:
    return Edge(
        site=row["site"],
        edge=row["edge"],
        boot_id=row["boot_id"],
        version=_part(row["version"], str),
        time=row["time"],
        received=row["received"],
        stale=now - row["received"] > stale_after,
        buffer=_part(row["buffer"], EdgeBuffer),
        config=_part(row["config"], EdgeConfig),
        clock=_part(row["clock"], EdgeClock),
        problems=_part(row["problems"], list[str]) or [],
        machines=_part(row["machines"], EdgeMachines) or EdgeMachines(),
    )


def _part[T](text: str | None, kind: type[T]) -> T | None:
    """Return a part of a heartbeat, or None where there is none, or it is of another shape."""
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, RecursionError):
        return None
