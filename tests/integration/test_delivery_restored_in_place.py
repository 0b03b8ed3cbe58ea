"""Rule D3: a backup restored into the database that ingest works on, while it works, is noticed without a conflict."""

import asyncio
import functools
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from nats.aio.client import Client

from cncmon_core import names
from testkit.ingest import drained, frame, prepare, publish_batch, running_ingest, settings_for, until
from testkit.servers import Postgres

SETTINGS: dict[str, Any] = {"ack_wait_ms": 1000, "sweep_interval_ms": 100, "hold_retry_ms_max": 200}
EPOCH = 4242


async def state_of(dsn: str) -> dict[str, Any]:
    """Return what the database has: samples, distinct samples, watermark and generation."""
    connection = await asyncpg.connect(dsn, timeout=5)
    try:
        row = await connection.fetchrow(
            "SELECT (SELECT count(*) FROM sensor_data) AS samples, "
            "(SELECT count(DISTINCT active_program_line) FROM sensor_data) AS lines, "
            "(SELECT seq FROM watermarks WHERE epoch = $1) AS watermark, generation, "
            "reread_from IS NOT NULL AND reread_ended IS NULL AS rereading FROM delivery",
            EPOCH,
        )
    finally:
        await connection.close()
    assert row is not None
    return dict(row)


async def is_at(dsn: str, **wanted: Any) -> bool:
    try:
        found = await state_of(dsn)
    except (OSError, AssertionError, asyncpg.PostgresError):
        return False
    return all(found[name] == value for name, value in wanted.items())


async def reaches(dsn: str, **wanted: Any) -> None:
    """Wait for a state."""
    await until(lambda: is_at(dsn, **wanted), what=f"{dsn} at {wanted}")


async def publish(client: Client, seqs: range) -> None:
    for seq in seqs:
        await publish_batch(client, seq, [frame(seq * 10 + number) for number in range(10)], base=(seq - 1) * 10)


def run_program(server: Postgres, dsn: str, program: str, *arguments: str) -> None:
    """Run one of PostgreSQL's own programs on a database."""
    url = urlsplit(dsn)
    subprocess.run(
        [
            *(str(Path(server.command.argv[0]).parent / program), "-h", "127.0.0.1", "-p", str(url.port)),
            *("-U", str(url.username), "-d", url.path.lstrip("/"), *arguments),
        ],
        env={"PGPASSWORD": str(url.password)},
        check=True,
        capture_output=True,
    )


OLDER = ("delivery", "ledger", "watermarks", "sensor_data", "gaps")


async def keep_copies(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    async with connection.transaction(isolation="repeatable_read"):
        for table in OLDER:
            await connection.execute(f"CREATE TABLE older_{table} AS SELECT * FROM {table}")
    await connection.close()


async def put_copies_back(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    async with connection.transaction():
        await connection.execute(f"TRUNCATE {', '.join(OLDER)}")
        for table in OLDER:
            await connection.execute(f"INSERT INTO {table} SELECT * FROM older_{table}")
    await connection.close()


async def restored(restore: Callable[[], Awaitable[None]]) -> None:
    """Restore; again where a worker's transaction and the restore lock each other out and it is this one that loses."""
    for _ in range(20):
        try:
            return await restore()
        except (subprocess.CalledProcessError, asyncpg.DeadlockDetectedError) as error:
            said = error.stderr.decode() if isinstance(error, subprocess.CalledProcessError) else str(error)
            assert "deadlock detected" in said, said
    pytest.fail("no restore came through")


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("way", ["pg_restore", "pg_restore in one transaction", "TRUNCATE and INSERT"])
async def test_delivery_d3_a_backup_restored_in_place_is_noticed(
    nats_client: Client,
    nats_url: str,
    postgres_dsn: str,
    postgres_server: Postgres,
    tmp_path: Path,
    way: str,
    busy: bool,
) -> None:
    """The connections stay, the log grows, no other leader writes: only the counter tells."""
    settings = settings_for(postgres_dsn, **SETTINGS)
    await prepare(nats_client, settings)
    dump = str(tmp_path / "dump")
    async with running_ingest(nats_url, settings, workers=2):
        await publish(nats_client, range(1, 11))
        await reaches(postgres_dsn, samples=100, watermark=10)
        if way == "TRUNCATE and INSERT":
            await keep_copies(postgres_dsn)
        else:
            await asyncio.to_thread(run_program, postgres_server, postgres_dsn, "pg_dump", "-Fc", "-f", dump)
        await publish(nats_client, range(11, 21))
        await reaches(postgres_dsn, samples=200, watermark=20)
        await until(lambda: drained(nats_client))
        publishing = asyncio.create_task(publish(nats_client, range(21, 41 if busy else 21)))
        if way == "TRUNCATE and INSERT":
            await restored(lambda: put_copies_back(postgres_dsn))
        else:
            options = ["--clean", "--if-exists", *(["--single-transaction"] if "one" in way else [])]
            restore = functools.partial(run_program, postgres_server, postgres_dsn, "pg_restore", *options, dump)
            await restored(lambda: asyncio.to_thread(restore))
        await publishing
        total = 40 if busy else 20
        await reaches(
            postgres_dsn, samples=10 * total, lines=10 * total, watermark=total, generation=2, rereading=False
        )
        await until(lambda: drained(nats_client))


async def test_delivery_d3_a_consumer_made_again_is_no_database_that_regressed(
    nats_client: Client, nats_url: str, postgres_dsn: str
) -> None:
    """Its floor begins again at 0: the database's floor follows it down, and that is no older backup."""
    settings = settings_for(postgres_dsn, **SETTINGS)
    await prepare(nats_client, settings)
    js = nats_client.jetstream()

    async def floor() -> int:
        connection = await asyncpg.connect(postgres_dsn)
        try:
            found: int = await connection.fetchval("SELECT committed_floor FROM delivery")
        finally:
            await connection.close()
        return found

    async def floor_is(wanted: int) -> bool:
        return await floor() == wanted

    async with running_ingest(nats_url, settings):
        await publish(nats_client, range(1, 11))
        await until(lambda: floor_is(10))
    await js.delete_consumer(names.STREAM, names.DURABLE)
    # Nothing is acknowledged yet: a leader alone sees the floor of the new consumer, twice over.
    for _ in range(2):
        await prepare(nats_client, settings)
        async with running_ingest(nats_url, settings, workers=1):
            await until(lambda: drained(nats_client))
            await until(lambda: floor_is(10))
        await js.delete_consumer(names.STREAM, names.DURABLE)
    assert await is_at(postgres_dsn, samples=100, lines=100, generation=1, rereading=False)
