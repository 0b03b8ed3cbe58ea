"""`cncmon-simulator`: the simulated machines as a service of its own."""

import asyncio
import gc
import sys

from prometheus_client import REGISTRY

from cncmon_core import logs, service, settings
from cncmon_core.monitor import Health
from cncmon_simulator.metrics import FleetMetrics
from cncmon_simulator.service import running
from cncmon_simulator.settings import SECTION, Settings

log = logs.get(__name__)


async def _main(health: Health, stop: asyncio.Event) -> None:
    loaded = settings.load(Settings, SECTION)
    async with running(loaded) as simulator:
        fleet = simulator.fleet
        health.ready_when("machines", lambda: None if fleet.is_listening else "a machine is not listening")
        host, port, _ = fleet.address(next(iter(fleet.machines)))
        log.info(
            "machines are listening",
            machines=len(fleet.machines),
            behaviour=loaded.behaviour,
            addressing=loaded.addressing,
            host=host,
            first_port=port,
            control_port=simulator.control_port,
        )
        REGISTRY.register(FleetMetrics(fleet))
        # What exists now stays; the collector need not walk through hundreds of machines again and again.
        gc.freeze()
        await simulator.until(stop)
    log.info("stopped")


def main() -> None:
    """Run until SIGTERM or SIGINT; exit status 2 for settings that can't be used."""
    sys.exit(service.run("cncmon-simulator", _main))


if __name__ == "__main__":
    main()
