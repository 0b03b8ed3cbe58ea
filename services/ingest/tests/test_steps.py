"""Maintenance in steps: whatever becomes of one, the others have their turns."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise

import asyncpg
import pytest

from cncmon_ingest import metrics
from cncmon_ingest.maintenance import Maintainer, steps_of
from cncmon_ingest.settings import IngestSettings
from cncmon_ingest.steps import MORE, Step
from testkit.waiting import until


async def refused(connection: asyncpg.Connection) -> float:
    return float(await connection.fetchval("SELECT 1 / 0"))


async def leaves_a_transaction(connection: asyncpg.Connection) -> float:
    await connection.execute("BEGIN")
    return float(await connection.fetchval("SELECT 1 / 0"))


async def breaks_the_connection(connection: asyncpg.Connection) -> float:
    return float(await connection.fetchval("SELECT pg_terminate_backend(pg_backend_pid())::int"))


async def has_a_defect(connection: asyncpg.Connection) -> float:
    return {"known": MORE}[str(await connection.fetchval("SELECT 'unknown'"))]


async def times_out(connection: asyncpg.Connection) -> float:
    return float(await connection.fetchval("SELECT 1 FROM pg_sleep(3600)", timeout=0.01))


BAD = (refused, leaves_a_transaction, breaks_the_connection, has_a_defect, times_out)


def failures(name: str) -> float:
    return float(metrics.STEP_FAILURES.labels(name)._value.get())


@pytest.mark.parametrize("bad", BAD, ids=[bad.__name__ for bad in BAD])
async def test_a_step_that_fails_never_blocks_the_others(
    postgres_dsn: str, database: asyncpg.Connection, bad: Callable[[asyncpg.Connection], Awaitable[float]]
) -> None:
    """It stands first and always has more to do; those behind it go on, and it is tried again."""
    turns: list[str] = []

    async def failing(connection: asyncpg.Connection) -> float:
        turns.append("failing")
        return await bad(connection)

    async def sound(connection: asyncpg.Connection) -> float:
        # In a transaction of its own: what another step left open would take it along.
        await connection.execute("INSERT INTO machines (machine_id, site, edge) VALUES (gen_random_uuid(), 's', 'e')")
        turns.append("sound")
        return MORE

    failed, hindered = failures("failing"), failures("sound")

    def went_on() -> bool:
        """Whether it has failed twice, and the other had turns after that."""
        return turns.count("failing") >= 2 and turns[-10:] == ["sound"] * 10

    task = asyncio.create_task(
        Maintainer(IngestSettings(postgres_dsn), [Step("failing", failing), Step("sound", sound)]).run()
    )
    await until(went_on)
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])
    assert failures("failing") - failed >= 2
    assert failures("sound") == hindered, "the sound step was given a connection that it could not use"
    assert ("failing", "failing") not in pairwise(turns), "it goes first again though the other waits"
    stored = await database.fetchval("SELECT count(*) FROM machines")
    assert stored >= turns.count("sound"), "a turn of the sound step was rolled back with the failing one's"


async def test_a_step_is_tried_again_after_a_growing_pause_that_is_bounded(database: asyncpg.Connection) -> None:
    step = Step("failing", refused)
    for bound_s in (1, 2, 4, 8, 16, 32, 60, 60, 60, 60):
        began_s = time.monotonic()
        await step.turn(database)
        # Drawn at random up to the bound, but never less than a tenth of it.
        assert bound_s / 10 <= step.due_s - began_s
        assert step.due_s - time.monotonic() <= bound_s
        assert not database.is_closed(), "an error of a statement leaves the connection"

    async def mended(_: asyncpg.Connection) -> float:
        return MORE

    step.work = mended
    await step.turn(database)
    assert step.backoff.tries == 0


def test_every_task_of_maintenance_is_a_step_of_its_own() -> None:
    names = [step.name for step in steps_of(IngestSettings("-", retention_1min_days=4000, retention_1h_days=4000))]
    assert len(names) == len(set(names))
    assert set(names) == {
        *("partitions_ahead", "rollup_marks", "rollups", "unmarked", "restored", "compression"),
        *("retention_sensor_data", "retention_events", "retention_dead_letters"),
        *("retention_rollup_10s", "retention_rollup_1min", "retention_rollup_1h"),
    }
