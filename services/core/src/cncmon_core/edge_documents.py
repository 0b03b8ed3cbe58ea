"""Reads and writes the edges' documents in KV `edge_config`; a write takes only where nobody wrote in between."""

from collections.abc import Callable
from typing import Final, NamedTuple

from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import APIError, NotFoundError

from cncmon_core import edge_config, names
from cncmon_core.edge_config import EdgeConfig
from cncmon_core.errors import EdgeConfigError, EdgeDocumentError

TRIES_MAX: Final = 10
TIMEOUT_S: Final = 5.0

WRITER_HEADER: Final = "Cncmon-Writer"
"""Who wrote a document, for a writer that must not replace another's; whoever gives no name has none."""

_STREAM: Final = f"KV_{names.KV_CONFIG}"
_PREFIX: Final = f"$KV.{names.KV_CONFIG}."
_EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"
_WRONG_SEQUENCE: Final = 10071
"""JSStreamWrongLastSequenceErrF in nats-server's errors.json."""

Edge = tuple[str, str]
"""Site and edge."""


class Stored(NamedTuple):
    """What an edge's key holds. seq: of the key's last message, 0 where there is none. fault: why it can't be used.

    revision: the document's; where that can't be known, one that is no less: every write takes a new seq. writer: who
    wrote it, empty where that is not said.
    """

    config: EdgeConfig | None
    seq: int
    revision: int
    fault: str = ""
    writer: str = ""


class EdgeDocuments:
    """The bucket, on one connection. Every method may raise nats-py's errors besides those it names."""

    def __init__(self, client: Client, writer: str = "") -> None:
        """writer: our name, for `Stored.writer`."""
        self._js: JetStreamContext = client.jetstream(timeout=TIMEOUT_S)
        self._writer = writer

    async def edges(self) -> list[Edge]:
        """Return the edges that have a document.

        Raises:
            EdgeDocumentError: there is no bucket.
        """
        try:
            info = await self._js.stream_info(_STREAM, subjects_filter=f"{_PREFIX}>")
        except NotFoundError as error:
            text = f"NATS has no bucket {names.KV_CONFIG}. It is made by: cncmon-ingest bootstrap"
            raise EdgeDocumentError(text) from error
        keys = [subject.removeprefix(_PREFIX).split(".") for subject in info.state.subjects or {}]
        return sorted((key[0], key[1]) for key in keys if len(key) == 2)

    async def read(self, site: str, edge: str) -> Stored:
        """Return what an edge's key holds, straight from the leader: it is about to be changed."""
        try:
            message = await self._js.get_last_msg(_STREAM, _PREFIX + names.edge_key(site, edge))
        except NotFoundError:
            return Stored(None, 0, 0)
        seq, writer = message.seq or 0, (message.headers or {}).get(WRITER_HEADER, "")
        if not message.data:
            return Stored(None, seq, seq, writer=writer)
        try:
            config = edge_config.decode(message.data, site, edge)
        except EdgeConfigError as error:
            return Stored(None, seq, max(seq, error.revision or 0), str(error), writer)
        return Stored(config, seq, config.revision, writer=writer)

    async def write(self, site: str, edge: str, to: Callable[[Stored], EdgeConfig | None]) -> EdgeConfig | None:
        """Write what `to` makes of what is there, and return it; again with what is there then where somebody else was
        quicker. Where `to` returns None nothing is written.

        Raises:
            EdgeConfigError: no edge would take the new document: better refused here than there.
            EdgeDocumentError: others always were quicker.
        """
        for _ in range(TRIES_MAX):
            stored = await self.read(site, edge)
            wanted = to(stored)
            if wanted is None:
                return None
            data = edge_config.encode(wanted)
            edge_config.decode(data, site, edge)
            headers = {_EXPECTED: str(stored.seq)} | ({WRITER_HEADER: self._writer} if self._writer else {})
            try:
                await self._js.publish(_PREFIX + names.edge_key(site, edge), data, headers=headers)
            except APIError as error:
                if error.err_code != _WRONG_SEQUENCE:
                    raise
                continue
            return wanted
        text = f"the configuration of {site}/{edge} was changed by others {TRIES_MAX} times. Try again"
        raise EdgeDocumentError(text)
