"""TCP ports: which are free, who has the others, and what to do about it."""

import errno
import random
import socket
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cncmon_standalone.errors import InUseError, PartError

if TYPE_CHECKING:
    import psutil

# Below the range from which kernels draw ports of outgoing connections (32768-60999 on Linux, RFC 6335's 49152-65535),
# and below Kubernetes' NodePorts (30000-32767): a port kept for a part that is being restarted stays free.
_OWN_FIRST, _OWN_LAST = 20_000, 29_999


@dataclass(frozen=True)
class WantedPort:
    """A port that a part is to listen on, and the option that chooses another."""

    port: int
    purpose: str
    option: str


def check(wanted: list[WantedPort]) -> None:
    """Raise InUseError that names every port that can't be had, who has it, and the option that changes it."""
    problems = []
    by_port: dict[int, WantedPort] = {}
    for want in wanted:
        if want.port in by_port:
            other = by_port[want.port]
            problems.append(f"{other.option} and {want.option} both say {want.port}: give them different ports")
        by_port[want.port] = want
        why = why_not(want.port)
        if why:
            problems.append(f"port {want.port} (for {want.purpose}) {why}: choose another with {want.option} N")
    if problems:
        raise InUseError("\n".join(problems))


def why_not(port: int) -> str | None:
    """Return None when we could listen on a port of the loopback address, else why not."""
    with socket.socket() as probe:
        # As servers do: connections of an earlier run that linger in TIME_WAIT are no obstacle, a listener is.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"is in use by {listener(port)}"
            if error.errno == errno.EACCES:
                return "may be used by root only"
            return f"can't be used ({error.strerror})"
    return None


def listener(port: int) -> str:
    """Return who listens on a port, as far as we may know."""
    import psutil

    try:
        open_sockets = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        open_sockets = []
    for pid in [s.pid for s in open_sockets if s.status == psutil.CONN_LISTEN and s.laddr and s.laddr.port == port]:
        if pid is not None:
            try:
                return f"{_name_of(psutil.Process(pid))}, pid {pid}"
            except psutil.Error:
                return f"pid {pid}"
    return "a program of another user"


def _name_of(process: "psutil.Process") -> str:
    """Return a process's name; for Python what it runs, since that says more."""
    name: str = process.name()
    argv = process.cmdline()
    if name.startswith("python") and "-m" in argv[:-1]:
        return argv[argv.index("-m") + 1]
    return name


def pick(count: int = 1, avoid: Collection[int] = ()) -> list[int]:
    """Return so many free ports in a row, for what nobody needs to know by number; none of those to avoid.

    Raises:
        PartError: there is no such row.
    """
    for _ in range(200):
        first = random.randrange(_OWN_FIRST, _OWN_LAST - count)  # noqa: S311 no secret; spreads those who pick at once
        row = list(range(first, first + count))
        if not set(avoid).intersection(row) and all(why_not(port) is None for port in row):
            return row
    raise PartError(f"found no {count} free TCP ports in a row between {_OWN_FIRST} and {_OWN_LAST}")
