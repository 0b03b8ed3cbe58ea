"""The marks of this process's heartbeats: by them it notices another process that has its memory (rule A6).

A virtual machine that is cloned while it runs, or reverted to a snapshot, goes on with the boot id and the epoch of the
other. Each heartbeat carries its number and a random nonce. A heartbeat under our own name with our boot id and a mark
that we never wrote was written by such a twin; nothing else writes one. An older heartbeat of ours that comes back with
a restored bucket is no evidence: numbers too old to be remembered count as ours.
"""

import secrets
import uuid
from collections import deque
from typing import Annotated, Final

import msgspec
import nats.errors
import nats.js.errors
from msgspec import Meta
from nats.aio.client import Client

from cncmon_core import logs, names

log = logs.get(__name__)

KEPT: Final = 1000
"""Nonces remembered, those of 83 minutes at a heartbeat every 5 s: 70 kB."""

TIMEOUT_S: Final = 2.0

FAILURES_MAX: Final = 3
"""An edge that may not read its key stops asking for the rest of the connection."""

_STREAM = f"KV_{names.KV_STATUS}"


class Mark(msgspec.Struct):
    """What tells a heartbeat from all others: whose, which one, and a number that nobody else drew."""

    boot_id: str
    beat: Annotated[int, Meta(ge=1)]
    nonce: str


class Beats:
    """Draws the marks of this process's heartbeats, and compares others with them."""

    def __init__(self, site: str, edge: str) -> None:
        self._subject = f"$KV.{names.KV_STATUS}.{names.edge_key(site, edge)}"
        self._failures = 0
        self.renew()

    def renew(self) -> None:
        """Begin anew under another boot id, which no twin shares."""
        self.boot_id = str(uuid.uuid4())
        self._count = 0
        self._nonces: deque[str] = deque(maxlen=KEPT)

    def next(self) -> Mark:
        """Return the mark of the next heartbeat; to be drawn before it is sent, since a failed send may arrive."""
        self._count += 1
        self._nonces.append(secrets.token_hex(8))
        return Mark(self.boot_id, self._count, self._nonces[-1])

    def is_twins(self, mark: Mark) -> bool:
        """Return whether a heartbeat was written by another process that has our memory."""
        if mark.boot_id != self.boot_id:
            return False
        age = self._count - mark.beat
        return age < 0 or (age < len(self._nonces) and self._nonces[-1 - age] != mark.nonce)

    def connected(self) -> None:
        """A connection begins: what could not be read in the last one may be readable."""
        self._failures = 0

    async def finds_twin(self, client: Client) -> bool:
        """Read the last heartbeat under this edge's name; return whether a twin wrote it."""
        if self._failures >= FAILURES_MAX:
            return False
        try:
            message = await client.jetstream(timeout=TIMEOUT_S).get_last_msg(_STREAM, self._subject, direct=True)
            mark = msgspec.json.decode(message.data or b"", type=Mark)
        except (nats.js.errors.NotFoundError, nats.errors.NoRespondersError):
            # No bucket, or nothing of this edge in it.
            return False
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            # Of a version that writes no marks, or no heartbeat at all.
            return False
        except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
            self._failures += 1
            log.info("our last heartbeat can't be read", error=str(error) or type(error).__name__)
            return False
        return self.is_twins(mark)
