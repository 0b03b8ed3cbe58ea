"""How every service starts and stops: settings, logs, health, one task group, SIGTERM, an exit within ten seconds."""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, Literal

from msgspec import Meta, Struct
from prometheus_client import REGISTRY, Info

from cncmon_core import __version__, logs, monitor, settings
from cncmon_core.errors import SettingsError

log = logs.get(__name__)

BUILD = Info("cncmon_build", "Version of the running service.", registry=REGISTRY)


class ServiceSettings(Struct, frozen=True):
    """What every service has (`CNCMON_SERVICE_…`)."""

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least level that is logged.")
    ] = "info"
    monitor_host: Annotated[str, Meta(description="Address of /healthz, /readyz and /metrics.")] = "127.0.0.1"
    monitor_port: Annotated[int, Meta(ge=-1, le=65535, description="Their port; 0 picks one, -1 serves none.")] = -1


Main = Callable[[monitor.Health, asyncio.Event], Awaitable[None]]
"""A service's own part: runs until the event is set, then stops in order and returns."""


def run(service: str, main: Main, *, serve_monitor: bool = True) -> int:
    """Run a service to its end and return the exit status: 0 stopped as asked, 2 wrong settings."""
    try:
        common = settings.load(ServiceSettings, "SERVICE")
        loop_factory = _uvloop()
        logs.setup(service, common.log_level)
        BUILD.info({"version": __version__, "service": service})
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(_main(main, common, serve_monitor))
    except SettingsError as error:
        print(f"{service}: {error}", file=sys.stderr)
        return 2
    return 0


async def _main(main: Main, common: ServiceSettings, serve_monitor: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    health = monitor.Health()
    if serve_monitor and common.monitor_port >= 0:
        port = _serve_monitor(health, common)
        log.info("serving health and metrics", port=port)
    beat = asyncio.create_task(health.beat())
    try:
        await main(health, stop)
    finally:
        beat.cancel()


def _serve_monitor(health: monitor.Health, common: ServiceSettings) -> int:
    try:
        return monitor.serve(health, common.monitor_host, common.monitor_port)
    except OSError as error:
        variable = settings.variable_of("SERVICE", "monitor_port")
        where = f"{common.monitor_host}:{common.monitor_port}"
        raise SettingsError(f"{variable}: can't serve health and metrics on {where}: {error.strerror}") from error


def _uvloop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # a platform without it runs on asyncio's own loop, slower and otherwise the same
        return None
    return uvloop.new_event_loop
