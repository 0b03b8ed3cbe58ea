"""What a database is and how far it is, and how that compares with what it was (rule D3).

The leader mirrors the identity to KV `edge_watermark` under the key `database`. A database that is behind its mirror
has regressed: it lacks what was acknowledged. One that is foreign to it may not lead without `cncmon db adopt`.
"""

import re
from datetime import UTC, datetime
from typing import Annotated, Final, NamedTuple, Self

import asyncpg
import msgspec
from msgspec import Meta

from cncmon_core.events import SEQ_MAX
from cncmon_ingest.errors import NotConnectedError

GENERATIONS_AHEAD_MAX: Final = 1_000_000
"""A mirror further ahead is absurd: each generation is a restore or a fail-over."""
COUNTER_AHEAD_MAX: Final = 1 << 40
"""A mirror further ahead is absurd: at ten a second that is 3,000 years."""
LOG_AHEAD_BYTES_MAX: Final = 1 << 50
"""A mirror further ahead is absurd: 1 PiB of write-ahead log since the backup."""

_SERVER: Final = re.compile(r"(\d{1,20})/([0-9A-F]{8})/(\d{1,10})")

_COLUMNS = """
       delivery.generation,
       concat_ws('/', (SELECT system_identifier FROM pg_control_system()),
                 left(pg_walfile_name(pg_current_wal_flush_lsn()), 8),
                 (SELECT oid FROM pg_database WHERE datname = current_database())) AS server,
       delivery.stream_created, delivery.committed_floor AS floor,
       (pg_current_wal_flush_lsn() - '0/0')::bigint AS lsn, delivery.counter, current_database()::text AS database
"""

_IDENTITY: Final = f"SELECT {_COLUMNS} FROM delivery"  # noqa: S608 columns of this module

# Without the counter in the condition a database that was exchanged since would get the new floor.
_RAISE: Final = f"""
UPDATE delivery SET counter = counter + 1, stream_created = $3, committed_floor = $4
WHERE (generation, counter) = ($1, $2)
RETURNING {_COLUMNS}
"""  # noqa: S608 columns of this module

_MOMENT: Final = "SELECT generation, counter, clock_timestamp() FROM delivery"

# pg_restore without --single-transaction fills tables first and adds their keys last.
_KEYLESS: Final = """
SELECT string_agg(name, ', ' ORDER BY name) FROM unnest('{delivery,ledger,watermarks,edge_epochs}'::text[]) AS name
WHERE NOT EXISTS (SELECT FROM pg_constraint WHERE contype = 'p' AND conrelid = to_regclass(name))
"""

RESTORING: Final = "a backup is being restored into it: the tables are not complete"


class Moment(NamedTuple):
    """How far a database is: of two, a later one of the same database compares as larger or equal."""

    generation: int
    counter: int


NOTHING_KNOWN: Final = Moment(0, 0)


