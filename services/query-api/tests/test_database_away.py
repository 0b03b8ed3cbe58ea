"""The database goes and comes: the API stays, says so, and is back by itself."""

import asyncio
import contextlib
from datetime import UTC, datetime

import asyncpg
import pytest

from cncmon_api import samples
from cncmon_ingest.migrate import migrate
from testkit.servers import running_postgres
from testkit.waiting import WAIT_S_MAX, until


@pytest.fixture
def own_server():
    with running_postgres({"fsync": "off"}) as server:
        yield server


@pytest.fixture
def database_dsn(own_server) -> str:
    async def make() -> None:
        connection = await asyncpg.connect(own_server.dsn)
        await migrate(connection)
        await connection.execute("INSERT INTO machines VALUES ('m1', 'plant-a', 'edge-1')")
        await connection.close()

    asyncio.run(make())
    return own_server.dsn


async def add(dsn: str, temperature: float) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        "INSERT INTO sensor_data (time, machine_id, temperature, machine_state) VALUES ($1, 'm1', $2, 'running')",
        datetime.now(UTC),
        temperature,
    )
    await connection.close()


async def check_away(api) -> None:
    ready = await api.get("/readyz")
    assert ready.status_code == 503
    assert "not available" in ready.json()["failed"]["database"]
    for path in ("/api/v1/machines", "/api/v1/machines/m1/samples", "/api/v1/machines/m1/series"):
        answer = await api.get(path)
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"] == "2"
        problem = answer.json()
        assert problem["title"] == "The database is not available"
        assert "tries again by itself" in problem["detail"]
        assert not {"127.0.0.1", "postgres", "Errno"} & set(problem["detail"].split())
    assert (await api.get("/healthz")).status_code == 200
    assert (await api.json("/api/v1/status"))["database"]["ok"] is False


async def test_killed_and_started_again(start_api, own_server, database_dsn):
    api = await start_api()
    await add(database_dsn, 1)
    async with api.live(machines="m1") as stream:
        assert (await stream.event("samples")).data["samples"][0]["temperature"] == 1
        assert (await api.get("/readyz")).status_code == 200
        await asyncio.to_thread(own_server.kill)
        away = await stream.event("status")
        assert away.data["database"] == "unavailable"
        assert "not available" in away.data["message"]
        await check_away(api)
        async with api.live() as late:
            assert (await late.event("status")).data["database"] == "unavailable"
            assert (await late.event("machines")).data["machines"][0]["id"] == "m1"
        await asyncio.to_thread(own_server.start)
        await stream.database_ok()
        await add(database_dsn, 2)
        assert (await stream.event("samples")).data["samples"][0]["temperature"] == 2
    assert (await api.get("/readyz")).status_code == 200
    for path in ("/api/v1/machines", "/api/v1/machines/m1/samples", "/api/v1/machines/m1/series"):
        assert (await api.get(path)).status_code == 200


class Gate:
    """A TCP proxy before the database. Shut, it passes nothing and closes nothing, like a lost network."""

    def __init__(self, port: int) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self._port = port

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            with contextlib.suppress(OSError):
                await asyncio.gather(self._pass(reader, server_writer), self._pass(server_reader, writer))
        finally:
            server_writer.close()
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await self.open.wait()
            writer.write(data)
        writer.close()


