"""The table `gaps`: declaring what is missing (rule B5), taking out what turns up after all (rule B4).

Both within the caller's transaction. Who declares has locked the table `watermarks` (`lock`), so that no worker is
between its ledger rows and its look at the gaps. Workers that take out of one gap at the same time are told apart by
whom `DELETE … RETURNING` gives the row: the other one looks again and finds the pieces.
"""

from collections.abc import Iterable, Mapping, Sequence

import asyncpg

from cncmon_core.events import SEQ_MAX
from cncmon_core.events import Gap as Declared
from cncmon_core.names import Origin
from cncmon_ingest import metrics, ranges
from cncmon_ingest.ranges import Found, Gap, State

Key = tuple[int, int]

_LOCK = "LOCK TABLE watermarks IN EXCLUSIVE MODE"
"""Stands in line with the workers' FOR SHARE. FOR UPDATE on the rows would wait behind every new sharer, for ever."""

_COLUMNS = "epoch, seq_from, seq_to, samples, base, reason, state, declared"

_HITS = """
SELECT DISTINCT gap.epoch, gap.seq_from FROM unnest($1::bigint[], $2::bigint[]) AS found (epoch, seq), LATERAL (
    SELECT epoch, seq_from, seq_to FROM gaps WHERE epoch = found.epoch AND seq_from <= found.seq
    ORDER BY seq_from DESC LIMIT 1
) AS gap WHERE gap.seq_to >= found.seq
"""

_DELETE = f"""
WITH locked AS (
    SELECT epoch, seq_from FROM gaps JOIN unnest($1::bigint[], $2::bigint[]) AS hit (epoch, seq_from)
    USING (epoch, seq_from) ORDER BY epoch, seq_from FOR UPDATE OF gaps
)
DELETE FROM gaps USING locked WHERE (gaps.epoch, gaps.seq_from) = (locked.epoch, locked.seq_from)
RETURNING {", ".join(f"gaps.{name}" for name in _COLUMNS.split(", "))}
"""  # noqa: S608 constant columns

# The seqs of a range that have no ledger row, as ranges, with the cumulative counts on both sides of each.
_HOLES = """
SELECT before + 1 AS low, seq - 1 AS high, base_before, base AS base_after FROM (
    SELECT seq, base, lag(seq) OVER sorted AS before, lag(base + stored + dead) OVER sorted AS base_before FROM (
        SELECT seq, base, stored, dead FROM ledger WHERE epoch = $1 AND seq BETWEEN $2::bigint - 1 AND $3::bigint + 1
        UNION ALL
        SELECT edge, NULL, NULL, NULL FROM unnest(ARRAY[$2::bigint - 1, $3::bigint + 1]) AS edge
        WHERE NOT EXISTS (SELECT FROM ledger WHERE epoch = $1 AND seq = edge)
    ) AS rows WINDOW sorted AS (ORDER BY seq)
) AS pairs WHERE seq - before > 1 ORDER BY low
"""


async def lock(connection: asyncpg.Connection) -> None:
    """Keep all other transactions away from the watermarks until this one ends; waits for its turn."""
    await connection.execute(_LOCK)


async def take_out(connection: asyncpg.Connection, batches: Mapping[Key, tuple[int | None, int]]) -> set[Key]:
    """Take batches out of the gaps they lie in and return which were in one.

    batches: (epoch, seq) → (samples of the epoch before it, samples in it).
    """
    taken: set[Key] = set()
    while left := sorted(set(batches) - taken):
        hits = await connection.fetch(_HITS, *_columns(left))
        if not hits:
            break
        for gap in _gaps(await connection.fetch(_DELETE, *_columns(tuple(hit) for hit in hits))):
            here = [key for key in left if key[0] == gap.epoch and gap.low <= key[1] <= gap.high]
            taken.update(here)
            await _insert(connection, ranges.without(gap, [Found(key[1], key[1], *batches[key]) for key in here]))
    return taken


