"""The calm line that `up` and `demo` show while everything runs."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import msgspec

from cncmon_standalone import system
from cncmon_standalone.console import Progress
from cncmon_standalone.duration import show as show_duration
from cncmon_standalone.embedded.database import ERRORS as DATABASE_ERRORS
from cncmon_standalone.supervise.part import State
from cncmon_standalone.supervise.probes import http_get
from cncmon_standalone.supervise.supervisor import Supervisor

_STATES = ("running", "idle", "hold", "alarm", "offline", "no_data", "unknown")
_LINE_S = 1.0
_LINE_S_NO_TERMINAL = 10.0
_STORED = (
    "SELECT (SELECT coalesce(sum(stored), 0) FROM ledger) + (SELECT coalesce(sum(samples_stored), 0) FROM watermarks)"
    " + (SELECT coalesce(sum(samples_stored), 0) FROM folded_totals)"
)


@dataclass
class Line:
    """What the line is made of. `total_s`: how long it all lasts, where that is known; `extra` is put at its end."""

    plan: system.Plan
    total_s: float | None = None
    extra: Callable[[], str] = lambda: ""
    every_s: float | None = None
    began_s: float = field(default_factory=time.monotonic)


async def show(supervisor: Supervisor, progress: Progress, line: Line, seconds: float | None = None) -> None:
    """Keep the line up to date until the user asks to stop, or for so many seconds."""
    ends_s = None if seconds is None else time.monotonic() + seconds
    every_s = line.every_s or _LINE_S_NO_TERMINAL
    if progress.is_terminal:
        every_s = _LINE_S
    while not supervisor.stop_requested.is_set():
        left_s = every_s if ends_s is None else ends_s - time.monotonic()
        if left_s <= 0:
            return
        progress.status(await _text(supervisor, line))
        await supervisor.sleep(max(0, min(every_s, left_s if ends_s is None else ends_s - time.monotonic())))


async def _text(supervisor: Supervisor, line: Line) -> str:
    """Return how long, samples stored, machines by state, parts that are not running."""
    ran = show_duration(time.monotonic() - line.began_s)
    stored = await stored_samples(line.plan.cluster.dsn)
    found = [
        f"{ran} of {show_duration(line.total_s)}" if line.total_s else ran,
        "database does not answer" if stored is None else f"{stored:,} samples stored",
    ]
    machines = await machines_of(line.plan.api_port)
    states = Counter(machine["state"] or "unknown" for machine in machines or [])
    if machines is None:
        found.append("the API does not answer")
    else:
        found += [f"{states[state]} {state.replace('_', ' ')}" for state in _STATES if states[state]] or [
            "no machine yet"
        ]
    down = [r.part.name for r in supervisor.runners.values() if r.state not in (State.RUNNING, State.DONE)]
    if down:
        found.append("not running: " + ", ".join(down))
    return " · ".join(found) + line.extra()


async def stored_samples(dsn: str) -> int | None:
    """Return how many samples ingest has ever stored here, or None while the database doesn't answer."""
    try:
        connection = await asyncpg.connect(dsn, timeout=1)
        try:
            return int(await connection.fetchval(_STORED, timeout=1))
        finally:
            await connection.close(timeout=1)
    except DATABASE_ERRORS:
        return None


async def machines_of(api_port: int) -> list[dict[str, Any]] | None:
    """Return the machines as the API lists them, or None while it doesn't answer."""
    try:
        status, body = await http_get(api_port, "/api/v1/machines")
        answer = msgspec.json.decode(body)
        return list(answer["machines"]) if status == 200 else None
    except (OSError, TimeoutError, ValueError, msgspec.MsgspecError, KeyError, TypeError):
        return None