class ServerName(NamedTuple):
    """A database among all: of which cluster, on which timeline of it, and its oid there."""

    system_identifier: int
    timeline: int
    oid: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the parts of `DatabaseIdentity.server`.

        Raises:
            ValueError: it is none.
        """
        found = _SERVER.fullmatch(text)
        if found is None:
            raise ValueError(f"{text[:80]!r} names no database")
        return cls(int(found[1]), int(found[2], 16), int(found[3]))


class DatabaseIdentity(msgspec.Struct, frozen=True):
    """One moment of one database, as KV mirrors it.

    server: system identifier, timeline and oid, see `ServerName`. stream_created: RFC 3339, empty where it has seen no
    stream yet; floor: up to which sequence of that stream it has everything. lsn: bytes of its write-ahead log that are
    on disk. counter: raised with every change that edges are told of; 0 in a mirror of an older version. database: its
    name, empty in a mirror of an older version.
    """

    generation: Annotated[int, Meta(ge=1, le=SEQ_MAX)]
    server: Annotated[str, Meta(max_length=100)]
    stream_created: Annotated[str, Meta(max_length=40)]
    floor: Annotated[int, Meta(ge=0, le=SEQ_MAX)]
    lsn: Annotated[int, Meta(ge=0, le=SEQ_MAX)]
    counter: Annotated[int, Meta(ge=0, le=SEQ_MAX)] = 0
    database: Annotated[str, Meta(max_length=63)] = ""

    @property
    def moment(self) -> Moment:
        """How far it is."""
        return Moment(self.generation, self.counter)


_decode = msgspec.json.Decoder(DatabaseIdentity).decode


def decode_identity(data: bytes) -> DatabaseIdentity:
    """Return what a mirror says.

    Raises:
        ValueError: it is malformed, or a number in it lies beyond its bounds.
    """
    try:
        found = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    ServerName.parse(found.server)
    if found.stream_created:
        datetime.fromisoformat(found.stream_created)
    return found


async def identity_of(connection: asyncpg.Connection) -> DatabaseIdentity:
    """Return the identity of the database that this is a connection to.

    Raises:
        asyncpg.PostgresError
        NotConnectedError: a backup is being restored into it.
    """
    row = await connection.fetchrow(_IDENTITY)
    if row is None:
        raise NotConnectedError(RESTORING)
    return _identity(row)


async def raise_counter(
    connection: asyncpg.Connection, known: Moment, stream_created: datetime, floor: int
) -> DatabaseIdentity | None:
    """Raise the counter of a database that is where it is known to be, and note the floor.

    Return its identity; None where it is not there: it was exchanged.

    Raises:
        asyncpg.PostgresError
    """
    row = await connection.fetchrow(_RAISE, *known, stream_created, floor)
    return _identity(row) if row else None


def _identity(row: asyncpg.Record) -> DatabaseIdentity:
    created = row["stream_created"].astimezone(UTC).isoformat() if row["stream_created"] else ""
    return DatabaseIdentity(**{**row, "stream_created": created})


async def moment_of(connection: asyncpg.Connection) -> tuple[Moment, datetime]:
    """Return how far the database is, and its clock.

    Raises:
        asyncpg.PostgresError
        NotConnectedError: a backup is being restored into it.
    """
    row = await connection.fetchrow(_MOMENT)
    if row is None:
        raise NotConnectedError(RESTORING)
    generation, counter, now = row
    return Moment(generation, counter), now


def check_moment(found: Moment, known: Moment) -> None:
    """Compare how far a database is with what was known of it before it was asked.

    Raises:
        NotConnectedError: it regressed.
    """
    if found < known:
        raise NotConnectedError(
            f"the database regressed: it is generation {found.generation}, counter {found.counter}, and was "
            f"generation {known.generation}, counter {known.counter}"
        )


async def check_complete(connection: asyncpg.Connection) -> None:
    """Make sure that no backup is being restored at this moment.

    Raises:
        asyncpg.PostgresError
        NotConnectedError: tables lack their keys still.
    """
    if keyless := await connection.fetchval(_KEYLESS):
        raise NotConnectedError(f"{RESTORING} (no primary key yet: {keyless})")


async def foreign(connection: asyncpg.Connection, database: DatabaseIdentity, mirror: DatabaseIdentity) -> str | None:
    """Return why a database is not the one of the mirror nor follows it; None: it is, or does.

    A promoted replica follows: the same cluster on a higher timeline. So does a database that was dropped and created
    again under its name.

    Raises:
        asyncpg.PostgresError
    """
    ours, theirs = ServerName.parse(database.server), ServerName.parse(mirror.server)
    if ours.system_identifier != theirs.system_identifier:
        return (
            f"it is of another cluster: system identifier {ours.system_identifier}, and the stream's database is of "
            f"{theirs.system_identifier}"
        )
    if ours.timeline < theirs.timeline:
        return f"it is on timeline {ours.timeline} of its cluster, and timeline {theirs.timeline} has taken over"
    if ours.oid == theirs.oid:
        return None
    if database.database != mirror.database or await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_database WHERE oid = $1::bigint::oid)", theirs.oid
    ):
        return f"it is another database of the cluster: oid {ours.oid}, and the stream's database has {theirs.oid}"
    return None


def behind(database: DatabaseIdentity, mirror: DatabaseIdentity | None) -> str | None:
    """Return why the database may lack what the mirror's had; None: it lacks nothing, or nothing is known of that.

    Of databases that are not `foreign`. The mirror is to be read before the database is: it must not know of what came
    after.
    """
    if mirror is None:
        return None
    if database.server != mirror.server:
        return f"it is another timeline or database of the cluster ({database.server}, it was {mirror.server})"
    if database.generation < mirror.generation:
        return f"it is generation {database.generation}, and {mirror.generation} has begun"
    if database.moment < mirror.moment:
        return f"its counter is {database.counter}, and was {mirror.counter}"
    if database.lsn < mirror.lsn:
        return f"its log is {mirror.lsn - database.lsn} bytes shorter than it was"
    return None


def absurd(database: DatabaseIdentity, mirror: DatabaseIdentity, stream_created: datetime, last_seq: int) -> str | None:
    """Return which number of the mirror no database can have had; None where each may be true.

    last_seq: of the stream that was made at `stream_created`.
    """
    if mirror.generation > database.generation + GENERATIONS_AHEAD_MAX:
        return f"generation {mirror.generation}, and the database is {database.generation}"
    if mirror.counter > database.counter + COUNTER_AHEAD_MAX:
        return f"counter {mirror.counter}, and the database has {database.counter}"
    if mirror.lsn > database.lsn + LOG_AHEAD_BYTES_MAX:
        return f"{mirror.lsn} bytes of log, and the database has {database.lsn}"
    same_stream = mirror.stream_created and datetime.fromisoformat(mirror.stream_created) == stream_created
    if same_stream and mirror.floor > last_seq:
        return f"floor {mirror.floor}, and the stream's last sequence is {last_seq}"
    return None
