"""All machines of one process: who listens where, faults by name, the poll log's writing out."""

import asyncio
import errno
import resource
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from cncmon_core import logs
from cncmon_core.errors import SettingsError
from cncmon_core.settings import variable_of
from cncmon_simulator.behaviour import Behaviour
from cncmon_simulator.errors import FaultError, UnknownMachineError
from cncmon_simulator.faults import KINDS, Fault, Kind
from cncmon_simulator.machine import Machine
from cncmon_simulator.modbus import Listener, Route
from cncmon_simulator.poll_log import FLUSH_S, PollLog
from cncmon_simulator.reference import Reference
from cncmon_simulator.register_map import RegisterMap, load_profile
from cncmon_simulator.settings import SECTION, Settings, check
from cncmon_simulator.shop import Shop, kind_of

log = logs.get(__name__)

EVERY: Final = "*"
CONNECTIONS_MAX: Final = 32
"""Connections a machine takes, as controllers have a limit; more are reset."""

Clock = Callable[[], float]
"""Seconds that never go back."""


class Fleet:
    """The machines by name, in order, and the sockets they are behind."""

    def __init__(self, settings: Settings, clock: Clock = time.monotonic) -> None:
        """Make the machines; nothing listens yet.

        Raises:
            SettingsError: the settings don't go together.
        """
        self.settings = check(settings)
        self.profile = load_profile()
        self.registers = RegisterMap(self.profile.spec.signals)
        self.machines: dict[str, Machine] = {}
        self._clock, self._start_s = clock, clock()
        for index in range(settings.machines):
            name = name_of(settings, index)
            behaviour = _behaviour(settings, index, name)
            self.machines[name] = Machine(name, behaviour, self.registers, self.story_s, settings.seed)
        self._listeners = self._make_listeners()
        self._log: PollLog | None = None
        self._switching = asyncio.Lock()

    def story_s(self) -> float:
        """Return the seconds since start, in the story's time."""
        return (self._clock() - self._start_s) * self.settings.time_scale

    def _make_listeners(self) -> dict[str, Listener]:
        host, base = self.settings.host, self.settings.port_base
        if self.settings.addressing == "unit_ids":
            by_unit = dict(enumerate(self.machines.values(), 1))
            shared = Listener(host, base, by_unit.get, CONNECTIONS_MAX * len(by_unit))
            return dict.fromkeys(self.machines, shared)
        return {
            name: Listener(host, base + index if base else 0, _always(machine), CONNECTIONS_MAX)
            for index, (name, machine) in enumerate(self.machines.items())
        }

    @property
    def is_listening(self) -> bool:
        """Whether every machine that is not switched off can be reached."""
        return all(self._listeners[name].is_open or machine.is_off for name, machine in self.machines.items())

    def address(self, name: str) -> tuple[str, int, int]:
        """Return (host, port, unit id) of a machine.

        Raises:
            UnknownMachineError: there is none of that name.
        """
        listener = self._listeners[self.machine(name).name]
        unit = 1 + list(self.machines).index(name) if self.settings.addressing == "unit_ids" else 1
        return listener.host, listener.port, unit

    def machine(self, name: str) -> Machine:
        """Return a machine by name.

        Raises:
            UnknownMachineError: there is none of that name.
        """
        if name not in self.machines:
            names = list(self.machines)
            known = ", ".join(names) if len(names) <= 10 else f"{names[0]} to {names[-1]}"
            raise UnknownMachineError(f"no machine {name!r}; there are {known}, and {EVERY} for all")
        return self.machines[name]

    def _chosen(self, name: str) -> Iterable[Machine]:
        return list(self.machines.values()) if name == EVERY else [self.machine(name)]

    async def start(self) -> None:
        """Open the poll log, and listen.

        Raises:
            SettingsError: names the port or file that can't be used, and its setting.
        """
        _allow_open_files(self.settings.machines)
        if self.settings.poll_log:
            try:
                self._log = PollLog(Path(self.settings.poll_log))
            except OSError as error:
                raise SettingsError(f"{variable_of(SECTION, 'poll_log')}: can't be written: {error}") from error
        for name, machine in self.machines.items():
            machine.log = self._log
            if not self._listeners[name].is_open:
                try:
                    await self._listeners[name].open()
                except OSError as error:
                    raise SettingsError(self._cannot_listen(name, error)) from error

    def _cannot_listen(self, name: str, error: OSError) -> str:
        listener = self._listeners[name]
        what = "is in use" if error.errno == errno.EADDRINUSE else f"can't be listened on ({error.strerror or error})"
        return (
            f"port {listener.port} of {listener.host}, meant for machine {name}, {what}: stop what uses it, or set "
            f"{variable_of(SECTION, 'port_base')} to another port (0 picks free ones)"
        )

    async def tend(self) -> None:
        """Write the poll log out, and switch machines on whose time off is over, until cancelled.

        Raises:
            OSError: the poll log can't be written; there is no point in going on without it.
        """
        while True:
            await asyncio.sleep(FLUSH_S)
            if self._log is not None:
                self._log.flush()
            await self._switch()

    async def stop(self) -> None:
        """Reset the connections and close the sockets and the log."""
        for listener in self._listeners.values():
            await listener.close()
        if self._log is not None:
            self._log.close()
            self._log = None
        for machine in self.machines.values():
            machine.log = None

    def flush(self) -> None:
        """Write the poll log out now."""
        if self._log is not None:
            self._log.flush()

    async def set_fault(self, name: str, fault: Fault) -> None:
        """Set a fault of a machine, or of every one by the name `*`.

        Raises:
            UnknownMachineError: there is none of that name.
        """
        for machine in self._chosen(name):
            machine.set_fault(fault)
        await self._switch()

    async def clear_faults(self, name: str, kind: str | None = None) -> None:
        """Clear the faults of a kind, or all, of a machine, or of every one by the name `*`.

        Raises:
            UnknownMachineError: there is none of that name.
            FaultError: there is no such kind of fault.
        """
        known: Kind | None = next((k for k in KINDS if k == kind), None)
        if kind is not None and known is None:
            raise FaultError(f"no fault {kind!r}; a fault is one of {', '.join(KINDS)}")
        for machine in self._chosen(name):
            machine.clear_faults(known)
        await self._switch()

    async def _switch(self) -> None:
        """Open and close sockets so that they match the faults `off`; a shared socket stays open."""
        if self.settings.addressing == "unit_ids":
            return
        async with self._switching:
            for name, machine in self.machines.items():
                await self._match(machine, self._listeners[name])

    async def _match(self, machine: Machine, listener: Listener) -> None:
        if machine.is_off and listener.is_open:
            await listener.close()
        elif not machine.is_off and not listener.is_open:
            try:
                await listener.open()
            except OSError as error:
                log.error(
                    "a machine can't be switched on, trying again",
                    machine=machine.name,
                    port=listener.port,
                    error=str(error),
                )


def _always(machine: Machine) -> Route:
    """Route every unit id to one machine: a device with an address of its own is no gateway."""
    return lambda _unit: machine


def name_of(settings: Settings, index: int) -> str:
    """Return the name of the machine with an index from 0."""
    if settings.behaviour == "shop" and not settings.name_prefix:
        return f"{kind_of(index).name}-{index + 1:0{len(str(max(settings.machines, 10)))}d}"
    return f"{settings.name_prefix or 'cnc-'}{index + 1:03d}"


def _behaviour(settings: Settings, index: int, name: str) -> Behaviour:
    if settings.behaviour == "reference":
        return Reference(settings.seed, name)
    return Shop(settings.seed, name, index)


def _allow_open_files(machines: int) -> None:
    """Raise the soft limit of open files where hundreds of machines with a client or two each would meet it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 256 + 4 * machines
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
