"""A database that can't be used as it is: each reason in plain words with what to do, and a service that waits.

It is not ready meanwhile, dies of nothing, and acknowledges nothing that is not committed; once it can, it goes on.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
from nats.aio.client import Client

from cncmon_core import names
from cncmon_core.frames import join
from cncmon_ingest.migrate import LATEST, migrate
from robustness.faults.small_disk import fill_up, small_disk
from testkit import ingest
from testkit.ingest import drained, frame, publish_plain, until
from testkit.ports import free_port
from testkit.servers import Postgres, running_postgres


class Service:
    """`cncmon-ingest run` as a process."""

    def __init__(self, dsn: str, nats_url: str, folder: Path) -> None:
        self._port = free_port()
        self._log = folder / "ingest.log"
        environ = {
            "CNCMON_INGEST_DATABASE_DSN": dsn,
            "CNCMON_INGEST_HOLD_RETRY_MS_MAX": "300",
            "CNCMON_NATS_SERVERS": nats_url,
            "CNCMON_SERVICE_MONITOR_PORT": str(self._port),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cncmon_ingest.main", "run"],
            env=os.environ | environ,
            stdout=self._log.open("wb"),
            stderr=subprocess.STDOUT,
        )

    async def readiness(self) -> tuple[int, str]:
        """Return /readyz: status and what it says of the database."""
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"http://127.0.0.1:{self._port}/readyz")
        return answer.status_code, answer.json().get("failed", {}).get("database", "")

    async def says(self, text: str) -> None:
        """Wait until it is not ready and says this; it lives, and its log has the same."""
        said = ""

        async def told() -> bool:
            nonlocal said
            assert self._process.poll() is None, self._log.read_text()[-2000:]
            with contextlib.suppress(httpx.TransportError):
                status, said = await self.readiness()
                return status == 503 and text in said
            return False

        try:
            await until(told)
        except TimeoutError:
            raise AssertionError(f"it says {said!r}") from None
        await until(self._logged(text))

    def _logged(self, text: str) -> Callable[[], Awaitable[bool]]:
        async def logged() -> bool:
            return text in self._log.read_text()

        return logged

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def ready(self) -> None:
        """Wait until it is."""

        async def is_ready() -> bool:
            assert self._process.poll() is None, self._log.read_text()[-2000:]
            with contextlib.suppress(httpx.TransportError):
                return (await self.readiness())[0] == 200
            return False

        await until(is_ready)

    def stop(self) -> int:
        self._process.terminate()
        return self._process.wait(15)


@contextlib.asynccontextmanager
async def service(dsn: str, nats_url: str, folder: Path) -> AsyncIterator[Service]:
    made = Service(dsn, nats_url, folder)
    try:
        yield made
        assert made.stop() == 0, "it ends in order, whatever the database says"
    finally:
        made.stop()


async def waiting(client: Client) -> int:
    """Return how many messages are not acknowledged."""
    info = await client.jetstream().consumer_info(names.STREAM, names.DURABLE)
    return (info.num_pending or 0) + (info.num_ack_pending or 0)


def changed(dsn: str, **parts: str | int) -> str:
    """Return a URL with another user, password, host, port or database."""
    url = urlsplit(dsn)
    found = {"user": url.username, "password": url.password, "host": url.hostname, "port": url.port,
             "database": url.path.lstrip("/")} | parts  # fmt: skip
    return "postgresql://{user}:{password}@{host}:{port}/{database}".format(**found)


WRONG = {
    "password": ({"password": "s3cret"}, "correct user and password in CNCMON_INGEST_DATABASE_DSN"),
    "user": ({"user": "nobody"}, "refuses the user 'nobody'"),
    "database": ({"database": "nowhere"}, "has no database 'nowhere': create it"),
    "host": ({"host": "no.such.host.invalid"}, "the name 'no.such.host.invalid' is not known here"),
    "port": ({"port": 1}, "nothing listens at 127.0.0.1:1: start the database"),
    "no URL": ({"port": "s3cret"}, "is no PostgreSQL URL: write it as postgresql://USER:PASSWORD@HOST:5432/DATABASE"),
}


@pytest.mark.parametrize(("parts", "said"), WRONG.values(), ids=WRONG.keys())
async def test_wrong_url(
    migrated: Postgres, nats_client: Client, nats_url: str, tmp_path: Path, parts: dict[str, str | int], said: str
) -> None:
    """Of a wrong URL each part is named, the password never, and nothing is taken out of the stream."""
    dsn = changed(migrated.dsn, **parts)
    await ingest.prepare(nats_client, ingest.settings_for(migrated.dsn))
    await publish_plain(nats_client, join([frame()]))
    async with service(dsn, nats_url, tmp_path) as running:
        await running.says(said)
        assert await waiting(nats_client) == 1
        assert "s3cret" not in running.log


async def test_a_schema_that_is_older_or_too_new(
    own_postgres: Postgres, nats_client: Client, nats_url: str, tmp_path: Path
) -> None:
    """Before the bootstrap, and after that of a program whose tables this one can't work on."""
    await ingest.prepare(nats_client, ingest.settings_for(own_postgres.dsn))
    await publish_plain(nats_client, join([frame()]))
    connection = await asyncpg.connect(own_postgres.dsn)
    async with service(own_postgres.dsn, nats_url, tmp_path) as running:
        await running.says(f"the schema is at migration 0, this program needs {LATEST}: run `cncmon-ingest bootstrap`")
        await migrate(connection)
        await running.ready()
        await until(lambda: drained(nats_client))
    await connection.execute("INSERT INTO schema_migrations VALUES (9999, 'takes away', 'x', now(), 9999)")
    await publish_plain(nats_client, join([frame(1)]))
    async with service(own_postgres.dsn, nats_url, tmp_path) as running:
        await running.says("use a newer version")
        assert await waiting(nats_client) == 1
    assert await connection.fetchval("SELECT count(*) FROM sensor_data") == 1
    await connection.close()


