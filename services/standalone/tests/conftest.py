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
    """A database with our tables, from which each test's is copied."""

    async def make() -> str:
        admin = await asyncpg.connect(postgres.dsn)
        await admin.execute("CREATE DATABASE migrated")
        await admin.close()
        connection = await asyncpg.connect(f"{postgres.dsn.rsplit('/', 1)[0]}/migrated")
        await migrate(connection)
        await connection.close()
        return "migrated"

    return asyncio.run(make())


@pytest.fixture
async def dsn(postgres: Postgres, _migrated: str) -> AsyncIterator[str]:
    """The DSN of a fresh database with our tables."""
    admin = await asyncpg.connect(postgres.dsn)
    await admin.execute("DROP DATABASE IF EXISTS fresh WITH (FORCE)")
    await admin.execute(f"CREATE DATABASE fresh TEMPLATE {_migrated}")
    yield f"{postgres.dsn.rsplit('/', 1)[0]}/fresh"
    await admin.close()


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    opened = await asyncpg.connect(dsn)
    yield opened
    await opened.close()
