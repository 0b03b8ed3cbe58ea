"""The Machine documents of the simulated machines, for the agent to read them by."""

from pathlib import Path
from typing import Final

import msgspec
import yaml

from cncmon_core.errors import SettingsError
from cncmon_core.machine import (
    API_VERSION,
    Connection,
    Document,
    Machine,
    MachineSpec,
    Metadata,
    ModbusConnection,
    ProfileRef,
)
from cncmon_core.settings import variable_of
from cncmon_simulator.fleet import Fleet
from cncmon_simulator.settings import SECTION

_ANY_ADDRESS: Final = ("", "0.0.0.0", "::")  # noqa: S104 compared with, not listened on


def documents(fleet: Fleet) -> list[Document]:
    """Return the MachineProfile and one Machine for each machine of a fleet that listens."""
    return [fleet.profile, *(_machine(fleet, name) for name in fleet.machines)]


def _machine(fleet: Fleet, name: str) -> Machine:
    host, port, unit = fleet.address(name)
    behaviour = fleet.machines[name].behaviour
    connection = ModbusConnection(host="127.0.0.1" if host in _ANY_ADDRESS else host, port=port, unit_id=unit)
    return Machine(
        api_version=API_VERSION,
        metadata=Metadata(name=name),
        spec=MachineSpec(
            site=fleet.settings.site,
            edge=fleet.settings.edge,
            connection=Connection(modbus=connection),
            poll_interval_ms=fleet.settings.poll_interval_ms,
            profile_ref=ProfileRef(name=fleet.profile.metadata.name),
            ideal_cycle_time_s=behaviour.ideal_cycle_time_s,
            display_name=behaviour.display_name,
        ),
    )


def write(fleet: Fleet, path: Path) -> None:
    """Write the documents as YAML, whole or not at all.

    Raises:
        SettingsError: the file can't be written.
    """
    text = yaml.safe_dump_all(map(msgspec.to_builtins, documents(fleet)), sort_keys=False)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise SettingsError(f"{variable_of(SECTION, 'machines_file')}: can't be written: {error}") from error
