"""Computing again what is out of date: state intervals and rollups of dirty ranges, late data like live data.

One round is one transaction of the leader's. It reads marks, then the samples (so with all of those that the marks
speak of), writes what follows from them, and deletes just the marks that it had read (rule D7).
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import asyncpg

from cncmon_core import logs
from cncmon_ingest import metrics, rollup_sql, rows
from cncmon_ingest.errors import speaks_of_data
from cncmon_ingest.intervals import Interval, Window, changes, filled, merged, replaced
from cncmon_ingest.partitions import REMEMBERED_MAX, ensure_partition

log = logs.get(__name__)

MARKS_MAX: Final = 2000
MARK_MAX: Final = (1 << 63) - 1
"""As large as the id of a mark can be."""
ROUND_S: Final = 1.0
"""How long a round is to take: the shorter, the less it can lose; the longer, the more marks are of the same ranges."""
BUDGET_MIN: Final = 100
BUDGET_MAX: Final = 20_000
"""Machines × ticks of one round: 100 samples each at 10 Hz."""

_TICK: Final = timedelta(microseconds=rows.TICK_US)


class Range(NamedTuple):
    """[begins, ends) of a machine."""

    machine_id: str
    begins: datetime
    ends: datetime


class Round(NamedTuple):
    """What one round did. left: whether there may be more to do."""

    marks: int
    ranges: list[Range]
    left: bool


class _Mark(NamedTuple):
    id: int
    machine_ids: list[str]
    begins: datetime
    ends: datetime


class Rollups:
    """Computes in rounds whose size follows from how long they take."""

    def __init__(self, stale_after: timedelta) -> None:
        self._stale_after = stale_after
        self._budget = BUDGET_MIN * 10
        self._made: set[tuple[str, datetime]] = set()
        """Table and day whose partition was made or found; a round looks again within its transaction."""

    async def catch_up(self, connection: asyncpg.Connection, last: int = MARK_MAX) -> Round:
        """Do one round, of marks up to the id `last`.

        Newest data first: what people look at is up to date while a backlog of days is being computed.

        Raises:
            asyncpg.PostgresError: nothing was done.
        """
        began_s = time.perf_counter()
        try:
            done = await self._round(connection, last, self._budget, MARKS_MAX)
        except asyncpg.PostgresError as error:
            if not speaks_of_data(error):
                raise
            done = await self._one_by_one(connection, last)
        took_s = time.perf_counter() - began_s
        if done.marks:
            metrics.ROLLUP_SECONDS.observe(took_s)
            metrics.ROLLUP_RANGES.inc(len(done.ranges))
            if took_s > ROUND_S:
                self._budget = max(BUDGET_MIN, self._budget * 3 // 4)
            elif done.left:
                self._budget = min(BUDGET_MAX, self._budget * 4 // 3)
        return done

    async def _one_by_one(self, connection: asyncpg.Connection, last: int) -> Round:
        """Some mark can't be computed: find it and put it aside, so that it keeps nothing else waiting."""
        try:
            return await self._round(connection, last, BUDGET_MIN, 1)
        except asyncpg.PostgresError as error:
            if not speaks_of_data(error):
                raise
            log.error("a range can't be computed and is put aside", error=str(error))
            metrics.ROLLUP_FAILURES.inc()
            await connection.execute(
                "UPDATE dirty_ranges SET failure = $1 WHERE id = (SELECT id FROM dirty_ranges "
                "WHERE failure IS NULL AND id <= $2 ORDER BY to_time DESC, id LIMIT 1)",
                *(str(error), last),
            )
            return Round(1, [], left=True)

    async def _round(self, connection: asyncpg.Connection, last: int, budget: int, marks_max: int) -> Round:
        await self._make_partitions(connection, (await _plan(connection, last, budget, marks_max)).ranges)
        async with connection.transaction():
            # Once more, so that the samples are read after the marks.
            marks, taken, ranges = await _plan(connection, last, budget, marks_max)
            if not taken:
                return Round(0, [], left=False)
            await recompute(connection, ranges, self._stale_after)
            await _forget(connection, marks, taken)
        whole = taken == marks and len(marks) < marks_max
        return Round(len(taken), ranges, left=not whole)

    async def _make_partitions(self, connection: asyncpg.Connection, ranges: Sequence[Range]) -> None:
        """Make the partitions that a round needs, each in a transaction of its own: late data may be of many days."""
        for table, width_s, _ in rollup_sql.LEVELS:
            for day in _days_of(coalesced(_widened(ranges, timedelta(seconds=width_s)))):
                if (table, day) not in self._made:
                    await ensure_partition(connection, table, day)
                    self._made.add((table, day))
        if len(self._made) > REMEMBERED_MAX:
            self._made.clear()


