"""The table `gaps`: declaring what is missing (rule B5), taking out what turns up after all (rule B4).

Both within the caller's transaction. Who declares has locked the table `watermarks` (`lock`), so that no worker is
between its ledger rows and its look at the gaps. Workers that take out of one gap at the same time are told apart by
whom `DELETE … RETURNING` gives the row: the other one looks again and finds the pieces.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple

import asyncpg

from cncmon_core.events import Gap as Declared
from cncmon_core.names import Origin
from cncmon_ingest import metrics, ranges
from cncmon_ingest.declarations import Epoch, Hole, Row, holes_of, split
from cncmon_ingest.ranges import Found, Gap, State

AT_ONCE_MAX: Final = 500
"""Ranges declared in one transaction: until it ends no worker gets to the watermarks."""

ROWS_MAX: Final = 20_000
"""Ledger rows, and as many gaps, that one transaction of declarations reads."""

WORK_MAX: Final = 200_000
"""Holes and gaps that all declarations of a transaction together look at: they may overlap."""

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

# Of each range no more than $4 ledger rows: what lies beyond the last of them is left for another transaction.
_ROWS = """
SELECT number, seq, base, base + stored + dead AS samples
FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) WITH ORDINALITY AS span (epoch, low, high, number), LATERAL (
    SELECT seq, base, stored, dead FROM ledger
    WHERE ledger.epoch = span.epoch AND seq BETWEEN span.low - 1 AND span.high + 1 ORDER BY seq LIMIT $4
) AS rows ORDER BY number, seq
"""

# The gap before each range, where it touches it, and no more than $4 of those that begin within or right behind it.
_NEAR = f"""
SELECT number, near.* FROM unnest($1::bigint[], $2::bigint[], $3::bigint[])
WITH ORDINALITY AS span (epoch, low, high, number), LATERAL (
    (SELECT {_COLUMNS} FROM gaps WHERE gaps.epoch = span.epoch AND seq_from < span.low ORDER BY seq_from DESC LIMIT 1)
    UNION ALL
    (SELECT {_COLUMNS} FROM gaps WHERE gaps.epoch = span.epoch AND seq_from BETWEEN span.low AND span.high + 1
     ORDER BY seq_from LIMIT $4)
) AS near WHERE near.seq_to >= span.low - 1 ORDER BY number, near.seq_from
"""  # noqa: S608 constant columns

_DECLARED_TO = """
UPDATE watermarks SET gaps_to = greatest(gaps_to, declared.seq)
FROM unnest($1::bigint[], $2::bigint[]) AS declared (epoch, seq) WHERE watermarks.epoch = declared.epoch
"""

_VOID = """
WITH shortened AS (
    UPDATE gaps SET seq_to = closed.seq,
        samples = CASE WHEN gaps.base + closed.samples IS NOT NULL THEN greatest(0, closed.samples - gaps.base) END
    FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS closed (epoch, seq, samples)
    WHERE gaps.epoch = closed.epoch AND gaps.state = 'abandoned' AND gaps.seq_from <= closed.seq
      AND gaps.seq_to > closed.seq
)
DELETE FROM gaps USING unnest($1::bigint[], $2::bigint[]) AS closed (epoch, seq)
WHERE gaps.epoch = closed.epoch AND gaps.state = 'abandoned' AND gaps.seq_from > closed.seq
"""


class Declaration(NamedTuple):
    """A range of batches that is declared missing, and the edge it is of."""

    gap: Declared
    origin: Origin


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


async def declare(
    connection: asyncpg.Connection, declarations: Sequence[Declaration], state: State = "declared"
) -> tuple[int, list[Declaration]]:
    """Enter what of the ranges is above the watermarks, in no ledger row and in no gap yet.

    Returns how many batches, and what is left to be declared in another transaction: each takes a few statements and a
    fraction of a second. Repeated, it changes nothing. What was `abandoned` and is declared by its agent becomes
    `declared`. The caller holds `lock`.
    """
    part, left = declarations[:AT_ONCE_MAX], [*declarations[AT_ONCE_MAX:]]
    known = await _read(connection, part)
    batches = work = 0
    for number, declaration in enumerate(part):
        if work > WORK_MAX:
            left += part[number:]
            break
        epoch = known[declaration.gap.epoch]
        gap, rest = epoch.within_reach(declaration.gap)
        if rest is not None:
            left.append(declaration._replace(gap=rest))
        if gap is not None:
            work += epoch.ranges.work(gap)
            batches += epoch.ranges.declare(gap, state, epoch.now)
    await _write(connection, known)
    metrics.GAP_BATCHES.labels(state).inc(batches)
    return batches, left


async def void(connection: asyncpg.Connection, closings: Sequence[tuple[int, int, int | None]]) -> None:
    """Forget what was abandoned above a seq: its agent says now that there never was such a batch.

    closings: (epoch, seq, samples of the epoch up to it or None), each epoch once. The caller holds `lock`.
    """
    await connection.execute(_VOID, *_columns(closings))


class _Known:
    """An epoch as read for declarations: of some spans, each up to a seq."""

    def __init__(self, seq: int, base: int | None, now: datetime) -> None:
        self.now = now
        self.before: list[Gap] = []
        self.holes: list[Hole] = []
        self.ranges = Epoch(seq, base, self.holes, [])
        self._spans: list[tuple[int, int]] = []

    def add(self, low: int, high: int, holes: Sequence[Hole], gaps: Sequence[Gap]) -> None:
        """Take in a span, which lies above those before it; a gap between two spans may touch both."""
        self._spans.append((low, high))
        self.holes += holes
        new = [gap for gap in gaps if not self.before or gap.low > self.before[-1].low]
        self.before += new
        self.ranges.gaps += new

    def within_reach(self, gap: Declared) -> tuple[Declared | None, Declared | None]:
        """Return what of a range was read, and what was not; None: nothing."""
        low = max(gap.seq_from, self.ranges.seq + 1)
        if low > gap.seq_to:
            return None, None
        _, reached = self._spans[bisect_right(self._spans, low, key=lambda span: span[0]) - 1]
        if reached >= gap.seq_to:
            return gap, None
        return (None, gap) if reached < low else split(gap, reached)


async def _read(connection: asyncpg.Connection, declarations: Sequence[Declaration]) -> dict[int, _Known]:
    by_epoch: dict[int, list[Declaration]] = {}
    for declaration in declarations:
        by_epoch.setdefault(declaration.gap.epoch, []).append(declaration)
    origins = [its[0].origin for its in by_epoch.values()]
    await connection.execute(
        "INSERT INTO watermarks (epoch, site, edge) SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[]) "
        "ON CONFLICT DO NOTHING",
        *(list(by_epoch), [origin.site for origin in origins], [origin.edge for origin in origins]),
    )
    known = {
        row["epoch"]: _Known(row["seq"], row["base"], row["now"])
        for row in await connection.fetch(
            "SELECT epoch, seq, base, now() FROM watermarks WHERE epoch = ANY($1)", list(by_epoch)
        )
    }
    spans = [
        (epoch, low, high)
        for epoch, its in by_epoch.items()
        for low, high in ranges.union((max(gap.seq_from, known[epoch].ranges.seq + 1), gap.seq_to) for gap, _ in its)
    ]
    if spans:
        await _read_spans(connection, spans, known)
    return known


async def _read_spans(
    connection: asyncpg.Connection, spans: Sequence[tuple[int, int, int]], known: Mapping[int, _Known]
) -> None:
    """Read what lies in spans, (epoch, low, high): all of each, or of each as much as is its share of what may be."""
    whole = sum(high - low + 3 for _, low, high in spans) <= 2 * ROWS_MAX
    each = 2 * ROWS_MAX if whole else max(2, ROWS_MAX // len(spans))
    ledger: list[list[Row]] = [[] for _ in spans]
    for number, *row in await connection.fetch(_ROWS, *_columns(spans), each):
        ledger[number - 1].append(Row(*row))
    near: list[list[Gap]] = [[] for _ in spans]
    for number, *row in await connection.fetch(_NEAR, *_columns(spans), each):
        near[number - 1].append(Gap(*row))
    for (epoch, low, high), rows, gaps in zip(spans, ledger, near, strict=True):
        reached = _reached(low, high, rows, gaps, each)
        holes = holes_of(low, reached, [row for row in rows if row.seq <= reached + 1])
        known[epoch].add(low, reached, holes, gaps)


def _reached(low: int, high: int, rows: Sequence[Row], gaps: Sequence[Gap], each: int) -> int:
    """Return up to which seq of a range everything was read: to its end, or to the last that was allowed."""
    if len(rows) == each:
        high = min(high, rows[-1].seq)
    if sum(gap.low >= low for gap in gaps) == each:
        high = min(high, gaps[-1].high)
    return high


async def _write(connection: asyncpg.Connection, known: Mapping[int, _Known]) -> None:
    old = [gap for each in known.values() for gap in each.before]
    new = [gap for each in known.values() for gap in each.ranges.gaps]
    kept = set(old) & set(new)
    if gone := [(gap.epoch, gap.low) for gap in old if gap not in kept]:
        await connection.fetch(_DELETE, *_columns(gone))
    await _insert(connection, [gap for gap in new if gap not in kept])
    if declared := [(epoch, each.ranges.declared_to) for epoch, each in known.items() if each.ranges.declared_to]:
        await connection.execute(_DECLARED_TO, *_columns(declared))


async def _insert(connection: asyncpg.Connection, gaps: Sequence[Gap]) -> None:
    if gaps:
        await connection.copy_records_to_table("gaps", records=gaps, columns=_COLUMNS.split(", "))


def _columns(keys: Iterable[tuple[int | None, ...]]) -> list[list[int | None]]:
    return [list(column) for column in zip(*keys, strict=True)]


def _gaps(rows: Iterable[asyncpg.Record]) -> list[Gap]:
    return [Gap(*row) for row in rows]
