import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from cncmon_ingest.migrate import migrate
from testkit.servers import Postgres, running_postgres


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that PostgreSQL's user can enter; pytest's own is closed to it under root."""
    with tempfile.TemporaryDirectory(prefix="cncmon-test-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running_postgres({"fsync": "off"}) as server:
        yield server


@pytest.fixture(scope="session")
def _migrated(postgres: Postgres) -> str:
    async def make() -> str:
        admin = await asyncpg.connect(postgres.dsn)
        await admin.execute("CREATE DATABASE cncmon")
        await admin.close()
        dsn = f"{postgres.dsn.rsplit('/', 1)[0]}/cncmon"
        connection = await asyncpg.connect(dsn)
        await migrate(connection)
        await connection.close()
        return dsn

    return asyncio.run(make())


@pytest.fixture
async def dsn(_migrated: str) -> str:
    """The DSN of a database with our tables, empty."""
    connection = await asyncpg.connect(_migrated)
    await connection.execute(
        "TRUNCATE sensor_data, machines, ledger, watermarks, dead_letters, gaps, events, edges, edge_epochs, "
        "dirty_ranges, rollup_10s, rollup_1min, rollup_1h, state_intervals, edge_silences"
    )
    await connection.close()
    return _migrated


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    opened = await asyncpg.connect(dsn)
    yield opened
    await opened.close()
