"""Marks of what has to be computed again: written in the transaction that stores the samples (rule B1)."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

import asyncpg

from cncmon_ingest import rows
from cncmon_ingest.decode import Decoded


async def mark(connection: asyncpg.Connection, messages: Sequence[Decoded]) -> None:
    """Mark the ticks and machines of samples as out of date, within the caller's transaction.

    What lies in the same ticks becomes one mark, so that live samples of a hundred machines are one and not a hundred.
    """
    # Most messages lie in the same ticks: their runs are looked for once.
    alike: dict[tuple[int, ...], set[str]] = {}
    for message in messages:
        if message.packed:
            alike.setdefault(tuple(message.ticks), set()).update(message.machine_ids)
    marks: dict[tuple[int, int], set[str]] = {}
    for ticks, machines in alike.items():
        for run in runs(ticks):
            marks.setdefault(run, set()).update(machines)
    if marks:
        await connection.executemany(
            "INSERT INTO dirty_ranges (machine_ids, from_time, to_time) VALUES ($1, $2, $3)",
            [
                (sorted(machines), rows.beginning(first), rows.beginning(end))
                for (first, end), machines in marks.items()
            ],
        )


async def mark_hours(connection: asyncpg.Connection, since: datetime, until: datetime) -> int:
    """Mark the hours of [since, until) in which machines have samples; return how many marks that are.

    An hour of a machine each, so that no round is long.
    """
    done: str = await connection.execute(
        """
        INSERT INTO dirty_ranges (machine_ids, from_time, to_time)
        SELECT ARRAY[m.machine_id], hour, hour + INTERVAL '1 hour'
        FROM machines m
        CROSS JOIN LATERAL (
            SELECT min(time) AS first, max(time) AS last FROM sensor_data
            WHERE machine_id = m.machine_id AND time >= $1 AND time < $2
        ) AS span
        CROSS JOIN LATERAL
            generate_series(date_bin('1 hour', span.first, '2000-01-01 00:00:00+00'), span.last, '1 hour') AS hour
        WHERE EXISTS (
            SELECT FROM sensor_data s
            WHERE s.machine_id = m.machine_id AND s.time >= hour AND s.time < hour + INTERVAL '1 hour'
        )
        """,
        *(since, until),
    )
    return int(done.split()[-1])


def runs(ticks: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Iterate over ticks as [first, end) of those that follow one another."""
    first = end = None
    for tick in sorted(ticks):
        if tick != end:
            if first is not None and end is not None:
                yield first, end
            first = tick
        end = tick + 1
    if first is not None and end is not None:
        yield first, end
