"""Dead letters for people: list, count, show, store again what can be stored now, give up the rest."""

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
import msgspec

from cncmon_core.errors import FrameError, RejectedError
from cncmon_core.frames import join, split_numbered
from cncmon_ingest import dead_letters, dirty, events, gaps, rows
from cncmon_ingest.decode import WHOLE_MESSAGE, DeadLetter, Decoded, Incoming, Limits, decode
from cncmon_ingest.errors import speaks_of_data
from cncmon_ingest.machines import Bounds, Machines
from cncmon_ingest.partitions import Partitions
from cncmon_ingest.settings import IngestSettings

_COLUMNS = (
    "id, identity, frame, frames, reason, detail, subject, stream_seq, state, created, replayed, "
    "octet_length(payload) AS bytes"
)
_DEAD = "SELECT * FROM dead_letters WHERE id = $1 AND state = 'dead'"
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
    """How many dead letters of a reason are in a state, their frames and bytes, and from when to when."""

    reason: str
    state: str
    letters: int
    frames: int
    bytes: int
    first: datetime
    last: datetime


class Replayed(msgspec.Struct):
    """What became of one dead letter: `samples` (or events) stored, and `error` where some or all is dead still."""

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
        "SELECT reason, state, count(*) AS letters, sum(frames) AS frames, sum(octet_length(payload)) AS bytes, "  # noqa: S608 constants
        f"min(created) AS first, max(created) AS last FROM dead_letters WHERE {_CHOSEN} "
        "GROUP BY 1, 2 ORDER BY letters DESC, reason, state"
    )
    return [Count(**dict(row)) for row in await connection.fetch(query, *which.arguments)]


async def expired(connection: asyncpg.Connection, which: Which = DEAD) -> list[Count]:
    """Return the totals of letters that are past their retention, most first; none for letters that ids name."""
    if which.ids:
        return []
    query = """
        SELECT reason, state, sum(letters)::bigint AS letters, sum(frames)::bigint AS frames,
            sum(bytes)::bigint AS bytes, min(first) AS first, max(last) AS last
        FROM dead_letter_totals
        WHERE (cardinality($1::text[]) = 0 OR reason = ANY($1))
            AND ($2::text IS NULL OR (site, edge) = ($2, $3::text))
            AND ($4::interval IS NULL OR last >= now() - $4) AND ($5::text IS NULL OR state = $5)
        GROUP BY 1, 2 ORDER BY letters DESC, reason, state
    """
    return [Count(**dict(row)) for row in await connection.fetch(query, *which.arguments[1:])]


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
    """Store again what can be stored now, and yield what became of each.

    A letter leaves state 'dead' in the very transaction that writes its rows, so two replays at once store it once.
    """
    machines = Machines(Bounds.of(settings))
    for id_ in ids:
        yield await _replay_one(connection, id_, settings, machines)


async def drop(connection: asyncpg.Connection, which: Which) -> int:
    """Give up dead letters for good; return how many. Their bytes stay, and they stay counted as dead in the books."""
    query = f"UPDATE dead_letters SET state = 'dropped' WHERE state = 'dead' AND {_CHOSEN}"  # noqa: S608 constants
    return int((await connection.execute(query, *which.arguments)).split()[-1])


async def _replay_one(
    connection: asyncpg.Connection, id_: int, settings: IngestSettings, machines: Machines
) -> Replayed:
    try:
        await _prepare(connection, id_, settings)
        async with connection.transaction():
            # Locked until the rows are committed: of two replays at once the other waits, and finds it replayed.
            row = await connection.fetchrow(f"{_DEAD} FOR UPDATE", id_)
            if row is None:
                return Replayed(id_, 0, "not there, or not dead any more")
            numbers, message = _contents(row, settings)
            await machines.judge(connection, [message])
            still_dead = await _keep_left(connection, row, _left(row, numbers, message))
            await connection.copy_to_table(
                rows.TABLE, source=rows.pieces(message.packed), columns=rows.COLUMNS, format="binary"
            )
            await dirty.mark(connection, [message])
            await events.insert_events(connection, [message])
            said = events.said_by(message)
            if said and not events.is_long(said):
                await gaps.lock(connection)
                while said:
                    said = await events.declare(connection, said)
    except RejectedError as error:
        machines.forget()
        return Replayed(id_, 0, str(error))
    except asyncpg.PostgresError as error:
        machines.forget()
        if not speaks_of_data(error):
            raise
        return Replayed(id_, 0, f"{error.sqlstate} {error}")
    return Replayed(id_, len(message.packed) + len(message.events), still_dead)


async def _prepare(connection: asyncpg.Connection, id_: int, settings: IngestSettings) -> None:
    """Do what keeps ingest waiting in transactions of its own that are short: partitions, and many declarations.

    Repeated, it changes nothing: whoever is stopped in between replays the letter once more.

    Raises:
        RejectedError: the letter can't be stored.
    """
    row = await connection.fetchrow(_DEAD, id_)
    if row is None:
        return
    numbers, message = _contents(row, settings)
    _left(row, numbers, message)
    await Partitions().ensure(connection, message.days)
    said = events.said_by(message)
    if not events.is_long(said):
        return
    while said:
        async with connection.transaction():
            await gaps.lock(connection)
            said = await events.declare(connection, said)


async def _keep_left(connection: asyncpg.Connection, row: asyncpg.Record, left: list[DeadLetter]) -> str | None:
    """Take a letter out of state 'dead', or leave in it what is dead still and return why."""
    if not left:
        await connection.execute(
            "UPDATE dead_letters SET state = 'replayed', replayed = now() WHERE id = $1", row["id"]
        )
        return None
    letter = dead_letters.group(left)
    # What is stored now leaves the letter, or the next replay would store it again.
    await connection.execute(
        "UPDATE dead_letters SET frames = $2, reason = $3, detail = $4, payload = $5 WHERE id = $1",
        *(row["id"], letter.frames, letter.reason, dead_letters.detail_of(letter.detail), letter.payload),
    )
    return f"{letter.frames} of {row['frames']} frames are dead still: {letter.detail}"


def _contents(row: asyncpg.Record, settings: IngestSettings) -> tuple[Sequence[int], Decoded]:
    """Return a dead letter as a message, and which frame of the original each of its frames is.

    Raises:
        MessageError: a group's payload was not made by `dead_letters.group`.
    """
    now = datetime.now(UTC)
    headers: dict[str, str] = {}
    payload: bytes = row["payload"]
    numbers: Sequence[int] = range(1)
    if dead_letters.is_group(row["frame"]):
        numbers, parts = zip(*split_numbered(payload), strict=True)
        payload = join(parts)
    elif row["frame"] == WHOLE_MESSAGE:
        headers = msgspec.json.decode(row["headers"])
    else:
        payload = join([payload])
    limits = Limits.at(now, settings.future_s_max, settings.retention_days)
    return numbers, decode(Incoming(row["subject"], headers, payload, row["stream_seq"], now), limits)


def _left(row: asyncpg.Record, numbers: Sequence[int], message: Decoded) -> list[DeadLetter]:
    """Return what of a letter is dead still.

    Raises:
        FrameError: nothing of it can be stored; only a group may be stored in part.
    """
    group = dead_letters.is_group(row["frame"])
    if message.dead and (not group or message.whole_dead or not message.packed):
        raise FrameError(*dead_letters.reasons_of(message.dead) if group else message.dead[0][1:3])
    return [letter._replace(frame=numbers[letter.frame]) for letter in message.dead]
