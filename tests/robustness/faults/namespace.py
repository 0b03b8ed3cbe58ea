"""A network namespace of our own, joined to the host by two pairs of interfaces. Needs root and `ip`.

One leads to NATS and can be cut: packets then vanish without a word in both directions, as with a pulled cable behind
a switch, and nobody gets a reset. The other leads to the machines and stays.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Namespace:
    """A namespace by name. The host listens for it on `nats_host` and, where the machines are, on `machines_host`."""

    name: str
    nats_host: str
    machines_host: str
    link: str

    @property
    def prefix(self) -> list[str]:
        """What to put before a command line so that it runs inside."""
        return ["nsenter", f"--net=/var/run/netns/{self.name}", "--"]

    def cut(self) -> None:
        """Let no packet through to NATS or back."""
        _ip("link", "set", self.link, "down")

    def heal(self) -> None:
        """Let them through again."""
        _ip("link", "set", self.link, "up")


@contextlib.contextmanager
def namespace() -> Iterator[Namespace]:
    """Make a namespace until the block ends."""
    number = os.getpid() % 30_000
    name = f"cncmon-{os.getpid()}"
    _ip("netns", "add", name)
    try:
        nats_host = _join(name, f"cnn{number}", number * 2)
        machines_host = _join(name, f"cnm{number}", number * 2 + 1)
        _ip("-n", name, "link", "set", "lo", "up")
        yield Namespace(name, nats_host, machines_host, f"cnn{number}o")
    finally:
        _ip("netns", "delete", name)


def _join(name: str, pair: str, number: int) -> str:
    """Join the namespace to the host by a pair of interfaces; return the host's address."""
    # 198.18.0.0/15 is for tests of network devices (RFC 2544): no plant and no cloud uses it.
    base, last = f"198.18.{number // 64 % 256}", number % 64 * 4
    _ip("link", "add", f"{pair}o", "type", "veth", "peer", "name", f"{pair}i", "netns", name)
    _ip("addr", "add", f"{base}.{last + 1}/30", "dev", f"{pair}o")
    _ip("link", "set", f"{pair}o", "up")
    _ip("-n", name, "addr", "add", f"{base}.{last + 2}/30", "dev", f"{pair}i")
    _ip("-n", name, "link", "set", f"{pair}i", "up")
    return f"{base}.{last + 1}"


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
