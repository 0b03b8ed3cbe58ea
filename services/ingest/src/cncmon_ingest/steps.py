"""The mechanism of maintenance: steps that get their turns one after another, none of which can block the others.

A step that fails is logged with its reason, counted, and tried again after a growing pause; the next step has its turn
all the same. Steps outlive the connection: the one that broke it does not run first on the next.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import asyncpg

from cncmon_core import logs
from cncmon_core.backoff import Backoff
from cncmon_ingest import metrics
from cncmon_ingest.errors import DATABASE_ERRORS, translate

log = logs.get(__name__)

RETRY_S_MIN: Final = 1.0
RETRY_S_MAX: Final = 60.0
"""Pause after failures in a row: who has mended the database sees the effect within a minute."""

CLOSE_S_MAX: Final = 5.0

MORE: Final = 0.0
"""Returned by a step that has more to do: its next turn comes once every other step that is due had one."""


@dataclass
class Step:
    """One task of maintenance.

    `work` does a bounded part of it, in transactions of its own, and returns the pause until its next turn in seconds
    (`MORE`: none). What it has to remember belongs to it, not to the connection.
    """

    name: str
    """Value of the metrics' label `step`, and in the log."""
    work: Callable[[asyncpg.Connection], Awaitable[float]]
    due_s: float = -math.inf
    """From when on the monotonic clock allows its next turn."""
    backoff: Backoff = field(default_factory=lambda: Backoff(RETRY_S_MIN, RETRY_S_MAX))

    async def turn(self, connection: asyncpg.Connection) -> None:
        """Do a part of the work. The connection is terminated if it can't be used any more."""
        try:
            pause_s = await self.work(connection)
        except DATABASE_ERRORS as error:
            await self._fail(connection, str(translate(error)), usable=isinstance(error, asyncpg.PostgresError))
        except Exception as error:
            # This is the supervisor of the steps: a defect in one, or data that it can't compute, must not end the
            # others or the worker.
            log.exception("a defect in a step of maintenance", step=self.name)
            await self._fail(connection, f"{type(error).__name__}: {error}", usable=False)
        else:
            self.backoff.reset()
            self.due_s = time.monotonic() + pause_s

    async def _fail(self, connection: asyncpg.Connection, reason: str, *, usable: bool) -> None:
        retry_s = self.backoff.next_s()
        self.due_s = time.monotonic() + retry_s
        metrics.STEP_FAILURES.labels(self.name).inc()
        log.warning("a step of maintenance failed", step=self.name, reason=reason, retry_s=round(retry_s, 1))
        if usable and not connection.is_in_transaction():
            return
        # In order where that can be had: else the server goes on with what it was given, and keeps the session's locks.
        with contextlib.suppress(*DATABASE_ERRORS):
            await connection.close(timeout=CLOSE_S_MAX)
        connection.terminate()


async def run(connection: asyncpg.Connection, steps: Sequence[Step]) -> None:
    """Give each step its turns, the one first that waits longest; return once the connection can't be used any more."""
    for step in steps:
        metrics.STEP_FAILURES.labels(step.name)
    while True:
        for step in sorted(steps, key=lambda step: step.due_s):
            if step.due_s <= time.monotonic():
                await step.turn(connection)
            if connection.is_closed():
                return
        pause_s = min(step.due_s for step in steps) - time.monotonic()
        await asyncio.sleep(max(0.01, pause_s))
