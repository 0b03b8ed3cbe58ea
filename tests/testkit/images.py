"""Container images without a registry: those that a node starts with, stand-ins for others' images, and our own.

Everything is kept in a podman storage of its own in the user's cache, so that a second run builds nothing. Needs root
and what `scripts/setup-cluster.sh node` installs.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from cncmon_standalone.embedded import nats
from testkit.kubernetes import ROOT

CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "cncmon-cluster" / "images"
BASE: Final = "docker.io/library/python:3.13-slim-trixie"
"""What the Dockerfiles build on; here Debian's own Python."""

_FOLDER: Final = ROOT / "tests/cluster/node/images"
_NAMES: Final = {
    "pause": "registry.k8s.io/pause:3.10",
    "coredns": "docker.io/library/coredns:node",
    "nats": "docker.io/library/nats:2.15.0-alpine",
    "timescaledb": "docker.io/timescale/timescaledb:2.23.0-pg18",
}
_CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
_PACKAGES = "python3,python3-venv,ca-certificates"


def variables() -> dict[str, str]:
    """Return the variables by which podman uses the tests' own storage, and scripts/images.sh uses podman."""
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / "containers.conf").write_text(_CONTAINERS_CONF)
    storage = f'[storage]\ndriver = "overlay"\ngraphroot = "{CACHE}/storage"\nrunroot = "/run/cncmon-images"\n'
    (CACHE / "storage.conf").write_text(storage)
    build = "--pull=never --network=host --isolation=chroot"
    if bundle := os.environ.get("SSL_CERT_FILE"):
        build += f" --build-arg=SSL_CERT_FILE={bundle} --volume={bundle}:{bundle}:ro"
    return {
        "CONTAINERS_CONF": str(CACHE / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(CACHE / "storage.conf"),
        "CNCMON_IMAGES_ENGINE": "podman",
        "CNCMON_IMAGES_BUILD": build,
    }


def podman(*arguments: str | Path, check: bool = True, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
    """Run podman on the tests' storage.

    Raises:
        AssertionError: check is set, and it failed.
    """
    done = subprocess.run(
        ["podman", *arguments],
        env=os.environ | variables(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert not check or done.returncode == 0, f"podman {' '.join(map(str, arguments))}: {done.stderr}"
    return done


def system_images(programs: Path) -> Path:
    """Return a folder with the images that a node starts with: its own, our Dockerfiles' base, and the stand-ins.

    programs: folder of `scripts/setup-cluster.sh node`.
    """
    sources = {"pause": programs / "pause", "coredns": programs / "coredns", "nats": nats.program()}
    stamp = _stamp([Path(__file__), *(path for path in sorted(_FOLDER.rglob("*")) if path.is_file())], sources)
    folder = CACHE / "system"
    if (folder / "stamp").exists() and (folder / "stamp").read_text() == stamp:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _make_base()
    for name, image in _NAMES.items():
        context = CACHE / "context"
        shutil.rmtree(context, ignore_errors=True)
        shutil.copytree(_FOLDER / name, context)
        if name in sources:
            shutil.copy(sources[name], context / ("nats-server" if name == "nats" else name))
        podman("build", *variables()["CNCMON_IMAGES_BUILD"].split(), "--quiet", "--tag", image, context)
    podman("save", "--multi-image-archive", "--output", folder / "images.tar", BASE, *_NAMES.values())
    (folder / "stamp").write_text(stamp)
    return folder


def our_images(out: Path, checkout: Path = ROOT, *, tag: str | None = None, services: Iterable[str] = ()) -> Path:
    """Build the images of a checkout's services by its own Dockerfiles, and return the file that they are in.

    tag: the charts' version without it. services: all without it.
    """
    options = [] if tag is None else ["--tag", tag]
    subprocess.run(
        [checkout / "scripts/images.sh", "--out", out, *options, *services],
        env=os.environ | variables(),
        check=True,
        timeout=1800,
    )
    return out


def _make_base() -> None:
    """Debian 13 with Python, as the official image of Python has it; from the mirror that this machine uses."""
    if podman("image", "exists", BASE, check=False).returncode == 0:
        return
    rootfs = CACHE / "rootfs"
    shutil.rmtree(rootfs, ignore_errors=True)
    targets = ["apt-get", "indextargets", "--format", "$(REPO_URI)"]
    only = ["Created-By: Packages", "Origin: Debian", "Component: main"]
    found = subprocess.run([*targets, *only], capture_output=True, text=True, check=False)
    mirror = [uri for uri in found.stdout.splitlines() if "security" not in uri][:1]
    command = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "trixie", str(rootfs), *mirror]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    for path in (*rootfs.glob("var/cache/apt/archives/*.deb"), *rootfs.glob("var/lib/apt/lists/*_*")):
        path.unlink()
    archive = CACHE / "base.tar"
    subprocess.run(["tar", "-C", rootfs, "--exclude", "./dev/*", "-cf", archive, "."], check=True)
    podman("import", archive, BASE)
    archive.unlink()
    shutil.rmtree(rootfs)


def _stamp(files: Iterable[Path], programs: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for path in (*files, *programs.values()):
        digest.update(path.read_bytes())
    return digest.hexdigest()
