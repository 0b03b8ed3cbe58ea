"""The `cncmon-api` command: builds the parts, runs them until SIGTERM, and stops in order within ten seconds."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import Iterator
from typing import Final

import uvicorn

from cncmon_api import settings as api_settings
from cncmon_api.app import build
from cncmon_api.database import Database
from cncmon_api.live import Hub
from cncmon_api.poller import Poller
from cncmon_api.protocol import bounded
from cncmon_api.settings import SECTION, ApiSettings
from cncmon_core import logs, service, settings
from cncmon_core.errors import SettingsError
from cncmon_core.monitor import Health

log = logs.get(__name__)

BACKLOG: Final = 1_024
KEEP_ALIVE_S: Final = 30
SHUTDOWN_S: Final = 5
"""For answers under way at SIGTERM; with closing the pool it stays under ten seconds."""


class Server(uvicorn.Server):
    """uvicorn without signal handlers: `cncmon_core.service` has them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


def main() -> None:
    """Run the service and exit with its status."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print("cncmon-api: the query API of CNC Monitor. Settings are environment variables:\n")
        for variable, default, description in settings.describe(ApiSettings, SECTION):
            print(f"{variable} [{default}]\n    {description}")
        return
    sys.exit(service.run("cncmon-api", serve, serve_monitor=False))


async def serve(health: Health, stop: asyncio.Event) -> None:
    """Serve until `stop` is set."""
    config = settings.load(api_settings.ApiSettings, SECTION)
    with listen(config) as listener:
        await run(config, listener, health, stop)


async def run(config: ApiSettings, listener: socket.socket, health: Health, stop: asyncio.Event) -> None:
    """Serve on a bound socket until `stop` is set, then end streams, answers under way and the pool, in this order."""
    # Live has a connection of its own: slow requests must not stop it, and it finds out first when the database goes.
    database, live_database = Database(config, config.pool_size - 1), Database(config, 1)
    hub = Hub(config.live_clients_max, config.live_queue_max)
    poller = Poller(config, live_database, hub)
    app = build(config, health, database, hub, poller)
    server = Server(
        uvicorn.Config(
            app,
            http=bounded(config.header_timeout_ms / 1000, config.connections_max),
            loop="none",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
    )
    await database.open()
    await live_database.open()
    try:
        async with asyncio.TaskGroup() as group:
            polling = group.create_task(poller.run())
            serving = group.create_task(server.serve(sockets=[listener]))
            log.info("serving", address="{}:{}".format(*listener.getsockname()[:2]))
            await stop.wait()
            hub.close()
            server.should_exit = True
            await serving
            polling.cancel()
    finally:
        await asyncio.gather(database.close(), live_database.close())


def listen(config: ApiSettings) -> socket.socket:
    """Return a socket bound to the settings' address.

    Raises:
        SettingsError: the address is in use or can't be used.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind)
    except OSError as error:
        raise SettingsError(f"CNCMON_API_HOST is {config.host!r}: {error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"can't listen on {config.host} port {config.port}: {error.strerror}; "
            "set CNCMON_API_HOST and CNCMON_API_PORT to an address and port that are free"
        ) from error
    listener.setblocking(False)
    return listener


if __name__ == "__main__":
    main()
