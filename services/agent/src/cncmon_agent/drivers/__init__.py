"""How machines are read: one folder a protocol, complete with README, a sample Machine and tests; none knows another.

A driver opens its connection when first read and again whenever it was lost; the poller above it owns time-outs between
polls, back-off and the offline state, so exactly one layer reconnects.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from cncmon_agent.errors import DriverError
from cncmon_core.machine import Machine


class Reading(NamedTuple):
    """What one poll brought: values by signal name, and for each signal that could not be read, why."""

    values: dict[str, Any]
    errors: dict[str, str]


Told = Callable[[Reading | DriverError | None], None]
"""Who is told of an answer; None: something is amiss that only `Driver.read` can deal with."""


class Driver(Protocol):
    """Reads one machine."""

    def ask(self, told: Told) -> bool:
        """Do what `read` does, where that is sending to a machine that is connected: `told` is called with the outcome,
        once. Return False, and call nobody, where only `read` will do; a driver may always say so.

        To wake a task costs as much as decoding an answer does; this way none is (docs/decisions/0012).
        """
        ...

    async def read(self) -> Reading:
        """Read every signal once.

        Raises:
            DriverError: nothing could be read.
        """
        ...

    async def close(self) -> None:
        """Let go of the connection."""
        ...


def make(machine: Machine) -> Driver:
    """Return the driver of a machine; its library is imported here and not before."""
    driver = machine.spec.connection.driver()
    if driver == "modbus":
        from cncmon_agent.drivers.modbus.driver import ModbusDriver

        return ModbusDriver(machine)
    raise ValueError(f"no driver {driver!r}")
