"""Moving watermarks: over what is contiguous in the ledger and over the gaps that agents declared (rule D1)."""

import asyncpg

from cncmon_core.names import Origin
from cncmon_ingest import gaps

GAPS_AT_ONCE_MAX = 100
"""Gaps of an epoch passed in one transaction: until it ends no worker gets to the watermarks. The rest has to wait."""

CANDIDATES = """
WITH RECURSIVE found AS (
    (SELECT epoch FROM ledger ORDER BY epoch LIMIT 1)
    UNION ALL
    SELECT (SELECT l.epoch FROM ledger l WHERE l.epoch > found.epoch ORDER BY l.epoch LIMIT 1)
    FROM found WHERE found.epoch IS NOT NULL
)
SELECT w.epoch FROM found JOIN watermarks w USING (epoch),
LATERAL (SELECT l.seq FROM ledger l WHERE l.epoch = w.epoch ORDER BY l.seq LIMIT 1) lowest
WHERE lowest.seq <= w.seq + 1
UNION
SELECT w.epoch FROM gaps g JOIN watermarks w USING (epoch) WHERE g.state = 'declared' AND g.seq_from = w.seq + 1
"""
"""Epochs that can move, by two looks into the ledger's index for each epoch in it: neither what lies above a lost batch
nor the watermarks of all epochs there ever were make a round longer. A row under the watermark is a batch that was
taken out of a gap.
"""

# The first row without a successor, found along the index: what lies above it is not looked at.
_ADVANCE = """
WITH contiguous AS (
    SELECT w.epoch, last.seq FROM watermarks w, LATERAL (
        SELECT seq FROM (
            SELECT seq, lead(seq) OVER (ORDER BY seq) AS next FROM ledger WHERE epoch = w.epoch AND seq > w.seq
        ) AS above WHERE next IS DISTINCT FROM seq + 1 ORDER BY seq LIMIT 1
    ) AS last
    WHERE w.epoch = ANY($1) AND EXISTS (SELECT FROM ledger WHERE epoch = w.epoch AND seq = w.seq + 1)
), reached AS (
    SELECT w.epoch, coalesce(contiguous.seq, w.seq) AS seq,
           CASE WHEN contiguous.seq IS NULL THEN w.base ELSE last.base + last.stored + last.dead END AS base
    FROM watermarks w LEFT JOIN contiguous USING (epoch)
    LEFT JOIN ledger last ON (last.epoch, last.seq) = (contiguous.epoch, contiguous.seq)
    WHERE w.epoch = ANY($1)
), pruned AS (
    DELETE FROM ledger USING reached
    WHERE ledger.epoch = reached.epoch AND ledger.seq <= reached.seq
    RETURNING ledger.epoch, ledger.seq, ledger.sha256, ledger.stored, ledger.dead, ledger.disposition
), hashes AS (
    INSERT INTO ledger_hashes (epoch, seq_from, seq_to, digests)
    SELECT epoch, min(seq), max(seq), string_agg(substring(sha256 FOR 8), ''::bytea ORDER BY seq) FROM (
        SELECT epoch, seq, sha256, seq - row_number() OVER (PARTITION BY epoch ORDER BY seq) AS run FROM pruned
    ) AS runs GROUP BY epoch, run, seq / 4096
    ON CONFLICT DO NOTHING
), counted AS (
    SELECT epoch,
           count(*) FILTER (WHERE disposition = 'stored') AS batches_stored,
           count(*) FILTER (WHERE disposition = 'dead') AS batches_dead,
           sum(stored) AS samples_stored, sum(dead) AS samples_dead
    FROM pruned GROUP BY epoch
)
UPDATE watermarks SET
    seq = reached.seq,
    base = reached.base,
    batches_stored = watermarks.batches_stored + counted.batches_stored,
    batches_dead = watermarks.batches_dead + counted.batches_dead,
    samples_stored = watermarks.samples_stored + counted.samples_stored,
    samples_dead = watermarks.samples_dead + counted.samples_dead,
    advanced = now()
FROM reached JOIN counted USING (epoch)
WHERE watermarks.epoch = reached.epoch
RETURNING watermarks.epoch, watermarks.site, watermarks.edge
"""

# A gap's counts are filled in from those of its neighbours, once these are known. An edge may claim anything: a count
# that nothing could be added to is as good as unknown.
_OVER_GAPS = """
WITH passed AS (
    UPDATE gaps SET state = 'passed', base = coalesce(w.base, gaps.base), samples = coalesce(gaps.samples, (
        SELECT greatest(0, next.base - w.base) FROM ledger next
        WHERE next.epoch = w.epoch AND next.seq = gaps.seq_to + 1 AND next.base - w.base IS NOT NULL
    ))
    FROM watermarks w
    WHERE gaps.epoch = w.epoch AND gaps.state = 'declared' AND gaps.seq_from = w.seq + 1 AND w.epoch = ANY($1)
    RETURNING gaps.epoch, gaps.seq_to,
        CASE WHEN gaps.base::numeric + gaps.samples <= 1::bigint << 62 THEN gaps.base + gaps.samples END AS base
)
UPDATE watermarks SET seq = passed.seq_to, base = passed.base, advanced = now()
FROM passed WHERE watermarks.epoch = passed.epoch
RETURNING watermarks.epoch, watermarks.site, watermarks.edge
"""


async def advance(connection: asyncpg.Connection) -> set[Origin]:
    """Move every epoch's watermark over ledger rows and declared gaps, prune those rows, and return whose moved.

    Raises:
        asyncpg.PostgresError
    """
    epochs = [row["epoch"] for row in await connection.fetch(CANDIDATES)]
    if not epochs:
        return set()
    moved = set()
    async with connection.transaction():
        await gaps.lock(connection)
        for _ in range(GAPS_AT_ONCE_MAX):
            rows = await connection.fetch(_ADVANCE, epochs)
            passed = await connection.fetch(_OVER_GAPS, epochs)
            moved |= {Origin(row["site"], row["edge"]) for row in (*rows, *passed)}
            epochs = [row["epoch"] for row in passed]
            if not epochs:
                break
    return moved
