"""The books: for each epoch, stored + dead + gaps = accepted, in batches and in samples.

Accepted is what the edge says, in its closing of the epoch or its last heartbeat, or what its batches' cumulative
counts say where these reach further. What is missing of an epoch that its edge still has, or that an edge which is away
had last, is on its way; what is missing of any other does not balance, nor does anything that is there twice.
"""

from datetime import datetime, timedelta

import asyncpg
import msgspec

# One statement, and so one moment.
_BOOKS = """
WITH held AS (
    SELECT epoch, count(*) FILTER (WHERE disposition = 'stored') AS stored,
           count(*) FILTER (WHERE disposition = 'dead') AS dead, sum(stored) AS samples, sum(dead) AS samples_dead,
           max(seq) AS top
    FROM ledger GROUP BY epoch
), missing AS (
    SELECT epoch, sum(seq_to - seq_from + 1) AS batches, sum(samples) AS samples,
           sum(seq_to - seq_from + 1) FILTER (WHERE samples IS NULL) AS uncounted, max(seq_to) AS top,
           sum(seq_to - seq_from + 1) FILTER (WHERE state = 'passed') AS passed
    FROM gaps GROUP BY epoch
), last AS (
    SELECT l.epoch, l.base + l.stored + l.dead AS samples FROM ledger l
    JOIN held ON (l.epoch, l.seq) = (held.epoch, held.top)
), under AS (
    SELECT l.epoch, count(*) AS batches FROM ledger l JOIN watermarks w USING (epoch) WHERE l.seq <= w.seq GROUP BY 1
), beyond AS (
    SELECT l.epoch, count(*) AS batches, sum(l.stored + l.dead) AS samples FROM ledger l
    JOIN watermarks w USING (epoch) WHERE l.seq > greatest(w.closed_seq, w.seq) GROUP BY 1
)
SELECT epoch, coalesce(e.site, w.site) AS site, coalesce(e.edge, w.edge) AS edge,
    coalesce(w.seq, 0) AS watermark, coalesce(fold.seq, 0) AS folded,
    fold.epoch IS NOT NULL AS came_back, w.base, CASE WHEN f.epoch IS NULL THEN w.closed_seq END AS closed_seq,
    w.closed_samples, f.epoch IS NOT NULL AS forked,
    CASE WHEN f.epoch IS NOT NULL THEN
        (SELECT count(*) FROM dead_letters d WHERE d.reason = 'identity_conflict' AND d.identity LIKE epoch || ':%')
    ELSE 0 END AS conflicts,
    coalesce(w.batches_stored, 0) + coalesce(held.stored, 0) AS stored,
    coalesce(w.batches_dead, 0) + coalesce(held.dead, 0) AS dead,
    coalesce(w.batches_stored + w.batches_dead, 0) + coalesce(under.batches, 0) + coalesce(missing.passed, 0)
        AS under_watermark,
    coalesce(w.samples_stored, 0) + coalesce(held.samples, 0) AS samples_stored,
    coalesce(w.samples_dead, 0) + coalesce(held.samples_dead, 0) AS samples_dead,
    coalesce(held.top, 0) AS ledger_top, last.samples AS ledger_samples,
    coalesce(missing.batches, 0) AS gap_batches, coalesce(missing.samples, 0) AS gap_samples,
    coalesce(missing.uncounted, 0) AS gap_uncounted, coalesce(missing.top, 0) AS gap_top,
    coalesce(beyond.batches, 0) AS beyond_batches, coalesce(beyond.samples, 0) AS beyond_samples,
    e.last_seq, e.accepted_samples, e.listed, edges.received, now() AS now
FROM watermarks w FULL JOIN edge_epochs e USING (epoch)
LEFT JOIN held USING (epoch) LEFT JOIN missing USING (epoch) LEFT JOIN last USING (epoch)
LEFT JOIN under USING (epoch) LEFT JOIN beyond USING (epoch) LEFT JOIN folded_epochs fold USING (epoch)
LEFT JOIN forked_epochs f USING (epoch)
LEFT JOIN edges ON (edges.site, edges.edge) = (coalesce(e.site, w.site), coalesce(e.edge, w.edge))
WHERE w.epoch IS NOT NULL OR fold.epoch IS NULL
ORDER BY site, edge, epoch
"""

_FOLDED = """
SELECT site, edge, epochs, batches_stored, batches_dead, samples_stored, samples_dead FROM folded_totals
"""


class Account(msgspec.Struct):
    """One epoch. accepted… None: nobody says. pending_…: on their way. problem: why it does not balance; None: it does.

    gaps_uncounted: batches in gaps of which nobody knows how many samples they held; samples can't be balanced then.
    forked: two agents publish under it, and count apart: its samples can't be balanced either. conflicts: batches of
    the one for which the other's of the same seq is stored; they are dead letters, and in none of the other numbers.
    """

    epoch: int
    site: str
    edge: str
    accepted_batches: int
    accepted_samples: int | None
    stored_batches: int
    stored_samples: int
    dead_batches: int
    dead_samples: int
    gap_batches: int
    gap_samples: int
    gaps_uncounted: int
    pending_batches: int = 0
    pending_samples: int | None = 0
    forked: bool = False
    conflicts: int = 0
    problem: str | None = None


class Books(msgspec.Struct):
    """All epochs together; single ones where they don't balance, or where something is still on its way."""

    balanced: bool
    epochs: int
    accepted_batches: int
    stored_batches: int
    dead_batches: int
    gap_batches: int
    pending_batches: int
    stored_samples: int
    dead_samples: int
    gap_samples: int
    unbalanced: list[Account]
    pending: list[Account]


