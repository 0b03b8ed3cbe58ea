"""What a machine was doing: state intervals, and `offline` for what nothing is known of behind the last one."""

from datetime import UTC, datetime
from typing import Final

from cncmon_api.database import Database
from cncmon_api.models import StateInterval, StateIntervals

LIMIT_MAX: Final = 10_000
LIMIT_DEFAULT: Final = 1_000

# The first may have begun before the range: it is found by the key.
_SQL: Final = """
SELECT from_time, to_time, state, program, alarm FROM state_intervals
WHERE machine_id = $1 AND from_time < $3 AND to_time > $2 AND from_time >= coalesce((
    SELECT from_time FROM state_intervals
    WHERE machine_id = $1 AND from_time <= $2 ORDER BY from_time DESC LIMIT 1
), $2)
ORDER BY from_time LIMIT $4
"""
_LAST_SQL: Final = "SELECT to_time FROM state_intervals WHERE machine_id = $1 ORDER BY from_time DESC LIMIT 1"


async def read_intervals(
    database: Database, machine_id: str, begin: datetime, end: datetime, limit: int
) -> StateIntervals:
    """Return the intervals of [begin, end), cut to it and to now.

    A machine is `offline` from the end of its last interval on: no state is ever taken to last by silence.

    Raises:
        UnavailableError: the database can't answer.
    """
    end = max(begin, min(end, datetime.now(UTC)))
    rows = await database.fetch(_SQL, machine_id, begin, end, limit + 1)
    found = [
        StateInterval(
            max(row["from_time"], begin), min(row["to_time"], end), row["state"], row["program"], row["alarm"]
        )
        for row in rows[:limit]
    ]
    if len(rows) > limit:
        return StateIntervals(begin, end, found, rows[limit]["from_time"])
    last = await database.fetch(_LAST_SQL, machine_id)
    if last and last[0]["to_time"] < end:
        since = max(last[0]["to_time"], begin)
        if found and found[-1].state == "offline":
            found[-1].to = end
        else:
            found.append(StateInterval(since, end, "offline", None, None))
    return StateIntervals(begin, end, found, None)
