"""Hashes of pruned batches (rule B2): a batch at or under the watermark is compared with what was stored there.

The leader's prune moves them from the ledger to `ledger_hashes`, eight bytes per batch, in one row per run of seqs.
They are kept until the stream has certainly dropped every message that was in it when they were pruned.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import asyncpg

MARGIN_S: Final = 3600.0
"""Added to the stream's max_age: clocks of NATS and PostgreSQL differ, and a delivery takes its time."""

PRUNED_MAX: Final = 10_000
"""Rows deleted in one sweep; a sweep every 5 s deletes 2,000 per second, ten times what a busy leader adds."""

# A batch is in the ledger or in here: the prune moves it in one transaction, and this is one snapshot.
_HASHES = """
SELECT k.epoch, k.seq,
       coalesce(l.sha256, substring(h.digests FROM (8 * (k.seq - h.seq_from) + 1)::integer FOR 8)) AS hash
FROM unnest($1::bigint[], $2::bigint[]) AS k (epoch, seq)
LEFT JOIN ledger l ON (l.epoch, l.seq) = (k.epoch, k.seq)
LEFT JOIN LATERAL (
    SELECT seq_from, seq_to, digests FROM ledger_hashes
    WHERE epoch = k.epoch AND seq_from <= k.seq ORDER BY seq_from DESC LIMIT 1
) h ON h.seq_to >= k.seq
"""

_PRUNE = """
DELETE FROM ledger_hashes WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM ledger_hashes WHERE pruned < now() - $1::interval ORDER BY pruned LIMIT $2
)) AND NOT EXISTS (SELECT FROM delivery WHERE reread_from IS NOT NULL AND reread_ended IS NULL)
"""


async def known(connection: asyncpg.Connection, keys: Sequence[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
    """Return (epoch, seq) → the SHA-256 of the batch in the database, or its first 8 bytes; without those not kept.

    Raises:
        asyncpg.PostgresError
    """
    rows = await connection.fetch(_HASHES, [key[0] for key in keys], [key[1] for key in keys])
    return {(row["epoch"], row["seq"]): row["hash"] for row in rows if row["hash"] is not None}


async def prune(connection: asyncpg.Connection, stream_age_s_max: float) -> int:
    """Delete a portion of the hashes that no message of the stream needs; return how many rows.

    While the stream is read again none is deleted: what was lost is then stored anew, whatever its age.

    Raises:
        asyncpg.PostgresError
    """
    age = timedelta(seconds=stream_age_s_max + MARGIN_S)
    return int((await connection.execute(_PRUNE, age, PRUNED_MAX)).split()[-1])
