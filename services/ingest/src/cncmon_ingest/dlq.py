"""Dead letters for people: list, count, show, store again what can be stored now, give up the rest."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
import msgspec

from cncmon_core.errors import FrameError
from cncmon_core.frames import join
from cncmon_ingest import dirty, machines, rows
from cncmon_ingest.decode import WHOLE_MESSAGE, Decoded, Incoming, Limits, decode
from cncmon_ingest.errors import speaks_of_data
from cncmon_ingest.events import insert_events
from cncmon_ingest.partitions import Partitions
from cncmon_ingest.settings import IngestSettings

_COLUMNS = (
    "id, identity, frame, reason, detail, subject, stream_seq, state, created, replayed, octet_length(payload) AS bytes"
)
_CHOSEN = """
    (cardinality($1::bigint[]) = 0 OR id = ANY($1)) AND (cardinality($2::text[]) = 0 OR reason = ANY($2))
    AND ($3::text IS NULL OR (split_part(subject, '.', 2), split_part(subject, '.', 3)) = ($3, $4))
    AND ($5::interval IS NULL OR created >= now() - $5) AND ($6::text IS NULL OR state = $6)
"""


class Which(msgspec.Struct, frozen=True, kw_only=True):
    """Which dead letters: those for which everything holds that is said.

    ids, reasons: one of these. edge: site and name, as the subject tells them. age_max: written since then, by the
    database's clock. state: None: any.
    """

    ids: tuple[int, ...] = ()
    reasons: tuple[str, ...] = ()
    edge: tuple[str, str] | None = None
    age_max: timedelta | None = None
    state: str | None = "dead"

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What `_CHOSEN` is asked with."""
        return self.ids, self.reasons, *(self.edge or (None, None)), self.age_max, self.state


DEAD: Final = Which()
"""All that is dead."""


class Count(msgspec.Struct):
    """How many dead letters of a reason are in a state, how large, and when the first and the last were written."""

    reason: str
    state: str
    letters: int
    bytes: int
    first: datetime
    last: datetime


class Replayed(msgspec.Struct):
    """What became of one dead letter: `samples` (or events) stored, or `error`."""

    id: int
    samples: int
    error: str | None = None


async def list_(
    connection: asyncpg.Connection,
    which: Which = DEAD,
    *,
    limit: int = 100,
) -> list[dict[str, Any]]:
    """Return dead letters, newest first, without their bytes."""
    query = f"SELECT {_COLUMNS} FROM dead_letters WHERE {_CHOSEN} ORDER BY id DESC LIMIT $7"  # noqa: S608 constants
    return [dict(row) for row in await connection.fetch(query, *which.arguments, limit)]


async def counts(connection: asyncpg.Connection, which: Which) -> list[Count]:
    """Return the dead letters' numbers by reason and state, most first."""
    query = (
        "SELECT reason, state, count(*) AS letters, sum(octet_length(payload)) AS bytes, min(created) AS first, "  # noqa: S608 constants
        f"max(created) AS last FROM dead_letters WHERE {_CHOSEN} GROUP BY 1, 2 ORDER BY letters DESC, reason, state"
    )
    return [Count(**dict(row)) for row in await connection.fetch(query, *which.arguments)]


async def show(connection: asyncpg.Connection, id_: int) -> dict[str, Any] | None:
    """Return one dead letter with headers (a dict) and payload (bytes), or None."""
    query = f"SELECT {_COLUMNS}, headers, payload FROM dead_letters WHERE id = $1"  # noqa: S608 constant columns
    row = await connection.fetchrow(query, id_)
    return None if row is None else {**dict(row), "headers": msgspec.json.decode(row["headers"])}


async def chosen(connection: asyncpg.Connection, which: Which) -> list[int]:
    """Return the ids of the dead letters, oldest first; those that are named as they are, there or not."""
    if which.ids:
        return list(which.ids)
    query = f"SELECT id FROM dead_letters WHERE {_CHOSEN} ORDER BY id"  # noqa: S608 constants
    return [row["id"] for row in await connection.fetch(query, *which.arguments)]


async def replay(
    connection: asyncpg.Connection, ids: Sequence[int], settings: IngestSettings
) -> AsyncIterator[Replayed]:
    """Store again what can be stored now, and yield what became of each. Each letter in a transaction of its own.

    A letter leaves state 'dead' in the very transaction that writes its rows, so two replays at once store it once.
    """
    for id_ in ids:
        yield await _replay_one(connection, id_, settings)


async def drop(connection: asyncpg.Connection, which: Which) -> int:
    """Give up dead letters for good; return how many. Their bytes stay, and they stay counted as dead in the books."""
    query = f"UPDATE dead_letters SET state = 'dropped' WHERE state = 'dead' AND {_CHOSEN}"  # noqa: S608 constants
    return int((await connection.execute(query, *which.arguments)).split()[-1])


async def _replay_one(connection: asyncpg.Connection, id_: int, settings: IngestSettings) -> Replayed:
    try:
        async with connection.transaction():
            row = await connection.fetchrow(
                "UPDATE dead_letters SET state = 'replayed', replayed = now() "
                "WHERE id = $1 AND state = 'dead' RETURNING *",
                id_,
            )
            if row is None:
                return Replayed(id_, 0, "not there, or not dead any more")
            message = _contents(row, settings)
            await Partitions().ensure(connection, message.days)
            await connection.copy_to_table(
                rows.TABLE, source=rows.pieces(message.packed), columns=rows.COLUMNS, format="binary"
            )
            await dirty.mark(connection, [message])
            await insert_events(connection, [message])
            await machines.note(connection, [message], {})
    except FrameError as error:
        return Replayed(id_, 0, str(error))
    except asyncpg.PostgresError as error:
        if not speaks_of_data(error):
            raise
        return Replayed(id_, 0, f"{error.sqlstate} {error}")
    return Replayed(id_, len(message.packed) + len(message.events))


def _contents(row: asyncpg.Record, settings: IngestSettings) -> Decoded:
    """Return a dead letter as a message; FrameError where it is still no good."""
    now = datetime.now(UTC)
    limits = Limits.at(now, settings.future_s_max, settings.retention_days)
    whole = row["frame"] == WHOLE_MESSAGE
    headers = msgspec.json.decode(row["headers"]) if whole else {}
    payload = row["payload"] if whole else join([row["payload"]])
    decoded = decode(Incoming(row["subject"], headers, payload, row["stream_seq"], now), limits)
    if decoded.dead:
        raise FrameError(decoded.dead[0].reason, decoded.dead[0].detail)
    return decoded
