"""The simulator's settings: `CNCMON_SIMULATOR_…`."""

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from cncmon_core import names
from cncmon_core.errors import InvalidNameError, SettingsError
from cncmon_core.settings import variable_of

SECTION: Final = "SIMULATOR"

UNIT_ID_MAX: Final = 247
"""Last unit id of a device (Modbus over Serial Line V1.02, section 2.2)."""


class Settings(Struct, frozen=True, kw_only=True):
    """What is simulated, and where it can be reached."""

    machines: Annotated[int, Meta(ge=1, le=1000, description="How many machines.")] = 5
    behaviour: Annotated[
        Literal["reference", "shop"],
        Meta(description="reference: fixed sines and states. shop: jobs, tool wear, alarms, breaks."),
    ] = "shop"
    seed: Annotated[int, Meta(description="Same seed, same story.")] = 1
    time_scale: Annotated[
        float, Meta(gt=0, le=10_000, description="Story seconds a second; 10 makes ten minutes look like a hundred.")
    ] = 1.0
    host: Annotated[str, Meta(description="Address that the machines listen on.")] = "127.0.0.1"
    port_base: Annotated[
        int,
        Meta(ge=0, le=65535, description="Port of the first machine, the others follow; 0 picks a free port for each."),
    ] = 15020
    addressing: Annotated[
        Literal["ports", "unit_ids"],
        Meta(
            description="ports: a port for each machine. unit_ids: all behind port_base, unit ids from 1 (at most 247)."
        ),
    ] = "ports"
    site: Annotated[str, Meta(description="Site in the Machine documents.")] = "default"
    edge: Annotated[str, Meta(description="Edge in the Machine documents.")] = "edge"
    poll_interval_ms: Annotated[
        int, Meta(ge=10, le=3_600_000, description="Poll interval in the Machine documents.")
    ] = 1000
    name_prefix: Annotated[
        str,
        Meta(
            description="cnc- names the machines cnc-001 and so on; empty: mill-01, lathe-02 in a shop, else cnc-001."
        ),
    ] = ""
    machines_file: Annotated[
        str, Meta(description="File to which the MachineProfile and the Machines are written as YAML; empty: none.")
    ] = ""
    poll_log: Annotated[str, Meta(description="File to which every answered poll is written; empty: none.")] = ""
    control_host: Annotated[str, Meta(description="Address of the control API.")] = "127.0.0.1"
    control_port: Annotated[int, Meta(ge=-1, le=65535, description="Its port; 0 picks one, -1 serves none.")] = 8485


def check(settings: Settings) -> Settings:
    """Return the settings if they go together.

    Raises:
        SettingsError: names the variables and what is allowed.
    """
    if settings.addressing == "unit_ids" and settings.machines > UNIT_ID_MAX:
        raise SettingsError(
            f"{variable_of(SECTION, 'machines')} is {settings.machines}: one port has {UNIT_ID_MAX} unit ids; "
            f"use {variable_of(SECTION, 'addressing')}=ports"
        )
    last = settings.port_base + settings.machines - 1
    if settings.addressing == "ports" and settings.port_base and last > 65535:
        raise SettingsError(
            f"{variable_of(SECTION, 'port_base')} is {settings.port_base}: {settings.machines} machines need ports "
            f"up to {last}, and 65535 is the last; use at most {65536 - settings.machines}"
        )
    for field in ("site", "edge"):
        try:
            names.check_name(field, getattr(settings, field))
        except InvalidNameError as error:
            raise SettingsError(f"{variable_of(SECTION, field)}: {error}") from error
    if settings.name_prefix:
        try:
            names.check_name("machine", f"{settings.name_prefix}{settings.machines:03d}")
        except InvalidNameError as error:
            raise SettingsError(f"{variable_of(SECTION, 'name_prefix')}: {error}") from error
    return settings
