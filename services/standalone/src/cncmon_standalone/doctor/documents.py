"""Checks of Machine documents, and of the machines that they describe."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from cncmon_core import machine_files
from cncmon_core.machine import Machine, ModbusConnection
from cncmon_standalone.doctor import modbus
from cncmon_standalone.doctor.check import Group

ASKED_AT_ONCE_MAX = 50


async def documents(files: Sequence[Path]) -> list[Group]:
    """Check the documents, then ask each machine for one register."""
    group = Group("documents")
    found = machine_files.load(files)
    for problem in found.problems:
        group.fail("every document is valid", str(problem), "correct it; this machine is left out, the others run")
    if found.machines:
        group.ok("there are machines", f"{len(found.machines)}, {len(found.profiles)} shared profiles")
    elif not found.problems:
        group.fail("there are machines", "none in these files", "write a Machine document, see the README")
    if not found.machines:
        return [group]
    reached = Group("machines")
    limit = asyncio.Semaphore(ASKED_AT_ONCE_MAX)
    await asyncio.gather(*(_ask(reached, machine, limit) for machine in found.machines.values()))
    reached.checks.sort(key=lambda check: check.name)
    return [group, reached]


async def _ask(group: Group, machine: Machine, limit: asyncio.Semaphore) -> None:
    name = f"{machine.metadata.name} answers"
    connection = machine.spec.connection.modbus
    if not isinstance(connection, ModbusConnection):
        group.warn(name, f"protocol {machine.spec.connection.driver()} can't be checked from here", "")
        return
    place = f"Modbus TCP {connection.host}:{connection.port}, unit {connection.unit_id}"
    async with limit:
        try:
            exception = await modbus.ask(connection, machine.spec.signals[0])
        except modbus.NoAnswerError as error:
            group.fail(
                name, str(error), "check address, cable, firewall, and that the controller's Modbus server is on"
            )
            return
    if exception is None:
        group.ok(name, place)
    else:
        group.warn(name, f"{place}: {exception}", "it answers; check unitId and the register of its first signal")
