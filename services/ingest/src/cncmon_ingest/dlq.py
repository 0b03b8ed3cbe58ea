"""Dead letters for people: list, show, and store again what can be stored now."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec

from cncmon_core.errors import FrameError
from cncmon_core.sample import decode_sample
from cncmon_ingest import rows
from cncmon_ingest.decode import WHOLE_MESSAGE, Decoded, Incoming, Limits, check_time, decode
from cncmon_ingest.errors import speaks_of_data
from cncmon_ingest.events import insert_events
from cncmon_ingest.settings import IngestSettings

_COLUMNS = (
    "id, identity, frame, reason, detail, subject, stream_seq, state, created, replayed, octet_length(payload) AS bytes"
)


class Replayed(msgspec.Struct):
    """What became of one dead letter: `samples` (or events) stored, or `error`."""

    id: int
    samples: int
    error: str | None = None


async def list_(
    connection: asyncpg.Connection, *, state: str | None = "dead", limit: int = 100
) -> list[dict[str, Any]]:
    """Return dead letters, newest first, without their bytes; state None: of every state."""
    query = f"SELECT {_COLUMNS} FROM dead_letters WHERE $1::text IS NULL OR state = $1 ORDER BY id DESC LIMIT $2"  # noqa: S608 constant columns
    return [dict(row) for row in await connection.fetch(query, state, limit)]


async def show(connection: asyncpg.Connection, id_: int) -> dict[str, Any] | None:
    """Return one dead letter with headers (a dict) and payload (bytes), or None."""
    query = f"SELECT {_COLUMNS}, headers, payload FROM dead_letters WHERE id = $1"  # noqa: S608 constant columns
    row = await connection.fetchrow(query, id_)
    return None if row is None else {**dict(row), "headers": msgspec.json.decode(row["headers"])}


async def replay(connection: asyncpg.Connection, ids: Sequence[int] | None, settings: IngestSettings) -> list[Replayed]:
    """Store again what can be stored now; ids None: everything that is dead. Each letter in a transaction of its own.

    A letter leaves state 'dead' in the very transaction that writes its rows, so two replays at once store it once.
    """
    if ids is None:
        ids = [
            row["id"] for row in await connection.fetch("SELECT id FROM dead_letters WHERE state = 'dead' ORDER BY id")
        ]
    return [await _replay_one(connection, id_, settings) for id_ in ids]


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
            packed, message = _contents(row, settings)
            await connection.copy_to_table(
                rows.TABLE, source=rows.pieces(packed), columns=rows.COLUMNS, format="binary"
            )
            await insert_events(connection, message)
    except FrameError as error:
        return Replayed(id_, 0, str(error))
    except asyncpg.PostgresError as error:
        if not speaks_of_data(error):
            raise
        return Replayed(id_, 0, f"{error.sqlstate} {error}")
    return Replayed(id_, len(packed) + sum(len(decoded.events) for decoded in message))


def _contents(row: asyncpg.Record, settings: IngestSettings) -> tuple[list[bytes], list[Decoded]]:
    """Return the rows of a dead letter, and of a whole message the message; FrameError where it is still no good."""
    limits = Limits.at(datetime.now(UTC), settings.future_s_max, settings.retention_days)
    if row["frame"] != WHOLE_MESSAGE:
        sample = decode_sample(row["payload"])
        check_time(sample, limits)
        return [rows.pack(sample, rows.microseconds(sample.timestamp))], []
    headers = msgspec.json.decode(row["headers"])
    decoded = decode(Incoming(row["subject"], headers, row["payload"], row["stream_seq"], datetime.now(UTC)), limits)
    if decoded.dead:
        raise FrameError(decoded.dead[0].reason, decoded.dead[0].detail)
    return decoded.packed, [decoded]
