"""Fixtures: servers for a session, a fresh migrated database and a clean NATS for a test."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
from nats.aio.client import Client

from cncmon_ingest.migrate import migrate
from testkit.durations import Measured, longest_first
from testkit.order import drawn_seed, shuffled
from testkit.parts import REQUIRED, missing_part, timescaledb_programs
from testkit.servers import Postgres, Server, running_nats, running_postgres
from testkit.virtual_time import loop_factories

_numbers = itertools.count(1)

on_both_servers = pytest.mark.parametrize(
    "postgres_dsn", ["plain", pytest.param("timescaledb", marks=pytest.mark.needs("timescaledb"))], indirect=True
)
"""Runs a test that uses `postgres_dsn` on plain PostgreSQL and on one with TimescaleDB."""


SEED = drawn_seed()
"""Shuffles the tests; None: those of files that take long come first."""


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Measured(), "cncmon durations")


def pytest_report_header() -> list[str]:
    return [] if SEED is None else [f"tests shuffled: CNCMON_TEST_SEED={SEED}"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = longest_first(items) if SEED is None else shuffled(items, SEED)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        part = marker.args[0]
        why = missing_part(part)
        if why is None:
            continue
        if REQUIRED:
            pytest.fail(f"{part} is required here (CNCMON_TEST_REQUIRE=all) and can't be had: {why}", pytrace=False)
        pytest.skip(why)


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> object:
    """Give tests marked virtual_time a clock of their own."""
    del config
    return loop_factories(virtual=item.get_closest_marker("virtual_time") is not None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name at the end what was left out, so that a green run does not hide it, and how to have this order again."""
    if SEED is not None:
        terminalreporter.write_line(f"tests were shuffled: CNCMON_TEST_SEED={SEED}")
    suites = Counter(
        f"{report.nodeid.rsplit('/', 1)[0]}: {report.longrepr[2] if isinstance(report.longrepr, tuple) else ''}"
        for report in terminalreporter.stats.get("skipped", [])
    )
    for suite, tests in suites.items():
        terminalreporter.write_line(f"NOT RUN: {tests} tests of {suite}", yellow=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A PostgreSQL server that all tests share: make databases in it, don't stop it."""
    with running_postgres({"fsync": "off", "max_connections": "100"}) as server:
        yield server


@pytest.fixture(scope="session")
def timescaledb_server() -> Iterator[Postgres]:
    """A PostgreSQL server with TimescaleDB, shared as `postgres_server` is; its tests need("timescaledb")."""
    programs = timescaledb_programs()
    assert programs is not None, 'a test without needs("timescaledb") asks for it'
    settings = {"fsync": "off", "shared_preload_libraries": "timescaledb", "timescaledb.telemetry_level": "off"}
    with running_postgres(settings, programs) as server:
        yield server


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A nats-server that all tests share."""
    with running_nats(tmp_path_factory.mktemp("nats")) as server:
        yield server


class Databases:
    """Migrated databases for tests: emptied and given out again, since making one takes ten times as long."""

    def __init__(self, server: Postgres) -> None:
        self._server = server
        self._free: list[str] = []
        self._pristine = ""
        self._partitions: frozenset[str] = frozenset()

    async def take(self) -> str:
        """Return the URL of an empty database with the current schema."""
        if self._free:
            return self._free.pop()
        name = f"test_{next(_numbers)}"
        admin = await asyncpg.connect(self._server.dsn)
        await admin.execute(f"CREATE DATABASE {name}")
        await admin.close()
        dsn = dsn_of(self._server, name)
        connection = await asyncpg.connect(dsn)
        await migrate(connection)
        self._pristine = await _fingerprint(connection)
        self._partitions = await _partitions(connection)
        await connection.close()
        return dsn

    async def give_back(self, dsn: str) -> None:
        """Empty a database for the next test; drop it where the test changed its schema or settings."""
        try:
            connection = await asyncpg.connect(dsn)
            await connection.execute(_ALONE)
            partitions = await _partitions(connection)
            same = partitions >= self._partitions and await _fingerprint(connection) == self._pristine
            if same:
                # First: truncating each of them takes as long as creating a database.
                if added := partitions - self._partitions:
                    await connection.execute(f"DROP TABLE {', '.join(sorted(added))}")
                await connection.execute(_EMPTY)
            await connection.close()
        except asyncpg.PostgresError:
            same = False
        if same:
            self._free.append(dsn)
        else:
            admin = await asyncpg.connect(self._server.dsn)
            await admin.execute(f"DROP DATABASE IF EXISTS {dsn.rsplit('/', 1)[1]} WITH (FORCE)")
            await admin.close()


_ALONE = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
_EMPTY = """
TRUNCATE sensor_data, machines, ledger, ledger_unidentified, watermarks, dead_letters, gaps, events, edges, edge_epochs,
    dirty_ranges, rollup_10s, rollup_1min, rollup_1h, state_intervals,
    suspects, folded_epochs, folded_totals, ledger_hashes, forked_epochs,
    dead_letter_totals, machine_owners, edge_silences
    RESTART IDENTITY;
UPDATE delivery SET generation = 1, stream_created = NULL, committed_floor = 0, unmarked_since = NULL,
    counter = 0, refused = NULL, adopted = NULL,
    reread_from = NULL, reread_to = NULL, reread_begun = NULL, reread_ended = NULL, reread_asked = false;
UPDATE storage SET dropped_to = '-infinity'
"""


async def _partitions(connection: asyncpg.Connection) -> frozenset[str]:
    query = """
        SELECT oid::regclass::text AS name FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relispartition AND relkind = 'r'
    """
    return frozenset(row["name"] for row in await connection.fetch(query))


async def _fingerprint(connection: asyncpg.Connection) -> str:
    """Return what tells whether a database's schema and settings are as migrated; chunks and partitions don't count."""
    found: str = await connection.fetchval(
        """
        SELECT concat_ws(';',
            (SELECT string_agg(attrelid::regclass || '.' || attname, ',' ORDER BY attrelid::regclass::text, attname)
             FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
             WHERE c.relnamespace = 'public'::regnamespace AND NOT c.relispartition),
            (SELECT string_agg(conname, ',' ORDER BY conname)
             FROM pg_constraint LEFT JOIN pg_class c ON c.oid = conrelid
             WHERE connamespace = 'public'::regnamespace AND c.relispartition IS NOT TRUE),
            (SELECT string_agg(tgname, ',' ORDER BY tgname) FROM pg_trigger JOIN pg_class c ON c.oid = tgrelid
             WHERE c.relnamespace = 'public'::regnamespace),
            (SELECT string_agg(relname || coalesce(relacl::text, ''), ',' ORDER BY relname)
             FROM pg_class WHERE relnamespace = 'public'::regnamespace AND NOT relispartition),
            (SELECT nspowner::regrole || coalesce(nspacl::text, '') FROM pg_namespace WHERE nspname = 'public'),
            (SELECT string_agg(number || checksum, ',' ORDER BY number) FROM schema_migrations),
            (SELECT count(*) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase
             WHERE d.datname = current_database()))
        """
    )
    return found


def dsn_of(server: Postgres, database: str) -> str:
    """Return the URL of a database of a server."""
    return f"{server.dsn.rsplit('/', 1)[0]}/{database}"


@pytest.fixture(scope="session")
def _plain_databases(postgres_server: Postgres) -> Databases:
    return Databases(postgres_server)


@pytest.fixture(scope="session")
def _timescaledb_databases(timescaledb_server: Postgres) -> Databases:
    return Databases(timescaledb_server)


@pytest.fixture
def postgres_dsn(request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of an empty database with the current schema; a test may do with it what it likes."""
    yield from _lend(request.getfixturevalue(f"_{getattr(request, 'param', 'plain')}_databases"))


@pytest.fixture
def timescaledb_dsn(_timescaledb_databases: Databases) -> Iterator[str]:
    """URL of an empty database with the current schema on the server with TimescaleDB."""
    yield from _lend(_timescaledb_databases)


def _lend(databases: Databases) -> Iterator[str]:
    dsn = asyncio.run(databases.take())
    yield dsn
    asyncio.run(databases.give_back(dsn))


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


@pytest.fixture
async def migrated(own_postgres: Postgres) -> Postgres:
    """`own_postgres` with the current schema."""
    connection = await asyncpg.connect(own_postgres.dsn)
    await migrate(connection)
    await connection.close()
    return own_postgres