async def test_a_user_who_lacks_a_right(migrated: Postgres, nats_client: Client, nats_url: str, tmp_path: Path) -> None:
    """May read all tables and write none; a sample waits until it is granted."""
    admin = await asyncpg.connect(migrated.dsn)
    await admin.execute(
        "CREATE ROLE plant LOGIN PASSWORD 'plant'; GRANT SELECT ON ALL TABLES IN SCHEMA public TO plant"
    )
    await ingest.prepare(nats_client, ingest.settings_for(migrated.dsn))
    await publish_plain(nats_client, join([frame()]))
    async with service(changed(migrated.dsn, user="plant", password="plant"), nats_url, tmp_path) as running:
        await running.says("the user lacks a right: cncmon db check names it")
        assert await waiting(nats_client) == 1
        await admin.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO plant")
        await admin.execute(
            "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO plant; GRANT CREATE ON SCHEMA public TO plant"
        )
        await until(lambda: drained(nats_client))
        await running.ready()
    assert await admin.fetchval("SELECT count(*) FROM sensor_data") == 1
    await admin.close()


@pytest.mark.needs("timescaledb")
async def test_who_may_not_create_the_extension(timescaledb_server: Postgres, nats_url: str, tmp_path: Path) -> None:
    """The bootstrap waits, says what a superuser has to do, and goes on once that is done."""
    admin = await asyncpg.connect(timescaledb_server.dsn)
    await admin.execute("CREATE ROLE plant LOGIN PASSWORD 'plant'")
    await admin.execute("CREATE DATABASE plant")
    inside = await asyncpg.connect(changed(timescaledb_server.dsn, database="plant"))
    try:
        await inside.execute("GRANT ALL ON SCHEMA public TO plant")
        dsn = changed(timescaledb_server.dsn, user="plant", password="plant", database="plant")
        log = tmp_path / "bootstrap.log"
        environ = {"CNCMON_INGEST_DATABASE_DSN": dsn, "CNCMON_NATS_SERVERS": nats_url}
        with log.open("wb") as file:
            bootstrap = subprocess.Popen(
                [sys.executable, "-P", "-m", "cncmon_ingest.main", "bootstrap"],
                env=os.environ | environ,
                stdout=file,
                stderr=file,
            )

        async def told() -> bool:
            assert bootstrap.poll() is None, log.read_text()
            return "as a superuser run CREATE EXTENSION timescaledb in this database" in log.read_text()

        await until(told)
        await inside.execute("CREATE EXTENSION timescaledb")
        assert await asyncio.to_thread(bootstrap.wait, 30) == 0, log.read_text()
        assert await inside.fetchval("SELECT count(*) FROM schema_migrations") == LATEST
    finally:
        await inside.close()
        await admin.execute("DROP DATABASE plant WITH (FORCE)")
        await admin.execute("DROP ROLE plant")
        await admin.close()


