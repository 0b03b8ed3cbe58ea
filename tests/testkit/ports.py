"""TCP ports for servers that a test starts."""

import random
import socket
from contextlib import suppress
from pathlib import Path

_LOWEST = 10_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """Return a TCP port of the loopback address that nobody listens on now.

    It lies below those that the kernel gives to outgoing connections: one of them would take it before the server does.
    """
    while True:
        port = random.randrange(_LOWEST, int(_RANGE.read_text().split()[0]))
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
