"""Checks of Machine documents, and of the machines that they describe: each is read once, as its agent reads it."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from cncmon_agent import drivers
from cncmon_agent.errors import DriverError, UnreachableError
from cncmon_core import machine_files
from cncmon_core.machine import Machine
from cncmon_standalone.doctor.check import Group

READ_AT_ONCE_MAX = 50


async def documents(files: Sequence[Path]) -> list[Group]:
    """Check the documents, then read every signal of each machine once."""
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
    limit = asyncio.Semaphore(READ_AT_ONCE_MAX)
    await asyncio.gather(*(_read(reached, machine, limit) for machine in found.machines.values()))
    reached.checks.sort(key=lambda check: check.name)
    return [group, reached]


async def _read(group: Group, machine: Machine, limit: asyncio.Semaphore) -> None:
    name = f"{machine.metadata.name} answers"
    driver = drivers.make(machine)
    async with limit:
        try:
            reading = await driver.read()
        except UnreachableError as error:
            group.fail(name, str(error), "check address, cable, firewall, and that the controller's server is on")
            return
        except DriverError as error:
            group.fail(name, str(error), "it is there; check its address (unitId) and those of its signals")
            return
        finally:
            await driver.close()
    values = ", ".join(f"{signal} = {value}" for signal, value in reading.values.items())
    group.ok(name, f"{len(reading.values)} of {len(machine.spec.signals)} signals: {values}")
    for signal, reason in reading.errors.items():
        group.fail(f"{machine.metadata.name} has {signal}", reason, "correct its address, or leave the signal out")
