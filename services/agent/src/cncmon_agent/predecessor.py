"""What the process before this one had told of, for the case that its disk is gone (rule D4).

A bucket keeps one heartbeat of an edge. Where ingest was away and the card was changed, the first heartbeat of the new
card would take the place of the only word there is of what was on the old one: so it is passed on.
"""

import asyncio
from collections.abc import Container
from typing import Final

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client

from cncmon_agent.heartbeat import EpochReport
from cncmon_core import logs, names

log = logs.get(__name__)

GONE_MAX: Final = 20
"""Passed on at most, newest first: cards are changed seldom."""

TIMEOUT_S: Final = 5.0
RETRY_S: Final = 1.0
TRIES_MAX: Final = 3

_STREAM = f"KV_{names.KV_STATUS}"


class _Before(msgspec.Struct):
    epochs: list[EpochReport] = []
    gone: list[EpochReport] = []


class Predecessor:
    """Reads the last heartbeat under this edge's name, once, before the first of this process is sent."""

    def __init__(self, site: str, edge: str) -> None:
        self._subject = f"$KV.{names.KV_STATUS}.{names.edge_key(site, edge)}"
        self._told: list[EpochReport] | None = None

    async def ask(self, client: Client) -> None:
        """Know it, or after some tries do without: an edge that may not read its key must not be taken for dead."""
        if self._told is not None:
            return
        for _ in range(TRIES_MAX):
            try:
                self._told = await self._read(client)
                return
            except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
                log.warning("the heartbeat before this one can't be read", error=str(error) or type(error).__name__)
                await asyncio.sleep(RETRY_S)

    async def _read(self, client: Client) -> list[EpochReport]:
        try:
            message = await client.jetstream(timeout=TIMEOUT_S).get_last_msg(_STREAM, self._subject, direct=True)
        except (nats.js.errors.NotFoundError, nats.errors.NoRespondersError):
            # No bucket, or nothing of this edge in it.
            return []
        try:
            before = msgspec.json.decode(message.data or b"", type=_Before)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return []
        return [*before.epochs, *before.gone]

    def gone(self, here: Container[int]) -> list[EpochReport]:
        """Return what was told of and is not among the epochs that are here."""
        return [report for report in self._told or () if report.epoch not in here][:GONE_MAX]
