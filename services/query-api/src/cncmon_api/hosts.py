"""Which names of this service a request may use: a page elsewhere must not read it under a name of its own.

DNS rebinding: a page of evil.example has its name point to a plant's address, and its visitor's browser takes the
answers for that page's own. So a name that anybody can register has to be among the settings. Addresses, names without
a dot and those of networks without a registry can't be had by a page from outside.
"""

import ipaddress
from collections.abc import Iterable
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from cncmon_api import problems

UNREGISTRABLE: Final = (".localhost", ".local", ".internal", ".home.arpa", ".lan", ".svc", ".svc.cluster.local")
"""Special-use names: RFC 6761 section 6.3, RFC 6762 section 3, RFC 8375 section 3, ICANN's resolution 2024.07.29.06 on
`internal`; `lan` is in use and in no root zone; a cluster's names come before the network's.
"""


class KnownHosts:
    """Answers 421 to a request for a host that is not ours (RFC 9110 section 15.5.20)."""

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        self._app = app
        lowered = [name.lower() for name in names]
        self._names = frozenset(lowered)
        self._domains = tuple(name.removeprefix("*") for name in lowered if name.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on or refuse."""
        if scope["type"] == "http":
            host = name_of(Headers(scope=scope).get("host", ""))
            if host and not self._is_ours(host):
                detail = f"{host[:255]!r} is no name of this service: use its address, or add it to CNCMON_API_HOSTS."
                answer = problems.response(421, "Misdirected request", detail, scope["path"])
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        return host in self._names or host.endswith(self._domains) or is_out_of_reach(host)


def name_of(host: str) -> str:
    """Return the name or address in a header `Host`, in lower case, without port and without brackets."""
    name, _, rest = host.strip().lower().partition("]")
    if name.startswith("["):
        return name[1:]
    return (name + rest).rpartition(":")[0].rstrip(".") if ":" in host else name.rstrip(".")


def is_out_of_reach(name: str) -> bool:
    """Whether nobody can register a name, so that it can only mean a host in this network."""
    if "." not in name or name.endswith(UNREGISTRABLE):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
