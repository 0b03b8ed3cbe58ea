"""Forked epochs (rule B2): two agents publish under one, since one was cloned or reverted together with its memory.

Found when a batch arrives whose identity the database has with another hash. The row is written in the transaction of
that batch's dead letter; the leader names the epoch in the edge's watermark document, and its agents begin new ones.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Final

import asyncpg

from cncmon_core import logs
from cncmon_core.names import Origin
from cncmon_ingest import metrics
from cncmon_ingest.decode import Decoded

log = logs.get(__name__)

EPOCH_FORKED: Final = "epoch_forked"

FORKED_MAX: Final = 50
"""Forked epochs in one edge's document, newest first. An agent asks for those on its disk."""

# In order, so that two workers that find the same forks don't deadlock.
_NOTE = """
WITH forked AS (
    INSERT INTO forked_epochs (epoch, site, edge)
    SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[]) ORDER BY 1
    ON CONFLICT DO NOTHING RETURNING epoch, site, edge
), told AS (
    INSERT INTO events (time, site, edge, type, data)
    SELECT now(), site, edge, $4, jsonb_build_object('epoch', epoch) FROM forked
)
SELECT epoch, site, edge FROM forked
"""

# An edge that was renamed since is told under both names.
_OF_EDGES = """
SELECT site, edge, epoch FROM (
    SELECT *, row_number() OVER (PARTITION BY site, edge ORDER BY found DESC, epoch) AS place FROM (
        SELECT site, edge, epoch, found FROM forked_epochs
        WHERE (site, edge) IN (SELECT * FROM unnest($1::text[], $2::text[]))
        UNION
        SELECT w.site, w.edge, w.epoch, f.found FROM forked_epochs f JOIN watermarks w USING (epoch)
        WHERE (w.site, w.edge) IN (SELECT * FROM unnest($1::text[], $2::text[]))
    ) AS named
) AS newest WHERE place <= $3 ORDER BY epoch
"""

_SINCE = """
SELECT site, edge FROM forked_epochs WHERE found > now() - $1::interval
UNION
SELECT w.site, w.edge FROM forked_epochs f JOIN watermarks w USING (epoch) WHERE f.found > now() - $1::interval
"""


async def note(connection: asyncpg.Connection, found: Mapping[int, Origin]) -> None:
    """Write down forked epochs, within the caller's transaction; each for the first time raises the alarm.

    Raises:
        asyncpg.PostgresError
    """
    if not found:
        return
    origins = list(found.values())
    rows = await connection.fetch(
        _NOTE, list(found), [origin.site for origin in origins], [origin.edge for origin in origins], EPOCH_FORKED
    )
    for row in rows:
        metrics.EPOCHS_FORKED.inc()
        log.error(
            "two agents publish under one epoch (a machine cloned or reverted together with its memory): what differs "
            "is kept in the dead letters; give one of them another name, then `cncmon dlq replay`",
            epoch=row["epoch"],
            site=row["site"],
            edge=row["edge"],
        )


async def forked_among(connection: asyncpg.Connection, epochs: Sequence[int]) -> set[int]:
    """Return the epochs under which two agents publish.

    Raises:
        asyncpg.PostgresError
    """
    rows = await connection.fetch("SELECT epoch FROM forked_epochs WHERE epoch = ANY($1)", epochs)
    return {row["epoch"] for row in rows}


def in_conflicts(conflicts: Iterable[Decoded]) -> dict[int, Origin]:
    """Return epoch → origin of messages whose identity the database has with another hash."""
    return {message.identity.epoch: message.origin for message in conflicts if message.identity}


async def of_edges(connection: asyncpg.Connection, edges: Iterable[Origin]) -> dict[Origin, list[int]]:
    """Return the forked epochs of edges, as their documents name them.

    Raises:
        asyncpg.PostgresError
    """
    pairs = list(edges)
    rows = await connection.fetch(_OF_EDGES, [pair.site for pair in pairs], [pair.edge for pair in pairs], FORKED_MAX)
    forked: dict[Origin, list[int]] = {}
    for row in rows:
        forked.setdefault(Origin(row["site"], row["edge"]), []).append(row["epoch"])
    return forked


async def edges_since(connection: asyncpg.Connection, age: timedelta) -> set[Origin]:
    """Return the edges with an epoch found forked lately: nothing of theirs need move for them to be told.

    Raises:
        asyncpg.PostgresError
    """
    return {Origin(row["site"], row["edge"]) for row in await connection.fetch(_SINCE, age)}