class _Plan(NamedTuple):
    """The marks that there are, what of them one round takes, and the ranges that this makes."""

    marks: list[_Mark]
    taken: list[_Mark]
    ranges: list[Range]


async def _plan(connection: asyncpg.Connection, last: int, budget: int, marks_max: int) -> _Plan:
    marks = [
        _Mark(*row)
        for row in await connection.fetch(
            "SELECT id, machine_ids, from_time, to_time FROM dirty_ranges WHERE failure IS NULL "
            "AND id <= $2 ORDER BY to_time DESC, id LIMIT $1",
            *(marks_max, last),
        )
    ]
    taken = list(_within(marks, budget))
    if not taken:
        return _Plan(marks, [], [])
    floor = await connection.fetchval(
        "SELECT nullif(dropped_to, '-infinity') FROM storage WHERE name = 'sensor_data'"
    ) or datetime.min.replace(tzinfo=UTC)
    ranges = coalesced(
        Range(machine_id, max(mark.begins, floor), mark.ends)
        for mark in taken
        for machine_id in mark.machine_ids
        if mark.ends > floor
    )
    return _Plan(marks, taken, ranges)


class Waiting(NamedTuple):
    """Marks that wait to be computed, those that can't be, and the reason of one of these."""

    marks: int
    aside: int
    failure: str | None


async def waiting(connection: asyncpg.Connection) -> Waiting:
    """Return what is out of date.

    Raises:
        asyncpg.PostgresError
    """
    row = await connection.fetchrow(
        "SELECT count(*) FILTER (WHERE failure IS NULL) AS marks, count(failure) AS aside, "
        "max(failure) AS failure FROM dirty_ranges"
    )
    if row is None:
        raise AssertionError("an aggregate is always one row")
    return Waiting(*row)


async def recompute(connection: asyncpg.Connection, ranges: Sequence[Range], stale_after: timedelta) -> None:
    """Compute state intervals and rollups of ranges in whole ticks, disjoint for each machine, from the samples.

    Within the caller's transaction.
    """
    if not ranges:
        return
    # The states of what lies around a range may be others now, too.
    ranges = coalesced([*ranges, *await _states(connection, ranges, stale_after)])
    for table, width_s, statement in rollup_sql.LEVELS:
        ranges = coalesced(_widened(ranges, timedelta(seconds=width_s)))
        # Made before (`_make_partitions`), but for what changes of states have added. A statement of its own: one
        # can't write to a partition that it makes.
        await connection.execute(
            "SELECT ensure_partition($1, moment) FROM unnest($2::timestamptz[]) AS moment", table, _days_of(ranges)
        )
        await connection.execute(statement, *_columns(ranges))


async def _states(connection: asyncpg.Connection, ranges: Sequence[Range], stale_after: timedelta) -> list[Range]:
    """Compute state intervals; return the ticks, within the ranges or around them, whose states are others now."""
    windows: dict[str, list[Window]] = {}
    for row in await connection.fetch(rollup_sql.NEIGHBOURS, *_columns(ranges)):
        machine_id, begins, _ = ranges[row["number"] - 1]
        behind: list[datetime] = row["behind"]
        window = Window(row["before"] or begins, behind[-1] if len(behind) == 3 else None)
        windows.setdefault(machine_id, []).append(window)
    flat = [(machine_id, window) for machine_id, some in windows.items() for window in merged(some)]
    columns = [name for name, _ in flat], [w.begins for _, w in flat], [w.ends for _, w in flat]
    runs: dict[int, list[Interval]] = {}
    for row in await connection.fetch(rollup_sql.RUNS, *columns, stale_after, min(stale_after, _TICK)):
        runs.setdefault(row["number"], []).append(Interval(*tuple(row)[1:]))
    anew: dict[str, list[Interval]] = {}
    for number, (machine_id, window) in enumerate(flat, 1):
        anew.setdefault(machine_id, []).extend(filled(runs.get(number, []), window))
    known: dict[str, list[Interval]] = {}
    for row in await connection.fetch(rollup_sql.KNOWN, *columns):
        known.setdefault(row["machine_id"], []).append(Interval(*tuple(row)[1:]))
    after = {
        machine_id: replaced(known.get(machine_id, []), merged(windows[machine_id]), anew[machine_id])
        for machine_id in windows
    }
    await _write_states(connection, known, after)
    changed = (
        Range(machine_id, begins, ends)
        for machine_id, intervals in after.items()
        for begins, ends in changes(known.get(machine_id, []), intervals)
    )
    return list(_widened(changed, _TICK))