async def reconcile(connection: asyncpg.Connection, grace: timedelta, edge: tuple[str, str] | None = None) -> Books:
    """Return the books as they stand now. grace: as for abandoning an epoch. edge: of this one alone, (site, edge).

    Raises:
        asyncpg.PostgresError
    """
    # One snapshot: an epoch that is folded meanwhile is in the one or the other.
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        rows = await connection.fetch(_BOOKS)
        sums = await connection.fetch(_FOLDED)
    folded = [row for row in sums if edge is None or (row["site"], row["edge"]) == edge]
    # What comes after what was folded of an epoch is an account of its own, and no other epoch.
    again = sum(row["came_back"] for row in rows if edge is None or (row["site"], row["edge"]) == edge)
    accounts = [_account(row, grace) for row in rows if edge is None or (row["site"], row["edge"]) == edge]
    unbalanced = [account for account in accounts if account.problem is not None]
    return Books(
        balanced=not unbalanced,
        epochs=len(accounts) - again + sum(row["epochs"] for row in folded),
        accepted_batches=sum(account.accepted_batches for account in accounts)
        + sum(row["batches_stored"] + row["batches_dead"] for row in folded),
        stored_batches=sum(account.stored_batches for account in accounts)
        + sum(row["batches_stored"] for row in folded),
        dead_batches=sum(account.dead_batches for account in accounts) + sum(row["batches_dead"] for row in folded),
        gap_batches=sum(account.gap_batches for account in accounts),
        pending_batches=sum(account.pending_batches for account in accounts),
        stored_samples=sum(account.stored_samples for account in accounts)
        + sum(row["samples_stored"] for row in folded),
        dead_samples=sum(account.dead_samples for account in accounts) + sum(row["samples_dead"] for row in folded),
        gap_samples=sum(account.gap_samples for account in accounts),
        unbalanced=unbalanced,
        pending=[account for account in accounts if account.pending_batches],
    )


def _account(row: asyncpg.Record, grace: timedelta) -> Account:
    batches, samples = _accepted(row)
    if row["folded"]:
        # Of an epoch that came back, what lies above the part that is in its edge's sum. Nobody knows its samples.
        batches, samples = max(0, batches - row["folded"]), None
    account = Account(
        epoch=row["epoch"],
        site=row["site"],
        edge=row["edge"],
        accepted_batches=batches,
        accepted_samples=samples,
        stored_batches=row["stored"],
        stored_samples=int(row["samples_stored"]),
        dead_batches=row["dead"],
        dead_samples=int(row["samples_dead"]),
        gap_batches=int(row["gap_batches"]),
        gap_samples=int(row["gap_samples"]),
        gaps_uncounted=int(row["gap_uncounted"]),
        forked=row["forked"],
        conflicts=row["conflicts"],
    )
    missing = batches - account.stored_batches - account.dead_batches - account.gap_batches
    account.problem = _problem(account, row, missing)
    if account.problem is None and missing > 0:
        if not _on_its_way(row, grace):
            account.problem = f"{missing} batches are missing: its edge has them no more, and they are no gap"
        else:
            account.pending_batches = missing
            account.pending_samples = _rest(account)
    return account


def _accepted(row: asyncpg.Record) -> tuple[int, int | None]:
    """Return how many batches and samples were accepted. Every seq up to the highest known was, less what is void."""
    if row["closed_seq"] is not None:
        # Above a closing nothing was accepted, except what the stream had all the same.
        batches = max(row["closed_seq"], row["watermark"]) + row["beyond_batches"]
        samples = row["closed_samples"] if row["closed_seq"] >= row["watermark"] else row["base"]
        # An epoch that an earlier version has begun to count has events among its samples.
        uncounted = samples is None or (row["watermark"] > 0 and row["base"] is None)
        return batches, None if uncounted else int(samples + row["beyond_samples"])
    if row["last_seq"] is None and not row["stored"] + row["dead"]:
        # Known from gaps alone, such as those of samples that never got a time: nothing says that there was more.
        return int(row["gap_batches"]), int(row["gap_samples"])
    tops = [
        (row["last_seq"] or 0, row["accepted_samples"]),
        (row["watermark"], row["base"]),
        (row["ledger_top"], row["ledger_samples"]),
        (row["gap_top"], None),
    ]
    highest = max(seq for seq, _ in tops)
    if row["forked"]:
        return highest, None
    return highest, next((int(samples) for seq, samples in tops if seq == highest and samples is not None), None)


def _problem(account: Account, row: asyncpg.Record, missing: int) -> str | None:
    under = int(row["under_watermark"]) - (row["watermark"] - row["folded"])
    if under:
        said = "more" if under > 0 else "fewer"
        return f"{abs(under)} batches {said} than its watermark {row['watermark']} says"
    if missing < 0:
        return f"{-missing} batches more than were accepted"
    rest = _rest(account)
    if rest is not None and (rest < 0 or (rest > 0 and missing == 0)):
        return f"{abs(rest)} samples {'more' if rest < 0 else 'fewer'} than were accepted"
    return None


def _rest(account: Account) -> int | None:
    """Return the samples that are neither stored nor dead nor in a gap; None where that can't be told."""
    if account.accepted_samples is None or account.gaps_uncounted:
        return None
    return account.accepted_samples - account.stored_samples - account.dead_samples - account.gap_samples


def _on_its_way(row: asyncpg.Record, grace: timedelta) -> bool:
    """Whether what is missing may still come: the edge has it, or has not been heard of since, or there is time yet."""
    listed: datetime | None = row["listed"]
    received: datetime | None = row["received"]
    return listed is None or received is None or received - listed <= grace
