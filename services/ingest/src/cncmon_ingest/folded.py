"""Folding: epochs that are closed and delivered shrink to (epoch, seq), their totals to a sum per edge (rule D1).

An edge in a crash loop begins an epoch at each start; each left rows in `watermarks` and `edge_epochs` for ever.
The table `folded_epochs` keeps the two numbers without which an old card's batches would be stored again. An epoch that
comes back gets its row in `watermarks` again, with that watermark, by a trigger on the insert: so no statement that
inserts one can forget to ask.
"""

from datetime import timedelta
from typing import Final

import asyncpg

from cncmon_core import logs
from cncmon_ingest import gaps, metrics

log = logs.get(__name__)

AGE: Final = timedelta(days=1)
"""Since an epoch's watermark moved last, or its closing was repeated: its edge was told of it for as long."""

AT_ONCE_MAX: Final = 1000
"""Epochs folded in one transaction: until it ends no worker gets to the watermarks."""

# Those whose books balance, so that nothing that is amiss disappears in a sum. A gap keeps its epoch unfolded: batches
# may yet be taken out of it (rule B4); so does a second agent under it (B2). What was folded before is in no total of
# the row.
_DONE = """
SELECT w.epoch FROM watermarks w LEFT JOIN edge_epochs e USING (epoch) LEFT JOIN folded_epochs f USING (epoch)
WHERE w.closed_seq <= w.seq AND w.advanced < now() - $1::interval AND (e.epoch IS NULL OR e.settled)
    AND NOT EXISTS (SELECT FROM ledger WHERE ledger.epoch = w.epoch)
    AND NOT EXISTS (SELECT FROM gaps WHERE gaps.epoch = w.epoch)
    AND NOT EXISTS (SELECT FROM forked_epochs WHERE forked_epochs.epoch = w.epoch)
    AND w.batches_stored + w.batches_dead = w.seq - coalesce(f.seq, 0)
    AND (f.seq > 0 OR w.base IS NULL OR w.samples_stored + w.samples_dead =
        CASE WHEN w.closed_seq = w.seq THEN coalesce(w.closed_samples, w.base) ELSE w.base END)
"""

_FOUND = f"{_DONE} ORDER BY w.advanced LIMIT $2"

_FOLD = f"""
WITH done AS (
    {_DONE} AND w.epoch = ANY($2)
), gone AS (
    DELETE FROM watermarks USING done WHERE watermarks.epoch = done.epoch RETURNING watermarks.*
), listed AS (
    DELETE FROM edge_epochs USING done WHERE edge_epochs.epoch = done.epoch
    RETURNING edge_epochs.epoch, edge_epochs.site, edge_epochs.edge
), folded AS (
    INSERT INTO folded_epochs SELECT epoch, seq FROM gone
    ON CONFLICT (epoch) DO UPDATE SET seq = excluded.seq
), added AS (
    INSERT INTO folded_totals AS t (site, edge, epochs, batches_stored, batches_dead, samples_stored, samples_dead)
    SELECT coalesce(listed.site, gone.site), coalesce(listed.edge, gone.edge),
           count(*) FILTER (WHERE NOT EXISTS (SELECT FROM folded_epochs f WHERE f.epoch = gone.epoch)),
           sum(batches_stored), sum(batches_dead), sum(samples_stored), sum(samples_dead)
    FROM gone LEFT JOIN listed USING (epoch) GROUP BY 1, 2
    ON CONFLICT (site, edge) DO UPDATE SET
        epochs = t.epochs + excluded.epochs,
        batches_stored = t.batches_stored + excluded.batches_stored,
        batches_dead = t.batches_dead + excluded.batches_dead,
        samples_stored = t.samples_stored + excluded.samples_stored,
        samples_dead = t.samples_dead + excluded.samples_dead
)
SELECT count(*) FROM gone
"""  # noqa: S608 constants


async def fold(connection: asyncpg.Connection) -> int:
    """Fold some of the epochs that can be; return how many.

    Raises:
        asyncpg.PostgresError
    """
    found = [row["epoch"] for row in await connection.fetch(_FOUND, AGE, AT_ONCE_MAX)]
    if not found:
        return 0
    async with connection.transaction():
        await gaps.lock(connection)
        # Looked at once more: until now a worker may have stored something of one.
        number: int = await connection.fetchval(_FOLD, AGE, found)
    metrics.FOLDED.inc(number)
    log.info("closed and delivered epochs are folded", epochs=number)
    return number
