"""What the leader knows of the edges: heartbeats, from KV `edge_status` into the tables `edges` and `edge_epochs`."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
import msgspec
import nats.errors
import nats.js.errors
from nats.js import JetStreamContext
from nats.js.kv import KeyValue

from cncmon_core import logs, names
from cncmon_core.errors import FrameError
from cncmon_core.names import Origin
from cncmon_ingest import forks, metrics
from cncmon_ingest.clones import Clones
from cncmon_ingest.errors import speaks_of_data
from cncmon_ingest.heartbeats import EpochReport, Heartbeat, decode_heartbeat

log = logs.get(__name__)

EDGE_CLONED: Final = "edge_cloned"

RENEW_S: Final = 60.0
"""The bucket is read anew so often: a watch may lose a message, and does not notice a bucket made anew."""

WAITING_MAX: Final = 20_000
"""Heartbeats that wait to be written: one for each process, however often it sends."""

ROWS_MAX: Final = 5000
"""Epochs written in one round, some 0.2 s: the watermarks wait for no more of them than that."""

DOCUMENT_BYTES_MAX: Final = 4 << 20
"""Of heartbeats written in one round."""

BOOTS_MAX: Final = 8
"""Processes under one edge's name written in one round: each of them needs a statement of its own."""

SILENT: Final = timedelta(seconds=15)
"""Between two heartbeats of an edge, which come every 5 s: three were missed."""

# The first of a round's heartbeats of an edge alone: the others came after it. Where the number of a process's
# heartbeats has gone on meanwhile, it was we who did not listen.
_SILENCE = """
INSERT INTO edge_silences (site, edge, from_time, to_time)
SELECT site, edge, e.received, beat.received
FROM (
    SELECT DISTINCT ON (site, edge) * FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::bigint[])
        AS beat(site, edge, boot_id, received, number)
    ORDER BY site, edge, received
) AS beat JOIN edges e USING (site, edge)
WHERE beat.received - e.received > $6 AND NOT (
    e.boot_id = beat.boot_id AND jsonb_typeof(e.document -> 'beat') IS NOT DISTINCT FROM 'number'
    AND (beat.number - (e.document ->> 'beat')::numeric) * extract(epoch FROM $6)
        > extract(epoch FROM beat.received - e.received)
)
ON CONFLICT DO NOTHING
"""

_EDGE = """
INSERT INTO edges (site, edge, boot_id, time, received, document)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[], $6::jsonb[])
ON CONFLICT (site, edge) DO UPDATE SET
    boot_id = excluded.boot_id, time = excluded.time, document = excluded.document,
    received = greatest(edges.received, excluded.received)
"""

# Of two processes that list one epoch (clones), and of a heartbeat that is read twice, the later one counts.
_EPOCH = """
INSERT INTO edge_epochs (epoch, site, edge, boot_id, last_seq, accepted_samples, freed_seq, listed)
SELECT * FROM unnest(
    $1::bigint[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::timestamptz[])
ON CONFLICT (epoch) DO UPDATE SET
    site = excluded.site, edge = excluded.edge, boot_id = excluded.boot_id, settled = false,
    accepted_samples = CASE WHEN excluded.last_seq > edge_epochs.last_seq THEN excluded.accepted_samples
        WHEN excluded.last_seq = edge_epochs.last_seq
            THEN coalesce(excluded.accepted_samples, edge_epochs.accepted_samples)
        ELSE edge_epochs.accepted_samples END,
    last_seq = greatest(edge_epochs.last_seq, excluded.last_seq),
    freed_seq = greatest(edge_epochs.freed_seq, excluded.freed_seq),
    listed = excluded.listed
WHERE excluded.listed >= edge_epochs.listed
"""

