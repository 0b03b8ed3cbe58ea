"""What a machine was doing: state intervals, and `no_data` for what nothing is known of behind the last one."""

from datetime import UTC, datetime, timedelta
from typing import Final

from cncmon_api.causes import causes_of
from cncmon_api.database import Database
from cncmon_api.models import StateInterval, StateIntervals
from cncmon_core.states import NO_DATA

LIMIT_MAX: Final = 10_000
LIMIT_DEFAULT: Final = 1_000

# The first may have begun before the range: it is found by the key.
_SQL: Final = """
SELECT from_time, to_time, state, program, alarm,
    CASE WHEN undivided AND state = 'offline' THEN 'undivided' END AS cause
FROM state_intervals
WHERE machine_id = $1 AND from_time < $3 AND to_time > $2 AND from_time >= coalesce((
    SELECT from_time FROM state_intervals
    WHERE machine_id = $1 AND from_time <= $2 ORDER BY from_time DESC LIMIT 1
), $2)
ORDER BY from_time LIMIT $4
"""
_AS_THEY_ARE: Final = ("state", "program", "alarm", "cause")
_LAST_SQL: Final = "SELECT to_time FROM state_intervals WHERE machine_id = $1 ORDER BY from_time DESC LIMIT 1"


async def read_intervals(
    database: Database, machine_id: str, begin: datetime, end: datetime, limit: int, silent_after: timedelta
) -> StateIntervals:
    """Return the intervals of [begin, end), cut to it and to now. silent_after: when an edge counts as silent.

    There is `no_data` from the end of a machine's last interval on: no state is ever taken to last by silence.

    Raises:
        UnavailableError: the database can't answer.
    """
    end = max(begin, min(end, datetime.now(UTC)))
    rows = await database.fetch(_SQL, machine_id, begin, end, limit + 1)
    found = [
        StateInterval(max(row["from_time"], begin), min(row["to_time"], end), *(row[name] for name in _AS_THEY_ARE))
        for row in rows[:limit]
    ]
    next_from = rows[limit]["from_time"] if len(rows) > limit else None
    if next_from is None:
        last = await database.fetch(_LAST_SQL, machine_id)
        if last and last[0]["to_time"] < end:
            found.append(StateInterval(max(last[0]["to_time"], begin), end, NO_DATA, None, None))
    holes = [one for one in found if one.state == NO_DATA]
    if holes:
        causes = await causes_of(database, machine_id, [(one.from_, one.to) for one in holes], silent_after)
        for hole, cause in zip(holes, causes, strict=True):
            hole.cause = cause
    return StateIntervals(begin, end, found, next_from)
