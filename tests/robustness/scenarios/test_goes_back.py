"""The database comes back older than it was; a message kills whoever takes it; the worker is killed over one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg

from cncmon_core import frames
from robustness.scenarios.plant import MakePlant, Plant
from robustness.scenarios.size import SIZE
from testkit.ingest import frame, publish_plain, until
from testkit.servers import Postgres, running_replica
from testkit.waiting import WAIT_S_MAX

KILLING = Path(__file__).parents[1] / "faults" / "killing"


async def generation(dsn: str) -> tuple[int, bool]:
    """Return the database's generation, and whether it has read again what it had to."""
    connection = await asyncpg.connect(dsn, timeout=5)
    try:
        row = await connection.fetchrow(
            "SELECT generation, reread_ended IS NOT NULL OR reread_from IS NULL FROM delivery"
        )
    finally:
        await connection.close()
    assert row is not None
    return row[0], row[1]


async def is_whole(dsn: str, at_least: int) -> bool:
    try:
        number, done = await generation(dsn)
    except (OSError, asyncpg.PostgresError):
        return False
    return done and number >= at_least


async def test_fail_over_to_a_replica_that_lacks_seconds(plant_with: MakePlant, migrated: Postgres) -> None:
    """FAULT 34: a real streaming replica is promoted that has not heard of the last seconds. Nobody does anything."""
    async with running_replica(migrated) as replica:
        both = f"127.0.0.1:{migrated.port},127.0.0.1:{replica.port}"
        dsn = migrated.dsn.replace(f"127.0.0.1:{migrated.port}", both) + "?target_session_attrs=read-write"
        plant = plant_with(dsn)
        async with plant.running(ingest={"ack_wait_ms": 2000}):
            await plant.flow()
            await replica.caught_up(migrated)
            await replica.cut_off()
            await plant.flow(2 * SIZE.fault_s)
            async with samples(migrated.dsn) as count:
                had = await count()
            plant.note_fault("fail-over to a replica that is behind")
            migrated.kill()
            await replica.promote()
            async with samples(replica.dsn) as count:
                plant.notes["lacked"] = f"{had - await count():,} samples"
                assert await count() < had
            await plant.recovered()
            await until(lambda: is_whole(dsn, 2))
        await plant.holds()


@contextlib.asynccontextmanager
async def samples(dsn: str) -> AsyncIterator["Counting"]:
    connection = await asyncpg.connect(dsn, timeout=5)
    try:
        yield Counting(connection)
    finally:
        connection.terminate()


class Counting:
    """Counts the samples of a database."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def __call__(self) -> int:
        return int(await self._connection.fetchval("SELECT count(*) FROM sensor_data"))


async def test_restore_of_an_older_backup(plant_with: MakePlant, migrated: Postgres) -> None:
    """FAULT 34: the disk of some time ago is put back, again and again."""
    plant = plant_with(migrated.dsn)
    async with plant.running(ingest={"ack_wait_ms": 2000}):
        for number in range(1, SIZE.rounds + 1):
            await plant.flow()
            backup = await asyncio.to_thread(migrated.back_up)
            await plant.flow(2 * SIZE.fault_s)
            plant.note_fault("older backup restored")
            migrated.kill()
            await asyncio.to_thread(migrated.restore, backup)
            await plant.recovered()
            await until(lambda number=number: is_whole(migrated.dsn, number + 1))  # type: ignore[misc]
    await plant.holds()


async def test_poison(plant: Plant) -> None:
    """FAULT 19: each worker that takes the message dies, until it is buried; what came with it is stored."""
    environ = {"PYTHONPATH": str(KILLING)}
    async with plant.running(ingest={"ack_wait_ms": 1000}, ingest_environ=environ):
        await plant.flow()
        async with plant.client() as client:
            for number in range(SIZE.rounds):
                await publish_plain(client, frames.join([frame(number, mode="CNC-KILL")]))
                plant.note_fault("message that kills")
        connection = await asyncpg.connect(plant.dsn)
        deaths = 0
        async with asyncio.timeout(WAIT_S_MAX * SIZE.rounds):
            while await connection.fetchval("SELECT count(*) FROM dead_letters WHERE reason = 'poison'") < SIZE.rounds:
                if not plant.ingest.runs:
                    deaths += 1
                    plant.ingest.start()
                await asyncio.sleep(0.1)
        details = await connection.fetch("SELECT detail FROM dead_letters WHERE reason = 'poison'")
        await connection.close()
        plant.notes["deaths"] = str(deaths)
        assert deaths >= 3
        assert all("signal 9" in row["detail"] for row in details), "tried alone, in a process of its own, each died"
        assert "Traceback" not in plant.ingest.log.read_text(), "killed, and nothing else"
        await plant.recovered()
    finding = await plant.judge()
    assert finding.holds, finding.complaints