async def declare(connection: asyncpg.Connection, gap: Declared, origin: Origin, state: State = "declared") -> int:
    """Enter what of a range is above the watermark, in no ledger row and in no gap yet; return how many batches.

    Said again, it changes nothing. What was `abandoned` and is declared by its agent becomes `declared`. The caller
    holds `lock`.
    """
    await connection.execute(
        "INSERT INTO watermarks (epoch, site, edge) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING", gap.epoch, *origin
    )
    watermark = await connection.fetchrow("SELECT seq, base, now() FROM watermarks WHERE epoch = $1", gap.epoch)
    if watermark is None:
        raise AssertionError("the row was made above, and rows of watermarks are never deleted")
    seq, base, now = watermark
    low, high = max(gap.seq_from, seq + 1), gap.seq_to
    if low > high:
        return 0
    holes = await connection.fetch(_HOLES, gap.epoch, low, high)
    # With the neighbours that only touch: a gap that grows stays one row.
    near = _gaps(
        await connection.fetch(
            f"SELECT {_COLUMNS} FROM gaps WHERE epoch = $1 AND seq_from <= $3 AND seq_to >= $2 ORDER BY seq_from",  # noqa: S608 constant columns
            *(gap.epoch, low - 1, high + 1),
        )
    )
    weaker = [old for old in near if old.state == "abandoned" and state != "abandoned"]
    stronger = [old for old in near if old not in weaker]
    missing = ranges.beside([(row["low"], row["high"]) for row in holes], [(old.low, old.high) for old in stronger])
    if not missing:
        return 0
    points = _points(gap, seq, base, holes, near)
    new = [
        Gap(gap.epoch, *part, samples, at, gap.reason, state, now)
        for part in missing
        for at, samples in [ranges.counted(*part, points)]
    ]
    if len(new) == 1 and new[0].samples is None:
        new[0] = new[0]._replace(samples=_remainder(gap, holes, stronger))
    left = [piece for old in weaker for piece in _cut(old, new)]
    await _replace(connection, near, ranges.joined(sorted([*new, *left, *stronger], key=lambda item: item.low)))
    await connection.execute(
        "UPDATE watermarks SET gaps_to = greatest(gaps_to, $2) WHERE epoch = $1", gap.epoch, missing[-1][1]
    )
    batches = sum(item.batches for item in new)
    metrics.GAP_BATCHES.labels(state).inc(batches)
    return batches


async def void(connection: asyncpg.Connection, epoch: int, above: int, samples: int) -> None:
    """Forget what was abandoned above a seq: its agent says now that there never was such a batch.

    samples: of the epoch up to that seq. The caller holds `lock`.
    """
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM gaps WHERE epoch = $1 AND seq_to > $2 AND state = 'abandoned'",  # noqa: S608 constant columns
        *(epoch, above),
    )
    for gap in _gaps(rows):
        rest = None if gap.base is None else max(0, samples - gap.base)
        kept = [gap._replace(high=above, samples=rest)] if gap.low <= above else []
        await _replace(connection, [gap], kept)


def _points(
    gap: Declared, seq: int, base: int | None, holes: Sequence[asyncpg.Record], near: Sequence[Gap]
) -> dict[int, int]:
    """Return seq → samples of the epoch before it, from all that is known around a declaration."""
    known = [(old.low, old.base) for old in near] + [(old.high + 1, old.end) for old in near]
    known += [(gap.seq_from, gap.base), (gap.seq_to + 1, gap.end), (seq + 1, base)]
    # Last, and so before all others: what came with the batches themselves.
    known += [(row["low"], row["base_before"]) for row in holes]
    known += [(row["high"] + 1, row["base_after"]) for row in holes]
    points = {at: samples for at, samples in known if samples is not None}
    if gap.samples is not None and gap.seq_from in points:
        points.setdefault(gap.seq_to + 1, points[gap.seq_from] + gap.samples)
    # An edge may claim anything; what the database could not add up is as good as unknown.
    return {at: samples for at, samples in points.items() if samples <= SEQ_MAX}


def _remainder(gap: Declared, holes: Sequence[asyncpg.Record], known: Iterable[Gap]) -> int | None:
    """Return the samples of a declared range less those of the gaps in it; None: something else is in it, too."""
    if [(row["low"], row["high"]) for row in holes] != [(gap.seq_from, gap.seq_to)]:
        return None
    left = gap.samples
    for old in known:
        if old.low <= gap.seq_to and old.high >= gap.seq_from:
            within = gap.seq_from <= old.low and old.high <= gap.seq_to
            left = None if left is None or old.samples is None or not within else max(0, left - old.samples)
    return left


def _cut(old: Gap, new: Iterable[Gap]) -> list[Gap]:
    found = [
        Found(max(item.low, old.low), min(item.high, old.high), item.base, item.samples or 0)
        for item in new
        if item.low <= old.high and item.high >= old.low
    ]
    return ranges.without(old, found)


async def _replace(connection: asyncpg.Connection, old: Sequence[Gap], new: Sequence[Gap]) -> None:
    gone = [gap for gap in old if gap not in new]
    if gone:
        await connection.fetch(_DELETE, *_columns((gap.epoch, gap.low) for gap in gone))
    await _insert(connection, [gap for gap in new if gap not in old])


async def _insert(connection: asyncpg.Connection, gaps: Sequence[Gap]) -> None:
    if gaps:
        await connection.copy_records_to_table("gaps", records=gaps, columns=_COLUMNS.split(", "))


def _columns(keys: Iterable[Key | tuple[int, ...]]) -> list[list[int]]:
    return [list(column) for column in zip(*keys, strict=True)]


def _gaps(rows: Iterable[asyncpg.Record]) -> list[Gap]:
    return [Gap(*row) for row in rows]
