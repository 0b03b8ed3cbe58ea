"""Which life of the database this is, and whether it has gone back (rule D3).

A database goes back when a replica takes over that lacks the last commits, or a backup is restored. What was
acknowledged since then is missing from it, and nobody would send it again by himself. KV `edge_watermark` mirrors under
the key `database` what the database was last; a database that is behind that, or is another one, may not acknowledge
anything until the leader has begun a new generation: from then on the stream is read again (`reread`), and agents take
watermarks that are lower.
"""

import contextlib
import time
from datetime import UTC, datetime
from typing import Final

import asyncpg
import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.errors import BadRequestError, KeyNotFoundError, KeyWrongLastSequenceError, NoKeysError
from nats.js.kv import KeyValue

from cncmon_core import logs, names
from cncmon_core.watermark import decode_watermark
from cncmon_ingest import metrics
from cncmon_ingest.errors import DATABASE_ERRORS, NotConnectedError, OutageError, translate

log = logs.get(__name__)

LOOK_S: Final = 5.0
"""The mirror is read again so often: what tells of a change may be lost."""

# A promoted replica has another timeline, a restored cluster another system identifier or timeline, a restored dump
# another database. A restored disk has none of these, but a log that is shorter than it was; a dump restored in place
# has a floor that is lower.
_LIFE = """
SELECT d.generation,
       concat_ws('/', control.system_identifier, left(pg_walfile_name(pg_current_wal_flush_lsn()), 8), here.oid)
           AS server,
       d.stream_created, d.committed_floor, (pg_current_wal_flush_lsn() - '0/0')::bigint AS lsn
FROM delivery d, pg_control_system() control, pg_database here WHERE here.datname = current_database()
"""

# What the edges were told that the database had, by epoch: where no heartbeat lists such an epoch any more, nobody else
# knows that it ever was. `abandoned` looks after it from here on.
_CLAIM = """
INSERT INTO edge_epochs (epoch, site, edge, boot_id, last_seq, freed_seq, listed)
SELECT epoch, site, edge, '', seq, 0, now()
FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[]) AS told (epoch, site, edge, seq)
WHERE NOT EXISTS (SELECT FROM watermarks w WHERE w.epoch = told.epoch AND w.seq >= told.seq)
ON CONFLICT (epoch) DO UPDATE SET
    accepted_samples = CASE WHEN excluded.last_seq <= edge_epochs.last_seq THEN edge_epochs.accepted_samples END,
    settled = edge_epochs.settled AND excluded.last_seq <= edge_epochs.last_seq,
    last_seq = greatest(edge_epochs.last_seq, excluded.last_seq)
"""


class Life(msgspec.Struct, frozen=True):
    """One moment of the database's life, as KV mirrors it.

    server: system identifier, timeline and database. stream_created: RFC 3339, empty where it has seen no stream yet;
    floor: up to which sequence of that stream it has everything. lsn: bytes of its write-ahead log that are on disk.
    """

    generation: int
    server: str
    stream_created: str
    floor: int
    lsn: int


_decode = msgspec.json.Decoder(Life).decode


async def life_of(connection: asyncpg.Connection) -> Life:
    """Return the life of the database that this is a connection to.

    Raises:
        asyncpg.PostgresError
    """
    row = await connection.fetchrow(_LIFE)
    if row is None:
        raise AssertionError("the table delivery always has its row")
    created = row["stream_created"].astimezone(UTC).isoformat() if row["stream_created"] else ""
    return Life(row["generation"], row["server"], created, row["committed_floor"], row["lsn"])


def behind(database: Life, mirror: Life | None) -> str | None:
    """Return why the database is not what the mirror says it was, or None: it is, or nothing is known of that.

    The mirror is to be read before the database is: it must not know of what came after.
    """
    if mirror is None:
        return None
    if database.server != mirror.server:
        return f"it is another server, timeline or database ({database.server}, it was {mirror.server})"
    if database.generation < mirror.generation:
        return f"it is generation {database.generation}, and {mirror.generation} has begun"
    if database.lsn < mirror.lsn:
        return f"its log is {mirror.lsn - database.lsn} bytes shorter than it was"
    # Not compared over generations: a new one begins again at a lower floor.
    comparable = database.stream_created == mirror.stream_created and database.generation == mirror.generation
    if comparable and database.floor < mirror.floor:
        return f"it has the stream up to {database.floor}, and had it up to {mirror.floor}"
    return None


async def _read(bucket: KeyValue) -> tuple[int, Life | None]:
    """Return the mirror's revision and what it says; 0 and None where there is none."""
    try:
        entry = await bucket.get(names.KV_DATABASE_KEY)
    except KeyNotFoundError as error:
        return (error.entry.revision or 0) if error.entry else 0, None
    with contextlib.suppress(msgspec.MsgspecError):
        return entry.revision or 0, _decode(entry.value or b"")
    log.warning("the mirror of the database can't be read and is written anew", value=str(entry.value)[:80])
    return entry.revision or 0, None


