"""Reads and writes the edges' documents in KV `edge_config`; a write takes only where nobody wrote in between."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import APIError, NotFoundError

from cncmon_core import edge_config, names
from cncmon_core.edge_config import EdgeConfig
from cncmon_core.errors import EdgeConfigError
from cncmon_standalone import backlog
from cncmon_standalone.configure.change import EdgeChange
from cncmon_standalone.errors import PartError, UnusableError

TRIES_MAX = 10
TIMEOUT_S = 5.0

_STREAM = f"KV_{names.KV_CONFIG}"
_PREFIX = f"$KV.{names.KV_CONFIG}."
_EXPECTED = "Nats-Expected-Last-Subject-Sequence"
_WRONG_SEQUENCE = 10071
"""JSStreamWrongLastSequenceErrF in nats-server's errors.json."""

Edge = tuple[str, str]
"""Site and edge."""


class Stored(NamedTuple):
    """What an edge's key holds. seq: of the key's last message, 0 where there is none. fault: why it can't be used.

    revision: the document's; where that can't be known, one that is no less: every write takes a new seq.
    """

    config: EdgeConfig | None
    seq: int
    revision: int
    fault: str = ""


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Client]:
    """Yield a client.

    Raises:
        PartError: NATS, or the bucket, is not to be had; of what goes wrong inside as well.
    """
    try:
        client = await backlog.connect(url)
        try:
            yield client
        finally:
            await client.close()
    except (nats.errors.Error, nats.js.errors.Error, TimeoutError, OSError) as error:
        said = str(error) or type(error).__name__
        raise PartError(f"NATS at {url} can't be asked for the machines' configuration: {said}") from error


class Documents:
    """The bucket, on one connection."""

    def __init__(self, client: Client) -> None:
        self._js: JetStreamContext = client.jetstream(timeout=TIMEOUT_S)

    async def edges(self) -> list[Edge]:
        """Return the edges that have a document.

        Raises:
            PartError: there is no bucket.
        """
        try:
            info = await self._js.stream_info(_STREAM, subjects_filter=f"{_PREFIX}>")
        except NotFoundError as error:
            raise PartError(f"NATS has no bucket {names.KV_CONFIG}. It is made by: cncmon-ingest bootstrap") from error
        keys = [subject.removeprefix(_PREFIX).split(".") for subject in info.state.subjects or {}]
        return sorted((key[0], key[1]) for key in keys if len(key) == 2)

    async def read(self, site: str, edge: str) -> Stored:
        """Return what an edge's key holds, straight from the leader: it is about to be changed."""
        try:
            message = await self._js.get_last_msg(_STREAM, _PREFIX + names.edge_key(site, edge))
        except NotFoundError:
            return Stored(None, 0, 0)
        seq = message.seq or 0
        if not message.data:
            return Stored(None, seq, seq)
        try:
            config = edge_config.decode(message.data, site, edge)
        except EdgeConfigError as error:
            return Stored(None, seq, max(seq, error.revision or 0), str(error))
        return Stored(config, seq, config.revision)

    async def change(self, site: str, edge: str, to: Callable[[Stored], EdgeChange], *, dry_run: bool) -> EdgeChange:
        """Change an edge's document by `to`, again with what is there then where somebody else was quicker.

        Raises:
            UnusableError: the new document is none that an edge would take.
            PartError: others always were quicker.
        """
        for _ in range(TRIES_MAX):
            stored = await self.read(site, edge)
            change = to(stored)
            if not change.changes:
                return change
            data = _checked(change)
            if dry_run:
                return change
            try:
                await self._js.publish(_PREFIX + names.edge_key(site, edge), data, headers={_EXPECTED: str(stored.seq)})
            except APIError as error:
                if error.err_code != _WRONG_SEQUENCE:
                    raise
                continue
            return change
        raise PartError(f"the configuration of {site}/{edge} was changed by others {TRIES_MAX} times. Try again")


def _checked(change: EdgeChange) -> bytes:
    """Return the document's bytes if the edge will take it: better refused here than there."""
    data = edge_config.encode(change.wanted)
    try:
        edge_config.decode(data, change.site, change.edge)
    except EdgeConfigError as error:
        raise UnusableError(f"the configuration of {change.site}/{change.edge} would not be usable: {error}") from error
    return data
