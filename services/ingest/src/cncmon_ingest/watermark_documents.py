"""The documents of KV `edge_watermark`, one per edge, which the leader alone writes (rule D1)."""

import contextlib
from datetime import UTC

import asyncpg
import msgspec
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from cncmon_core import logs, names
from cncmon_core.names import Origin
from cncmon_core.watermark import Watermark, decode_watermark, encode_watermark
from cncmon_ingest import forks
from cncmon_ingest.stream_position import StreamPosition

log = logs.get(__name__)

EPOCHS_TOLD_MAX = 300
"""Epochs in one edge's document: an agent asks for those on its disk, and there are few."""

_EPOCHS = """
SELECT site, edge, epoch, seq FROM (
    SELECT *, row_number() OVER (PARTITION BY site, edge ORDER BY advanced DESC) AS place FROM watermarks
    WHERE (site, edge) IN (SELECT * FROM unnest($1::text[], $2::text[]))
) newest WHERE place <= $3
"""


class WatermarkDocuments:
    """Writes the watermark documents, each by compare-and-set against the revision it has seen."""

    def __init__(self, connection: asyncpg.Connection, bucket: KeyValue, bytes_max: int) -> None:
        """bytes_max: each edge's share of the stream."""
        self._connection = connection
        self._bytes_max = bytes_max
        self._bucket = bucket
        self._told: dict[str, tuple[int, Watermark | None]] = {}

    def forget(self) -> None:
        """Look at the bucket again next time: somebody may have deleted it."""
        self._told.clear()

    async def write(self, edges: set[Origin], place: StreamPosition) -> None:
        """Bring the documents of some edges up to date."""
        edges = {origin for origin in edges if origin.site and origin.edge}
        if not edges:
            return
        generation = await self._connection.fetchval("SELECT generation FROM delivery")
        documents: dict[Origin, dict[int, int]] = {}
        for row in await self._connection.fetch(
            _EPOCHS, [origin.site for origin in edges], [origin.edge for origin in edges], EPOCHS_TOLD_MAX
        ):
            documents.setdefault(Origin(row["site"], row["edge"]), {})[row["epoch"]] = row["seq"]
        forked = await forks.of_edges(self._connection, documents)
        created = place.stream_created.astimezone(UTC).isoformat()
        for number, (origin, epochs) in enumerate(documents.items(), 1):
            if number % 100 == 0:
                # Many edges take long: the database must not take this session for a frozen one.
                await self._connection.execute("SELECT 1")
            document = Watermark(generation, created, place.floor, epochs, forked.get(origin, []), self._bytes_max)
            await self._put(origin, document)

    async def _put(self, origin: Origin, document: Watermark) -> None:
        key = names.edge_key(*origin)
        revision, told = self._told.pop(key) if key in self._told else await self._read(key)
        if told != document:
            # A conflict: another leader wrote, having read the database since. The next round looks again.
            with contextlib.suppress(KeyWrongLastSequenceError):
                revision = await self._bucket.update(key, encode_watermark(document), last=revision)
                self._told[key] = revision, document
        else:
            self._told[key] = revision, document

    async def _read(self, key: str) -> tuple[int, Watermark | None]:
        try:
            entry = await self._bucket.get(key)
        except KeyNotFoundError as error:
            # A deleted key leaves a marker, whose revision the next write must name.
            return (error.entry.revision or 0) if error.entry else 0, None
        try:
            return entry.revision or 0, decode_watermark(entry.value or b"")
        except msgspec.MsgspecError as error:
            log.warning("a watermark document can't be read and is written anew", key=key, error=str(error))
            return entry.revision or 0, None