class Watch:
    """What a worker knows of the mirror: pushed to it, and read again every LOOK_S."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._bucket: KeyValue | None = None
        self._looked_s = 0.0
        self.mirror: Life | None = None

    async def open(self) -> None:
        """Begin to listen."""
        subject = f"cncmon.kv.{names.KV_WATERMARK}.{names.KV_DATABASE_KEY}"
        await self._client.subscribe(subject, cb=self._on_change)
        self._bucket = await self._client.jetstream().key_value(names.KV_WATERMARK)
        await self.look()

    async def _on_change(self, message: Msg) -> None:
        with contextlib.suppress(msgspec.MsgspecError):
            self.mirror = _decode(message.data)

    async def look(self) -> None:
        """Read the mirror now."""
        if self._bucket is None:
            raise AssertionError("it was opened")
        self._looked_s = time.monotonic()
        _, self.mirror = await _read(self._bucket)

    async def admit(self, connection: asyncpg.Connection) -> Life:
        """Return the life of the database at a new connection.

        Raises:
            NotConnectedError: it went back; the leader has to begin a new generation first.
            OutageError: it can't be asked.
        """
        await self._look_if_due(0.0)
        mirror = self.mirror
        try:
            life = await life_of(connection)
        except DATABASE_ERRORS as error:
            raise translate(error) from error
        if (why := behind(life, mirror)) or (mirror and life.generation != mirror.generation):
            raise NotConnectedError(f"the database went back: {why or 'its new generation is not announced yet'}")
        return life

    async def may_acknowledge(self, life: Life) -> None:
        """Say nothing while what was committed in this life still counts.

        Raises:
            NotConnectedError: another life has begun: it may lack what was committed here.
        """
        await self._look_if_due(LOOK_S)
        mirror = self.mirror
        if mirror and (mirror.generation, mirror.server) != (life.generation, life.server):
            raise NotConnectedError(
                f"generation {mirror.generation} of the database has begun, this connection is to {life.generation}"
            )

    async def _look_if_due(self, every_s: float) -> None:
        if time.monotonic() - self._looked_s < every_s:
            return
        try:
            await self.look()
        except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as error:
            raise OutageError(
                f"NATS does not say which generation counts: {str(error) or type(error).__name__}"
            ) from error


class Generation:
    """The leader's part: it begins generations, and alone writes the mirror, by compare-and-set."""

    def __init__(self, connection: asyncpg.Connection, js: JetStreamContext, bucket: KeyValue) -> None:
        self._connection = connection
        self._js = js
        self._bucket = bucket
        self._revision = 0
        self._told: Life | None = None
        self._ours: Life | None = None

    async def settle(self) -> None:
        """Begin a new generation if the database went back; must be done before anything else a leader does."""
        self._revision, mirror = await _read(self._bucket)
        self._told = mirror
        life = await life_of(self._connection)
        if why := behind(life, mirror):
            log.warning("the database went back: the stream is read again", reason=why)
            await self._begin(max(life.generation, mirror.generation if mirror else 0) + 1, from_start=False)
        await self.mirror()

    async def begin_if_asked(self) -> bool:
        """Begin a new generation, with all of the stream read again, if somebody asked for that."""
        if not await self._connection.fetchval("SELECT reread_asked FROM delivery"):
            return False
        log.info("the stream is read again from its beginning, as asked")
        await self._begin((await life_of(self._connection)).generation + 1, from_start=True)
        await self.mirror()
        return True

    async def _begin(self, generation: int, *, from_start: bool) -> None:
        stream = await self._js.stream_info(names.STREAM)
        told = await self._told_to_edges()
        async with self._connection.transaction():
            await self._connection.execute(
                """
                UPDATE delivery SET generation = $1, stream_created = $2,
                    committed_floor = CASE WHEN stream_created = $2 AND NOT $3 THEN committed_floor ELSE 0 END,
                    reread_from = CASE WHEN stream_created = $2 AND NOT $3 THEN committed_floor ELSE 0 END + 1,
                    reread_to = $4, reread_begun = now(), reread_ended = NULL, reread_asked = false
                """,
                *(generation, stream.created, from_start, stream.state.last_seq),
            )
            if told:
                await self._connection.execute(_CLAIM, *(list(column) for column in zip(*told, strict=True)))
        metrics.GENERATIONS.inc()

    async def _told_to_edges(self) -> list[tuple[int, str, str, int]]:
        """Return what the edges were told that the database had: epoch, site, edge, seq."""
        try:
            keys = await self._bucket.keys()
        except NoKeysError:
            return []
        told: dict[int, tuple[int, str, str, int]] = {}
        for key in keys:
            site, dot, edge = key.partition(".")
            if not dot:
                continue
            try:
                document = decode_watermark((await self._bucket.get(key)).value or b"")
            except (KeyNotFoundError, msgspec.MsgspecError):
                continue
            for epoch, seq in document.epochs.items():
                if epoch not in told or told[epoch][3] < seq:
                    told[epoch] = (epoch, site, edge, seq)
        return list(told.values())

    async def mirror(self) -> None:
        """Let KV say what the database is now.

        Raises:
            OutageError: another leader has begun another life: this connection is to the past.
        """
        life = await life_of(self._connection)
        if self._ours is not None and life.server != self._ours.server:
            raise OutageError("the connection leads to another server than it did")
        self._ours = life
        if life == self._told:
            return
        try:
            self._revision = await self._bucket.update(
                names.KV_DATABASE_KEY, msgspec.json.encode(life), last=self._revision
            )
            self._told = life
        except (KeyWrongLastSequenceError, BadRequestError):
            self._revision, self._told = await _read(self._bucket)
            if why := behind(life, self._told):
                raise OutageError(f"the database went back: {why}") from None
            await self.mirror()

    async def write_floor(self, stream_created: datetime, floor: int) -> None:
        """Let the database say how far it has the stream; the mirror follows."""
        await self._connection.execute(
            "UPDATE delivery SET stream_created = $1, committed_floor = $2 "
            "WHERE (stream_created, committed_floor) IS DISTINCT FROM ($1, $2)",
            *(stream_created, floor),
        )
        await self.mirror()
