"""Reads one edge's key of the bucket `edge_config`: what is there, or how far away it is."""

from datetime import UTC, datetime
from typing import NamedTuple

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js.api import RawStreamMsg

from cncmon_agent.config.current import Version
from cncmon_core import names

TIMEOUT_S = 5.0

_STREAM = f"KV_{names.KV_CONFIG}"
_OPERATION = "KV-Operation"
_MISSING = (nats.js.errors.NotFoundError, nats.errors.NoRespondersError)

Mark = tuple[str, int, int, int]
"""Tells one state of the whole bucket from another: when it was made, first and last sequence, messages."""


class Value(NamedTuple):
    """The key's value."""

    version: Version
    data: bytes


class Bucket:
    """One connection's view of the key. Its methods raise what nats-py raises when the connection is gone."""

    def __init__(self, client: Client, site: str, edge: str) -> None:
        self._js = client.jetstream(timeout=TIMEOUT_S)
        self._subject = f"$KV.{names.KV_CONFIG}.{names.edge_key(site, edge)}"
        self._may_ask = True

    async def mark(self) -> Mark | None:
        """Return the bucket's mark, or None where it is not known.

        A document of 100 machines has 150 kB: on a mobile link that is not to be read every ten seconds for nothing.
        """
        if not self._may_ask:
            return None
        try:
            info = await self._js.stream_info(_STREAM)
        except nats.js.errors.Error:
            return None
        except TimeoutError:
            # What the server answers to those who have no right to ask: nothing. Each session finds out once.
            self._may_ask = False
            return None
        state = info.state
        return str(info.created), state.first_seq, state.last_seq, state.messages

    async def read(self) -> Value | None:
        """Return what the key holds, or None where bucket, key or value do not exist.

        Raises:
            nats.errors.Error, nats.js.errors.Error, TimeoutError: it can't be known now.
        """
        message = await self._last_message()
        if message is None or not message.data or (message.headers or {}).get(_OPERATION):
            return None
        return Value(Version(message.seq or 0, message.time or datetime.fromtimestamp(0, UTC)), message.data)

    async def _last_message(self) -> RawStreamMsg | None:
        try:
            return await self._js.get_last_msg(_STREAM, self._subject, direct=True)
        except nats.js.errors.NotFoundError:
            return None
        except nats.errors.NoRespondersError:
            # No bucket, or one that was made by hand without direct gets.
            try:
                return await self._js.get_last_msg(_STREAM, self._subject)
            except _MISSING:
                return None
