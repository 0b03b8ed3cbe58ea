"""Moving watermarks: over what is contiguous in the ledger and over the gaps that agents declared (rule D1)."""

from collections.abc import Sequence
from typing import Final

import asyncpg

from cncmon_core.events import SEQ_MAX
from cncmon_core.names import Origin
from cncmon_ingest import gaps

STEPS_AT_ONCE_MAX: Final = 20_000
"""Ledger rows and gaps passed in one transaction, by all epochs together: until it ends no worker gets to the
watermarks. The rest is for the next round.
"""

STEPS_OF_AN_EPOCH_MIN: Final = 100
"""What each of very many epochs may move all the same."""

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

# The first step without a successor, found along the indexes: what lies above it is not looked at.
_REACHED = """
SELECT w.epoch, coalesce(last.high, w.seq) AS seq, w.base AS base_before,
       CASE WHEN last.high IS NULL THEN w.base ELSE last.samples END AS base, coalesce(last.is_gap, false) AS is_gap
FROM watermarks w LEFT JOIN LATERAL (
    SELECT high, samples, is_gap FROM (
        SELECT low, high, samples, is_gap, lead(low) OVER steps AS next, row_number() OVER steps AS number FROM (
            SELECT seq AS low, seq AS high, base + stored + dead AS samples, false AS is_gap
            FROM ledger WHERE ledger.epoch = w.epoch AND seq > w.seq
            UNION ALL
            SELECT seq_from, seq_to, NULL::bigint, true
            FROM gaps WHERE gaps.epoch = w.epoch AND state = 'declared' AND seq_from > w.seq
        ) AS above WINDOW steps AS (ORDER BY low)
    ) AS numbered WHERE next IS DISTINCT FROM high + 1 OR number = $2 ORDER BY low LIMIT 1
) AS last ON EXISTS (SELECT FROM ledger WHERE ledger.epoch = w.epoch AND ledger.seq = w.seq + 1)
    OR EXISTS (SELECT FROM gaps WHERE gaps.epoch = w.epoch AND state = 'declared' AND seq_from = w.seq + 1)
WHERE w.epoch = ANY($1)
"""

# What batches beside them say of how many samples come before and after.
_PASSED = """
SELECT g.epoch, g.seq_from, g.seq_to, g.base, g.samples, before.epoch IS NOT NULL AS follows_batch,
       before.base + before.stored + before.dead AS base_before, next.base AS base_after
FROM unnest($1::bigint[], $2::bigint[]) AS reached (epoch, seq) JOIN watermarks w USING (epoch)
JOIN gaps g ON g.epoch = w.epoch AND g.state = 'declared' AND g.seq_from > w.seq AND g.seq_to <= reached.seq
LEFT JOIN ledger before ON (before.epoch, before.seq) = (g.epoch, g.seq_from - 1) AND before.seq > w.seq
LEFT JOIN ledger next ON (next.epoch, next.seq) = (g.epoch, g.seq_to + 1)
ORDER BY g.epoch, g.seq_from
"""

_MARK_PASSED = """
UPDATE gaps SET state = 'passed', base = passed.base, samples = passed.samples
FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[]) AS passed (epoch, seq_from, base, samples)
WHERE (gaps.epoch, gaps.seq_from) = (passed.epoch, passed.seq_from)
"""

_ADVANCE = """
WITH reached AS (
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS reached (epoch, seq, base)
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
    batches_stored = watermarks.batches_stored + coalesce(counted.batches_stored, 0),
    batches_dead = watermarks.batches_dead + coalesce(counted.batches_dead, 0),
    samples_stored = watermarks.samples_stored + coalesce(counted.samples_stored, 0),
    samples_dead = watermarks.samples_dead + coalesce(counted.samples_dead, 0),
    advanced = now()
FROM reached LEFT JOIN counted USING (epoch)
WHERE watermarks.epoch = reached.epoch AND (counted.epoch IS NOT NULL OR watermarks.seq < reached.seq)
RETURNING watermarks.site, watermarks.edge
"""


async def advance(connection: asyncpg.Connection) -> set[Origin]:
    """Move every epoch's watermark over ledger rows and declared gaps, prune those rows, and return whose moved.

    Raises:
        asyncpg.PostgresError
    """
    epochs = [row["epoch"] for row in await connection.fetch(CANDIDATES)]
    if not epochs:
        return set()
    steps = max(STEPS_AT_ONCE_MAX // len(epochs), STEPS_OF_AN_EPOCH_MIN)
    async with connection.transaction():
        await gaps.lock(connection)
        reached = await connection.fetch(_REACHED, epochs, steps)
        bases = {row["epoch"]: row["base"] for row in reached}
        seqs = [row["seq"] for row in reached]
        found = await connection.fetch(_PASSED, list(bases), seqs)
        if found:
            passed = counted(found, {row["epoch"]: row["base_before"] for row in reached})
            await connection.execute(_MARK_PASSED, *(list(column) for column in zip(*passed, strict=True)))
            ends = {epoch: end_of(base, samples) for epoch, _, base, samples in passed}
            bases |= {row["epoch"]: ends[row["epoch"]] for row in reached if row["is_gap"]}
        rows = await connection.fetch(_ADVANCE, list(bases), seqs, list(bases.values()))
    return {Origin(row["site"], row["edge"]) for row in rows}


Passed = tuple[int, int, int | None, int | None]
"""epoch, seq_from, samples of the epoch before the gap, samples in it; None: unknown."""


def counted(found: Sequence[asyncpg.Record], bases: dict[int, int | None]) -> list[Passed]:
    """Return gaps that the watermark passes, their counts filled in from their neighbours', where these are known.

    found: as `_PASSED` gives them. bases: epoch → samples at or under its watermark.
    """
    passed: list[Passed] = []
    for gap in found:
        epoch, base, samples = gap["epoch"], gap["base"], gap["samples"]
        if gap["follows_batch"]:
            before = gap["base_before"]
        elif passed and passed[-1][0] == epoch:
            before = end_of(*passed[-1][2:])
        else:
            before = bases[epoch]
        if before is not None:
            base = before
        if samples is None and base is not None and gap["base_after"] is not None:
            samples = max(0, gap["base_after"] - base)
        passed.append((epoch, gap["seq_from"], base, samples))
    return passed


def end_of(base: int | None, samples: int | None) -> int | None:
    """Return how many samples an epoch has with a gap's; a count that nothing could be added to is as good as unknown.

    An edge may claim anything.
    """
    end = None if base is None or samples is None else base + samples
    return None if end is None or end > SEQ_MAX else end
