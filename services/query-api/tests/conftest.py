"""Fixtures of the query API's tests: a real server process's worth of API in this loop, over a real database."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest

from cncmon_api.main import listen, run
from cncmon_api.settings import ApiSettings
from cncmon_core.monitor import Health


@pytest.fixture
def database_dsn(postgres_dsn: str) -> str:
    """URL of a fresh, migrated database."""
    return postgres_dsn


@dataclass
class Event:
    """One server-sent event."""

    name: str
    data: Any


@dataclass
class Stream:
    """An open live stream."""

    lines: AsyncIterator[str]
    comments: list[str] = field(default_factory=list)

    async def event(self, name: str | None = None, timeout: float = 10) -> Event:
        """Return the next event (of that name)."""
        async with asyncio.timeout(timeout):
            kind = ""
            async for line in self.lines:
                if line.startswith("event: "):
                    kind = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    if name in (None, kind):
                        return Event(kind, msgspec.json.decode(line.removeprefix("data: ")))
                elif line:
                    self.comments.append(line)
        raise AssertionError("the stream ended")

    async def ended(self, timeout: float = 10) -> None:
        """Wait for the end of the stream."""
        async with asyncio.timeout(timeout):
            async for _ in self.lines:
                pass


@dataclass
class Api:
    """A running API."""

    url: str
    port: int
    http: httpx.AsyncClient
    health: Health
    stop: Callable[[], Awaitable[None]]

    async def get(self, path: str, **params: Any) -> httpx.Response:
        return await self.http.get(path, params=params)

    async def json(self, path: str, **params: Any) -> Any:
        answer = await self.get(path, **params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    @contextlib.asynccontextmanager
    async def live(self, **params: Any) -> AsyncIterator[Stream]:
        async with self.http.stream("GET", "/api/v1/live", params=params) as answer:
            assert answer.status_code == 200, await answer.aread()
            yield Stream(answer.aiter_lines())


StartApi = Callable[..., Awaitable[Api]]


@pytest.fixture
async def start_api(database_dsn: str) -> AsyncIterator[StartApi]:
    """Start an API on a free port, with settings of the test's choice; all are stopped at the end."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**changes: Any) -> Api:
            defaults = {"database_dsn": database_dsn, "port": 0, "tick_ms": 50, "idle_tick_ms": 50}
            config = ApiSettings(**(defaults | changes))
            listener = stack.enter_context(listen(config))
            health, stop = Health(), asyncio.Event()
            task = asyncio.create_task(run(config, listener, health, stop))
            port = listener.getsockname()[1]
            http = await stack.enter_async_context(httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=15))

            async def finish() -> None:
                stop.set()
                await asyncio.wait_for(asyncio.shield(task), 15)

            stack.push_async_callback(finish)
            for _ in range(200):
                with contextlib.suppress(httpx.ConnectError):
                    if (await http.get("/healthz")).status_code == 200:
                        break
                await asyncio.sleep(0.01)
            return Api(f"http://127.0.0.1:{port}", port, http, health, finish)

        yield start


@pytest.fixture
async def api(start_api: StartApi) -> Api:
    """An API with a fast tick."""
    return await start_api()


COLUMNS = (
    "machine_id",
    "time",
    "temperature",
    "spindle_speed",
    "x_pos_mm",
    "y_pos_mm",
    "z_pos_mm",
    "feed_rate_actual",
    "spindle_load_percent",
    "machine_state",
    "active_program_line",
    "total_power_kw",
    "mode",
    "program",
    "part_count",
    "tool_number",
    "anomaly_score",
    "extras",
)


class Store:
    """Writes what ingest would."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection

    async def machines(self, *ids: str, site: str = "plant-a", edge: str = "edge-1") -> None:
        await self.connection.executemany(
            "INSERT INTO machines (machine_id, site, edge) VALUES ($1, $2, $3)", [(i, site, edge) for i in ids]
        )

    async def samples(self, *rows: dict[str, Any]) -> None:
        await self.connection.copy_records_to_table(
            "sensor_data", records=[tuple(row.get(name) for name in COLUMNS) for row in rows], columns=COLUMNS
        )


@pytest.fixture
async def store(database_dsn: str) -> AsyncIterator[Store]:
    """A writer to the database."""
    connection = await asyncpg.connect(database_dsn)
    yield Store(connection)
    await connection.close()
