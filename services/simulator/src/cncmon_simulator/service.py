"""The simulator as a whole, for the service's main and for tests that want machines in their own process."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from cncmon_simulator import control, documents
from cncmon_simulator.fleet import Clock, Fleet
from cncmon_simulator.settings import Settings


class Simulator:
    """A running simulator. `control_port` is None where no control API is served."""

    def __init__(self, fleet: Fleet, control_port: int | None, tending: asyncio.Task[None]) -> None:
        self.fleet = fleet
        self.control_port = control_port
        self.tending = tending

    async def until(self, stop: asyncio.Event) -> None:
        """Return when `stop` is set.

        Raises:
            OSError: the poll log can't be written any more.
        """
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({stopping, self.tending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        if self.tending.done():
            self.tending.result()


@asynccontextmanager
async def running(settings: Settings, clock: Clock = time.monotonic) -> AsyncIterator[Simulator]:
    """Run the machines inside this block, on this event loop.

    With `port_base=0` and `control_port` 0 or -1 nothing can be in the way. `clock` gives the seconds that the
    story is a function of.

    Raises:
        SettingsError: names the port or file that can't be used, and its setting.
    """
    fleet = Fleet(settings, clock)
    try:
        await fleet.start()
        async with control.serve(fleet) as control_port:
            if settings.machines_file:
                documents.write(fleet, Path(settings.machines_file))
            tending = asyncio.create_task(fleet.tend(), name="tend")
            try:
                yield Simulator(fleet, control_port, tending)
            finally:
                tending.cancel()
                with suppress(asyncio.CancelledError):
                    await tending
    finally:
        await fleet.stop()