async def test_a_network_that_swallows_everything(start_api, own_server, database_dsn):
    gate = Gate(own_server.port)
    proxy = await asyncio.start_server(gate.handle, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    dsn = database_dsn.replace(f":{own_server.port}/", f":{port}/")
    api = await start_api(database_dsn=dsn, database_timeout_ms=300, statement_timeout_ms=300)
    assert (await api.get("/api/v1/machines")).status_code == 200
    async with api.live() as stream:
        gate.open.clear()
        assert (await stream.event("status")).data["database"] == "unavailable"
        async with asyncio.timeout(WAIT_S_MAX):
            await check_away(api)
        gate.open.set()
        await stream.database_ok()
    assert (await api.get("/api/v1/machines/m1/samples")).status_code == 200
    proxy.close()


async def test_away_from_the_start_and_there_later(start_api, own_server):
    await asyncio.to_thread(own_server.stop)
    api = await start_api()
    async with api.live() as stream:
        assert (await stream.event("status")).data["database"] == "unavailable"
        await check_away(api)
        await asyncio.to_thread(own_server.start)
        await stream.database_ok()
        assert (await stream.event("machines")).data["machines"][0]["id"] == "m1"


async def test_connections_that_died_unnoticed_cost_no_error(start_api, database_dsn):
    api = await start_api(tick_ms=10_000, idle_tick_ms=60_000)
    await asyncio.gather(*(api.get("/api/v1/machines/m1/samples") for _ in range(20)))
    admin = await asyncpg.connect(database_dsn)
    await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'cncmon-api'")
    await admin.close()
    answers = await asyncio.gather(*(api.get("/api/v1/machines/m1/samples") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DROP TABLE sensor_data CASCADE", "run `cncmon-ingest bootstrap`"),
        ("ALTER TABLE sensor_data RENAME COLUMN program TO programme", "run `cncmon-ingest bootstrap`"),
    ],
)
async def test_a_schema_that_does_not_fit_is_told(start_api, database_dsn, statement, said):
    connection = await asyncpg.connect(database_dsn)
    await connection.execute(statement)
    await connection.close()
    api = await start_api()
    answer = await api.get("/api/v1/machines")
    assert (answer.status_code, said in answer.json()["detail"]) == (503, True)


@pytest.mark.parametrize("dsn", ["not a url", "postgresql://nobody:wrong@127.0.0.1:{port}/postgres"])
async def test_a_dsn_that_does_not_work_is_told_without_its_password(start_api, own_server, dsn):
    api = await start_api(database_dsn=dsn.format(port=own_server.port))
    detail = (await api.get("/api/v1/machines")).json()["detail"]
    assert "CNCMON_API_DATABASE_DSN" in detail
    assert "wrong" not in detail


async def test_a_query_that_takes_too_long_is_ended(start_api, database_dsn):
    api = await start_api(statement_timeout_ms=200)
    blocker = await asyncpg.connect(database_dsn)
    async with blocker.transaction():
        await blocker.execute("LOCK TABLE sensor_data IN ACCESS EXCLUSIVE MODE")
        answer = await api.get("/api/v1/machines/m1/series")
        assert answer.status_code == 503
        assert answer.json()["title"] == "The query took too long"
        assert "shorter range" in answer.json()["detail"]
    await blocker.close()
    assert (await api.get("/api/v1/machines/m1/series")).status_code == 200


async def test_slow_requests_do_not_stop_live(start_api, database_dsn, monkeypatch):
    slow_sql = samples._SQL.replace("FROM sensor_data", "FROM sensor_data, pg_advisory_xact_lock_shared(7) AS nap")
    monkeypatch.setattr(samples, "_SQL", slow_sql)
    api = await start_api(pool_size=2, database_timeout_ms=300)
    blocker = await asyncpg.connect(database_dsn)
    await blocker.execute("SELECT pg_advisory_lock(7)")
    await add(database_dsn, 4)
    async with api.live(machines="m1") as stream:
        await stream.event("samples")
        slow = asyncio.create_task(api.get("/api/v1/machines/m1/samples"))
        await until(
            lambda: blocker.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        )
        await add(database_dsn, 5)
        assert (await stream.event("samples")).data["samples"][0]["temperature"] == 5
        refused = await api.get("/api/v1/machines/m1/samples")
        assert (refused.status_code, refused.json()["title"]) == (503, "Too many requests at once")
        assert not slow.done()
    await blocker.close()
    assert (await slow).status_code == 200
