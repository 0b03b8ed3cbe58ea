"""Compares three records that know nothing of one another: the simulator's answers, the agent's accepted, the table."""

import json
import math
from collections import Counter
from datetime import UTC
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

from cncmon_simulator import poll_log

Key = tuple[str, int]


class Found(NamedTuple):
    """What the comparison found; keys are (machine, poll counter)."""

    accepted: int
    stored: int
    lost: list[Key]
    duplicated: list[Key]
    mismatched: list[tuple[Key, str]]


async def compare(database: asyncpg.Connection, accepted_log: Path, polls: Path) -> Found:
    """Compare what an agent accepted with what is stored, and every stored field with what the controller answered."""
    answered = {(record.machine_id, record.counter): record.values for record in poll_log.read(polls)}
    accepted = [
        (machine_id, counter)
        for line in accepted_log.read_text().splitlines()
        for machine_id, counter, _time in json.loads(line).get("samples", ())
        if counter is not None
    ]
    rows = await database.fetch("SELECT * FROM sensor_data WHERE machine_state IS DISTINCT FROM 'offline'")
    stored: Counter[Key] = Counter()
    mismatched: list[tuple[Key, str]] = []
    for row in rows:
        fields = dict(row) | json.loads(row["extras"])
        key = (row["machine_id"], fields["poll_counter"])
        stored[key] += 1
        assert row["time"].tzinfo in (UTC, row["time"].tzinfo)
        mismatched += [(key, name) for name, value in answered[key].items() if not _same(fields.get(name), value)]
    return Found(
        accepted=len(accepted),
        stored=len(rows),
        lost=[key for key in accepted if not stored[key]],
        duplicated=[key for key, count in stored.items() if count > 1],
        mismatched=mismatched,
    )


def _same(found: Any, value: Any) -> bool:
    if isinstance(value, float) or isinstance(found, float):
        return found is not None and math.isclose(found, value, rel_tol=1e-9, abs_tol=1e-12)
    return bool(found == value)
