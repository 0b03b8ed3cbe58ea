"""Whether samples are stamped with the time at which the machine answered."""

import json
from collections.abc import Iterable
from pathlib import Path

import asyncpg

from cncmon_simulator import poll_log


async def largest_error_s(dsn: str, polls: Iterable[Path]) -> float:
    """Return by how much a stored time is off the machine's own, at most, in seconds."""
    answered = {
        (record.machine_id, record.counter): record.t_ns / 1e9 for path in polls for record in poll_log.read(path)
    }
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch("SELECT time, machine_id, extras FROM sensor_data WHERE extras ? 'poll_counter'")
    finally:
        await connection.close()
    errors = (
        abs(row["time"].timestamp() - answered[row["machine_id"], json.loads(row["extras"])["poll_counter"]])
        for row in rows
    )
    return max(errors, default=0.0)