async def _write_states(
    connection: asyncpg.Connection, before: dict[str, list[Interval]], after: dict[str, list[Interval]]
) -> None:
    """Write just what has changed."""
    gone, new = [], []
    for machine_id, intervals in after.items():
        had, has = set(before.get(machine_id, [])), set(intervals)
        gone += [(machine_id, interval.begins) for interval in had - has]
        new += [(machine_id, *interval) for interval in has - had]
    if gone:
        await connection.execute(rollup_sql.DELETE_STATES, *map(list, zip(*gone, strict=True)))
    if new:
        await connection.execute(rollup_sql.INSERT_STATES, *map(list, zip(*new, strict=True)))


async def _forget(connection: asyncpg.Connection, read: Sequence[_Mark], taken: Sequence[_Mark]) -> None:
    """Delete the marks that were taken; of one that was too much for one round, leave what was not."""
    whole = {mark.id: mark for mark in read}
    done = [mark.id for mark in taken if mark == whole[mark.id]]
    await connection.execute("DELETE FROM dirty_ranges WHERE id = ANY($1)", done)
    for mark in taken:
        if mark != whole[mark.id]:
            await connection.execute("UPDATE dirty_ranges SET to_time = $2 WHERE id = $1", mark.id, mark.begins)


def _within(marks: Iterable[_Mark], budget: int) -> Iterator[_Mark]:
    """Iterate over as many marks as the budget (machines × ticks) is enough for; at least a part of the first."""
    left = budget
    for mark in marks:
        ticks = -(-(mark.ends - mark.begins) // _TICK)
        if ticks * len(mark.machine_ids) <= left:
            left -= ticks * len(mark.machine_ids)
            yield mark
            continue
        if left == budget:
            most = max(1, budget // len(mark.machine_ids))
            yield mark if ticks <= most else mark._replace(begins=mark.ends - most * _TICK)
        return


def coalesced(ranges: Iterable[Range]) -> list[Range]:
    """Return ranges with those of a machine that overlap or meet made into one."""
    found: list[Range] = []
    for machine_id, begins, ends in sorted(ranges):
        if found and found[-1].machine_id == machine_id and begins <= found[-1].ends:
            if ends > found[-1].ends:
                found[-1] = found[-1]._replace(ends=ends)
        else:
            found.append(Range(machine_id, begins, ends))
    return found


def _floor(moment: datetime, width: timedelta = _TICK) -> datetime:
    return moment - (moment - rows.EPOCH) % width


def _widened(ranges: Iterable[Range], width: timedelta) -> Iterator[Range]:
    """Iterate over ranges made whole buckets of a width."""
    for machine_id, begins, ends in ranges:
        yield Range(machine_id, _floor(begins, width), ends + (rows.EPOCH - ends) % width)


def _days_of(ranges: Iterable[Range]) -> list[datetime]:
    day = timedelta(days=1)
    days = set()
    for _, begins, ends in ranges:
        moment = _floor(begins, day)
        while moment < ends:
            days.add(moment)
            moment += day
    return sorted(days)


def _columns(ranges: Sequence[Range]) -> tuple[list[str], list[datetime], list[datetime]]:
    return [r.machine_id for r in ranges], [r.begins for r in ranges], [r.ends for r in ranges]