# Not listed by it: so it is given up after the same grace as others that no heartbeat lists any more.
_GONE = """
INSERT INTO edge_epochs (epoch, site, edge, boot_id, last_seq, accepted_samples, freed_seq, listed)
SELECT * FROM unnest(
    $1::bigint[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::timestamptz[])
ON CONFLICT (epoch) DO UPDATE SET
    last_seq = excluded.last_seq, accepted_samples = excluded.accepted_samples, settled = false
WHERE excluded.last_seq > edge_epochs.last_seq
"""


class Edges:
    """Listens to heartbeats in a task of its own (`listen`); the leader writes them down now and then (`write`)."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[Origin, str], Heartbeat] = {}
        self._clones = Clones()
        self._alarmed: dict[Origin, list[str]] = {}
        self._bad: dict[str, str] = {}
        self._behind = False

    async def listen(self, js: JetStreamContext) -> None:
        """Take in every heartbeat, and what the bucket holds, for ever."""
        while True:
            try:
                bucket = await js.key_value(names.KV_STATUS)
                watcher = await bucket.watchall(inactive_threshold=RENEW_S)
                try:
                    await self._read(watcher, time.monotonic() + RENEW_S)
                finally:
                    # When the connection ends, this must not take the place of our own end.
                    with contextlib.suppress(nats.errors.Error):
                        await watcher.stop()  # type: ignore[no-untyped-call]  # nats-py leaves it unannotated
            except (nats.errors.Error, nats.js.errors.Error) as error:
                log.warning("heartbeats can't be read", error=str(error) or type(error).__name__)
                await asyncio.sleep(1)

    async def _read(self, watcher: KeyValue.KeyWatcher, until_s: float) -> None:
        while (left_s := until_s - time.monotonic()) > 0:
            try:
                entry = await watcher.updates(timeout=left_s)  # type: ignore[no-untyped-call]  # likewise
            except nats.errors.TimeoutError:
                return
            if isinstance(entry, KeyValue.Entry) and entry.operation is None and entry.value is not None:
                # Annotated as int; it is JetStream's time of the message.
                received: Any = entry.created
                self.take(entry.key, entry.value, received or datetime.now(UTC), time.monotonic())

    def take(self, key: str, value: bytes, received: datetime, now_s: float) -> None:
        """Take in one heartbeat; what is none is counted and told once."""
        try:
            beat = decode_heartbeat(key, value, received)
        except FrameError as error:
            metrics.HEARTBEATS_BAD.inc()
            if self._bad.get(key) != error.reason and len(self._bad) < WAITING_MAX:
                self._bad[key] = error.reason
                log.warning("a heartbeat can't be used", key=key[:80], error=str(error))
            return
        self._bad.pop(key, None)
        self._clones.note(beat.origin, beat.boot_id, now_s)
        name = (beat.origin, beat.boot_id)
        # In the place of the one before: whoever sends often must not be overtaken for ever.
        if name in self._waiting or len(self._waiting) < WAITING_MAX:
            self._waiting[name] = beat
        else:
            metrics.HEARTBEATS_BAD.inc()

    @property
    def behind(self) -> bool:
        """Whether heartbeats wait that did not fit into the last round."""
        return self._behind

    async def write(self, connection: asyncpg.Connection, now_s: float) -> None:
        """Write down what came since the last time, a bounded part of it (`behind` tells of more), and alarms.

        Raises:
            asyncpg.PostgresError
        """
        beats = self._portion()
        try:
            await self._insert(connection, beats)
        except (asyncpg.PostgresError, asyncpg.DataError) as error:
            if not speaks_of_data(error) and not isinstance(error, asyncpg.DataError):
                raise
            for beat in beats:
                await self._insert_alone(connection, beat)
        for beat in beats:
            name = (beat.origin, beat.boot_id)
            if self._waiting.get(name) is beat:
                del self._waiting[name]
        await self._tell_clones(connection, now_s)

    def _portion(self) -> list[Heartbeat]:
        """Return the heartbeats that have waited longest, as many as one round writes, in the order they came in."""
        beats: list[Heartbeat] = []
        rows = size = 0
        boots: Counter[Origin] = Counter()
        for beat in self._waiting.values():
            if boots[beat.origin] >= BOOTS_MAX:
                continue
            boots[beat.origin] += 1
            rows += 1 + len(beat.epochs or ()) + len(beat.gone)
            size += len(beat.document)
            if beats and (rows > ROWS_MAX or size > DOCUMENT_BYTES_MAX):
                break
            beats.append(beat)
        self._behind = len(beats) < len(self._waiting)
        return sorted(beats, key=lambda beat: beat.received)

    async def _insert_alone(self, connection: asyncpg.Connection, beat: Heartbeat) -> None:
        try:
            await self._insert(connection, [beat])
        except (asyncpg.PostgresError, asyncpg.DataError) as error:
            if not speaks_of_data(error) and not isinstance(error, asyncpg.DataError):
                raise
            metrics.HEARTBEATS_BAD.inc()
            log.warning("the database refuses a heartbeat", **beat.origin._asdict(), error=str(error))

    @staticmethod
    async def _insert(connection: asyncpg.Connection, beats: list[Heartbeat]) -> None:
        if not beats:
            return
        epochs = [row for beat in beats for row in _rows(beat, beat.epochs or ())]
        gone = [row for beat in beats for row in _rows(beat, beat.gone)]
        async with connection.transaction():
            marks = [(*beat.origin, beat.boot_id, beat.received, beat.number) for beat in beats]
            await connection.execute(_SILENCE, *map(list, zip(*marks, strict=True)), SILENT)
            edges = [(*beat.origin, beat.boot_id, beat.time, beat.received, beat.document) for beat in beats]
            await _insert_rows(connection, _EDGE, edges, 2)
            await _insert_rows(connection, _EPOCH, epochs, 1)
            await _insert_rows(connection, _GONE, gone, 1)
            await forks.note(connection, {epoch: beat.origin for beat in beats for epoch in beat.forked})

    async def _tell_clones(self, connection: asyncpg.Connection, now_s: float) -> None:
        found = self._clones.found(now_s)
        for origin in set(self._alarmed) - set(found):
            metrics.EDGE_CLONES.remove(*origin)
            log.info("one edge of a name is left", **origin._asdict())
        for origin, boot_ids in found.items():
            metrics.EDGE_CLONES.labels(*origin).set(len(boot_ids))
            if origin not in self._alarmed:
                log.warning(
                    "two edges are alive under one name (a cloned SD card?): give one of them another name",
                    **origin._asdict(),
                    boot_ids=boot_ids,
                )
                await connection.execute(
                    "INSERT INTO events (time, site, edge, type, data) VALUES (now(), $1, $2, $3, $4)",
                    *(*origin, EDGE_CLONED, msgspec.json.encode({"boot_ids": boot_ids}).decode()),
                )
        self._alarmed = found


async def _insert_rows(
    connection: asyncpg.Connection, query: str, rows: Sequence[tuple[Any, ...]], key_columns: int
) -> None:
    """Write rows in order, with one statement where no key comes twice: a statement can change a row only once."""
    while rows:
        first: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        later = [row for row in rows if first.setdefault(row[:key_columns], row) is not row]
        await connection.execute(query, *map(list, zip(*first.values(), strict=True)))
        rows = later


def _rows(beat: Heartbeat, reports: Iterable[EpochReport]) -> list[tuple[Any, ...]]:
    """Return a heartbeat's epochs as rows. One that it lists twice counts by what it says last."""
    by_epoch = {report.epoch: report for report in reports}
    return [
        (
            epoch,
            *beat.origin,
            beat.boot_id,
            report.highest_seq,
            report.accepted_samples if report.highest_seq == report.last_seq else None,
            report.freed_seq,
            beat.received,
        )
        for epoch, report in by_epoch.items()
    ]