async def test_read_only_from_one_moment_to_the_next(
    migrated: Postgres, nats_client: Client, nats_url: str, tmp_path: Path
) -> None:
    """Switched to read-only under a running worker, and back."""
    admin = await asyncpg.connect(migrated.dsn)
    await ingest.prepare(nats_client, ingest.settings_for(migrated.dsn))
    async with service(migrated.dsn, nats_url, tmp_path) as running:
        await publish_plain(nats_client, join([frame()]))
        await until(lambda: drained(nats_client))
        await admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        await admin.execute("SELECT pg_reload_conf()")
        await until(lambda: _is_read_only(migrated.dsn))
        await publish_plain(nats_client, join([frame(1)]))
        await running.says("read-only")
        assert await waiting(nats_client) == 1
        await admin.execute("SET default_transaction_read_only = off")
        await admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
        await admin.execute("SELECT pg_reload_conf()")
        await until(lambda: drained(nats_client))
        await running.ready()
    assert await admin.fetchval("SELECT count(*) FROM sensor_data") == 2
    await admin.close()


async def _is_read_only(dsn: str) -> bool:
    connection = await asyncpg.connect(dsn)
    try:
        return bool(await connection.fetchval("SHOW transaction_read_only") == "on")
    finally:
        await connection.close()


DISK_BYTES = 144 << 20
SEVERAL = 60
FRAMES = 400


@pytest.fixture
def on_a_small_disk() -> Iterator[tuple[Path, Postgres]]:
    """A disk, and a server on it."""
    # Not pytest's folder, which is closed to the user whom PostgreSQL runs as.
    with tempfile.TemporaryDirectory(prefix="cncmon-full-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        settings = {"max_wal_size": "32MB", "fsync": "off"}
        with small_disk(folder / "disk", DISK_BYTES) as disk, running_postgres(settings, disk=disk) as server:
            yield disk, server


@pytest.mark.needs("root")
async def test_the_databases_disk_is_full(
    on_a_small_disk: tuple[Path, Postgres], nats_client: Client, nats_url: str, tmp_path: Path
) -> None:
    """Samples wait in the stream until there is room again; none is acknowledged that is not stored."""
    disk, postgres = on_a_small_disk
    connection = await asyncpg.connect(postgres.dsn)
    await migrate(connection)
    await connection.execute("SELECT ensure_partition('sensor_data', now())")
    await ingest.prepare(nats_client, ingest.settings_for(postgres.dsn))
    async with service(postgres.dsn, nats_url, tmp_path) as running:
        await running.ready()
        await asyncio.to_thread(fill_up, disk / "filler")
        for number in range(SEVERAL):
            await publish_plain(nats_client, join([frame(number, active_program_line=at) for at in range(FRAMES)]))
        await running.says("the database's disk is full: make room there; samples wait in the stream")
        left = await waiting(nats_client)
        assert left > 0
        assert await connection.fetchval("SELECT count(*) FROM sensor_data") >= (SEVERAL - left) * FRAMES
        (disk / "filler").unlink()
        await until(lambda: drained(nats_client))
        await running.ready()
    assert await connection.fetchval("SELECT count(*) FROM sensor_data") == SEVERAL * FRAMES
    await connection.close()
