"""Fixtures of the query API's tests: a real server process's worth of API in this loop, over a real database."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest

from cncmon_api.main import listen, run
from cncmon_api.settings import ApiSettings
from cncmon_core.monitor import Health
from testkit.waiting import WAIT_S_MAX, until


@pytest.fixture
def database_dsn(postgres_dsn: str) -> str:
    """URL of a fresh, migrated database."""
    return postgres_dsn


@dataclass
class Event:
    """One server-sent event."""

    name: str
    data: Any


class Stream:
    """An open live stream, read by a task of its own: giving up waiting must not close it."""

    def __init__(self) -> None:
        self.comments: list[str] = []
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()

    async def read(self, lines: AsyncIterator[str]) -> None:
        kind = ""
        with contextlib.suppress(httpx.TransportError):
            async for line in lines:
                if line.startswith("event: "):
                    kind = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    self._events.put_nowait(Event(kind, msgspec.json.decode(line.removeprefix("data: "))))
                elif line:
                    self.comments.append(line)
        self._events.put_nowait(None)

    async def event(self, name: str | None = None, timeout: float = WAIT_S_MAX) -> Event:
        """Return the next event (of that name)."""
        async with asyncio.timeout(timeout):
            while (event := await self._events.get()) is not None:
                if name in (None, event.name):
                    return event
        raise AssertionError("the stream ended")

    async def database_ok(self) -> None:
        """Wait until the stream says that the database is back; until then it may give changing reasons."""
        while (await self.event("status")).data != {"database": "ok", "message": ""}:
            pass

    async def ended(self, timeout: float = WAIT_S_MAX) -> None:
        """Wait for the end of the stream."""
        async with asyncio.timeout(timeout):
            while await self._events.get() is not None:
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

    async def metric(self, name: str) -> float:
        """Return a metric without labels."""
        lines = (await self.get("/metrics")).text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    async def machines(self) -> list[dict[str, Any]]:
        """Return the list of machines as it is after what was stored until now."""
        await asyncio.sleep(0.1)  # two ticks
        machines: list[dict[str, Any]] = (await self.json("/api/v1/machines"))["machines"]
        return machines

    @contextlib.asynccontextmanager
    async def live(self, **params: Any) -> AsyncIterator[Stream]:
        async with self.http.stream("GET", "/api/v1/live", params=params) as answer:
            assert answer.status_code == 200, await answer.aread()
            stream = Stream()
            reading = asyncio.create_task(stream.read(answer.aiter_lines()))
            try:
                yield stream
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)


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
            http = await stack.enter_async_context(
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_S_MAX)
            )

            async def finish() -> None:
                stop.set()
                await asyncio.wait_for(asyncio.shield(task), WAIT_S_MAX)

            stack.push_async_callback(finish)

            async def answers() -> bool:
                with contextlib.suppress(httpx.ConnectError):
                    return (await http.get("/healthz")).status_code == 200
                return False

            await until(answers)
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
        await self.connection.execute(
            "SELECT ensure_partition('sensor_data', time) FROM unnest($1::timestamptz[]) AS time",
            list({row["time"].replace(hour=12, minute=0, second=0, microsecond=0) for row in rows}),
        )
        await self.connection.copy_records_to_table(
            "sensor_data", records=[tuple(row.get(name) for name in COLUMNS) for row in rows], columns=COLUMNS
        )


@pytest.fixture
async def store(database_dsn: str) -> AsyncIterator[Store]:
    """A writer to the database."""
    connection = await asyncpg.connect(database_dsn)
    yield Store(connection)
    await connection.close()
