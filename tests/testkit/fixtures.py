"""Fixtures: servers for a session, a fresh migrated database and a clean NATS for a test."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
from nats.aio.client import Client

from cncmon_ingest.migrate import migrate
from testkit.parts import REQUIRED, missing_part
from testkit.servers import Postgres, Server, running_nats, running_postgres

_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_SKIPPED] = {}


_SKIPPED = pytest.StashKey[dict[str, int]]()


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        part = marker.args[0]
        why = missing_part(part)
        if why is None:
            continue
        if REQUIRED:
            pytest.fail(f"{part} is required here (CNCMON_TEST_REQUIRE=all) and can't be had: {why}", pytrace=False)
        suites = item.config.stash[_SKIPPED]
        suites[f"{item.path.parent.name}: {why}"] = suites.get(f"{item.path.parent.name}: {why}", 0) + 1
        pytest.skip(why)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for suite, tests in config.stash[_SKIPPED].items():
        terminalreporter.write_line(f"NOT RUN: {tests} tests of {suite}", yellow=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A PostgreSQL server that all tests share: make databases in it, don't stop it."""
    with running_postgres({"fsync": "off", "max_connections": "100"}) as server:
        yield server


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A nats-server that all tests share."""
    with running_nats(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture(scope="session")
def _template(postgres_server: Postgres) -> str:
    async def make() -> None:
        admin = await asyncpg.connect(postgres_server.dsn)
        await admin.execute("CREATE DATABASE template_migrated")
        await admin.close()
        connection = await asyncpg.connect(dsn_of(postgres_server, "template_migrated"))
        await migrate(connection)
        await connection.close()

    asyncio.run(make())
    return "template_migrated"


def dsn_of(server: Postgres, database: str) -> str:
    """Return the URL of a database of a server."""
    return f"{server.dsn.rsplit('/', 1)[0]}/{database}"


@pytest.fixture
def postgres_dsn(postgres_server: Postgres, _template: str) -> Iterator[str]:
    """URL of a fresh database with the current schema."""
    name = f"test_{next(_numbers)}"
    asyncio.run(_admin(postgres_server, f"CREATE DATABASE {name} TEMPLATE {_template}"))
    yield dsn_of(postgres_server, name)
    asyncio.run(_admin(postgres_server, f"DROP DATABASE {name} WITH (FORCE)"))


async def _admin(server: Postgres, statement: str) -> None:
    connection = await asyncpg.connect(server.dsn)
    await connection.execute(statement)
    await connection.close()


@pytest.fixture
async def database(postgres_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the fresh database."""
    connection = await asyncpg.connect(postgres_dsn)
    yield connection
    await connection.close()


@pytest.fixture
async def nats_client(nats_server: Server) -> AsyncIterator[Client]:
    """A client of the shared server, whose streams are removed before and after."""
    client = Client()
    await client.connect(f"nats://127.0.0.1:{nats_server.port}", allow_reconnect=False)
    await _remove_streams(client)
    yield client
    await _remove_streams(client)
    await client.close()


async def _remove_streams(client: Client) -> None:
    js = client.jetstream()
    for stream in await js.streams_info():
        if stream.config.name:
            await js.delete_stream(stream.config.name)


@pytest.fixture
def nats_url(nats_server: Server) -> str:
    """URL of the shared server."""
    return f"nats://127.0.0.1:{nats_server.port}"


@pytest.fixture
def own_nats(tmp_path: Path) -> Iterator[Server]:
    """A nats-server of the test's own: kill it, restart it, take its storage away."""
    with running_nats(tmp_path) as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A PostgreSQL of the test's own, durable as shipped: kill it, restart it."""
    with running_postgres() as server:
        yield server
