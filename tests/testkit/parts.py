"""Parts that a user's machine may lack. CI sets CNCMON_TEST_REQUIRE=all: then a missing part is a failure."""

import os
import platform
import shutil
from pathlib import Path

REQUIRED = os.environ.get("CNCMON_TEST_REQUIRE") == "all"

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def missing_part(part: str) -> str | None:
    """Return why a part can't be had here, or None where it can."""
    if part == "chromium":
        return None if browser() else "no Chromium on PATH"
    if part == "root":
        return None if os.geteuid() == 0 else "needs root"
    if part == "kubernetes":
        return _without_kubernetes()
    if part == "node":
        return _without_node()
    if part == "timescaledb":
        return None if timescaledb_programs() else "no TimescaleDB in a PostgreSQL (scripts/setup-timescaledb.sh)"
    raise ValueError(f"unknown part {part!r}")


def _without_kubernetes() -> str | None:
    """A cluster of the user's, or what a control plane of our own is made with (scripts/setup-cluster.sh)."""
    if os.environ.get("KUBECONFIG"):
        return None if shutil.which("kubectl") else "KUBECONFIG is set, and there is no kubectl on PATH"
    if platform.system() != "Linux":
        return "a control plane of our own needs Linux; or set KUBECONFIG"
    return None if shutil.which("openssl") else "no openssl on PATH; or set KUBECONFIG"


def _without_node() -> str | None:
    """What a node of our own is made with (scripts/setup-cluster.sh node)."""
    if platform.system() != "Linux" or os.geteuid() != 0:
        return "a Kubernetes node of our own needs Linux and root"
    return (
        None if shutil.which("apt-get") or shutil.which("containerd") else "a node of our own needs Debian's packages"
    )


def browser() -> str | None:
    """Return the path of a Chromium, if there is one."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def timescaledb_programs() -> Path | None:
    """Return the programs of the newest of Debian's PostgreSQL servers that has TimescaleDB, if there is one."""
    controls = Path("/usr/share/postgresql").glob("[0-9]*/extension/timescaledb.control")
    versions = sorted((control.parts[-3] for control in controls), key=int, reverse=True)
    folders = (Path("/usr/lib/postgresql") / version / "bin" for version in versions)
    return next((folder for folder in folders if (folder / "postgres").exists()), None)
