"""Epochs that their edge does not have any more (rule D4): what is missing of them is entered as gaps.

An edge that is offline is not concerned: it sends no newer heartbeat, and only a newer one that lacks the epoch counts.
Such gaps never move the watermark, and a batch of one is stored when the old card turns up (rule B4).
"""

from datetime import timedelta
from typing import Final

import asyncpg

from cncmon_core import logs
from cncmon_core.events import SEQ_MAX, Gap
from cncmon_core.names import Origin
from cncmon_ingest import gaps

log = logs.get(__name__)

REASON: Final = "epoch_abandoned"
REASON_WENT_BACK: Final = "database_went_back"

# Epochs with batches above a hole that no heartbeat ever listed: their edge died before its first one. Counted from
# now on, and only where the edge's heartbeats list epochs at all.
_NEVER_LISTED = """
WITH RECURSIVE found AS (
    (SELECT epoch FROM ledger ORDER BY epoch LIMIT 1)
    UNION ALL
    SELECT (SELECT l.epoch FROM ledger l WHERE l.epoch > found.epoch ORDER BY l.epoch LIMIT 1)
    FROM found WHERE found.epoch IS NOT NULL
)
INSERT INTO edge_epochs (epoch, site, edge, boot_id, last_seq, freed_seq, listed)
SELECT w.epoch, w.site, w.edge, '', 0, 0, greatest(now(), edges.received)
FROM found JOIN watermarks w USING (epoch) JOIN edges USING (site, edge)
WHERE jsonb_typeof(edges.document -> 'epochs') = 'array'
ON CONFLICT DO NOTHING
"""

_FREED = """
SELECT e.epoch, e.site, e.edge, e.freed_seq FROM edge_epochs e LEFT JOIN watermarks w USING (epoch)
WHERE NOT e.settled AND e.freed_seq > coalesce(w.seq, 0)
"""

_UNLISTED = """
SELECT e.epoch FROM edge_epochs e JOIN edges USING (site, edge)
WHERE NOT e.settled AND e.listed < edges.received - $1::interval AND jsonb_typeof(edges.document -> 'epochs') = 'array'
"""

# Where two agents publish under an epoch, neither's closing or count is that of all of it.
_KNOWN = """
SELECT e.site, e.edge, e.last_seq, CASE WHEN f.epoch IS NULL THEN e.accepted_samples END AS accepted_samples,
       CASE WHEN f.epoch IS NULL THEN w.closed_seq END AS closed_seq, w.closed_samples,
       (SELECT max(seq) FROM ledger WHERE epoch = e.epoch) AS ledger_seq
FROM edge_epochs e LEFT JOIN watermarks w USING (epoch) LEFT JOIN forked_epochs f USING (epoch)
WHERE e.epoch = $1 AND NOT e.settled
"""


class Abandoned:
    """Looks for abandoned epochs. `ahead`: epoch → the stream's last sequence when it was first found unlisted."""

    def __init__(self, grace_s: float) -> None:
        self._grace = timedelta(seconds=grace_s)
        self._ahead: dict[int, int] = {}

    async def look(self, connection: asyncpg.Connection, stream_last_seq: int, committed_floor: int) -> set[Origin]:
        """Give up what is to be given up now; return the edges concerned.

        An epoch waits until all is committed that was in the stream when its edge did not list it any more.
        """
        await connection.execute(_NEVER_LISTED)
        epochs = [row["epoch"] for row in await connection.fetch(_UNLISTED, self._grace)]
        self._ahead = {epoch: self._ahead.get(epoch, stream_last_seq) for epoch in epochs}
        origins = set()
        for epoch in [epoch for epoch, last_seq in self._ahead.items() if committed_floor >= last_seq]:
            origin = await abandon(connection, epoch)
            if origin is not None:
                origins.add(origin)
        return origins


async def enter_freed(connection: asyncpg.Connection) -> set[Origin]:
    """Enter as gaps what edges have freed and the database does not have; return the edges concerned.

    An edge frees what the database has told it to have. What is missing of that after the stream was read again (rule
    D3) was lost by a database that went back, and no edge or stream has it any more.
    """
    origins = set()
    for row in await connection.fetch(_FREED):
        origin = Origin(row["site"], row["edge"])
        gap = Gap(row["epoch"], 1, min(row["freed_seq"], SEQ_MAX), REASON_WENT_BACK, None, 0)
        batches, left = 0, [gaps.Declaration(gap, origin)]
        while left:
            async with connection.transaction():
                await gaps.lock(connection)
                entered, left = await gaps.declare(connection, left)
            batches += entered
        if batches:
            log.warning("the database lost batches for good", epoch=row["epoch"], **origin._asdict(), batches=batches)
            origins.add(origin)
    return origins


async def abandon(connection: asyncpg.Connection, epoch: int) -> Origin | None:
    """Enter as gaps what is missing of an epoch up to the highest seq known; return its edge if there was anything.

    What a closing has left out is void: the edge has said that it never was. Sample counts follow from the cumulative
    ones in headers, heartbeat and closing, where these reach. Many holes are entered in parts, each in a transaction of
    its own; it is settled with the last.
    """
    batches, origin, start = 0, None, 1
    while True:
        async with connection.transaction():
            await gaps.lock(connection)
            # Read in each part: a closing may have come meanwhile.
            known = await connection.fetchrow(_KNOWN, epoch)
            gap = _gap_of(epoch, known, start) if known else None
            entered = 0
            left: list[gaps.Declaration] = []
            if known and gap:
                origin = Origin(known["site"], known["edge"])
                entered, left = await gaps.declare(connection, [gaps.Declaration(gap, origin)], "abandoned")
            batches += entered
            if not left:
                await connection.execute("UPDATE edge_epochs SET settled = true WHERE epoch = $1", epoch)
                break
        start = left[0].gap.seq_from
    if origin is None or not batches:
        return None
    log.warning("an epoch is abandoned: its edge has it no more", epoch=epoch, **origin._asdict(), batches=batches)
    return origin


def _gap_of(epoch: int, known: asyncpg.Record, start: int) -> Gap | None:
    """Return what may be missing of an epoch from a seq on, up to the highest known; None: nothing."""
    top, samples = known["last_seq"], known["accepted_samples"]
    if known["closed_seq"] is not None:
        top, samples = known["closed_seq"], known["closed_samples"]
    elif (known["ledger_seq"] or 0) > top:
        top, samples = known["ledger_seq"], None
    if top < start:
        return None
    # A seq in the ledger may be larger than any that can be told of; a count may be beyond reason.
    known_samples = samples if samples is not None and samples <= SEQ_MAX and top <= SEQ_MAX else None
    top = min(top, SEQ_MAX)
    if start == 1:
        return Gap(epoch, 1, top, REASON, known_samples, 0)
    return Gap(epoch, start, top, REASON, end=known_samples)
