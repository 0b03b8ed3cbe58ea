"""The ledger: what makes a second delivery a no-op (rules B1 to B4)."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import asyncpg

from cncmon_core import names
from cncmon_core.events import SEQ_MAX
from cncmon_ingest import dead_letters, gaps, hashes
from cncmon_ingest.decode import Decoded

Key = tuple[int, int]
Place = tuple[int, datetime, bytes]


FORGET_ROWS: Final = 10_000
"""Deleted in one statement, some 20 ms, so that no watermark waits for it."""

FORGET_STATEMENTS: Final = 20
"""In one sweep; what is left goes in the next."""

RESTORE_MARGIN: Final = timedelta(hours=1)
"""Kept so much longer than the stream keeps a message: clocks differ, and a message may be in hand when it expires."""

_DROPPED = """
DELETE FROM ledger_unidentified WHERE (stream, stream_seq, stored_at, sha256) IN (
    SELECT stream, stream_seq, stored_at, sha256 FROM ledger_unidentified
    WHERE stream = $1 AND stream_seq < $2 AND stream_created = $3 LIMIT $4)
"""

# Of another life of the stream than the one whose floor the leader last wrote; before it has written one, of none.
_OF_OTHERS = """
DELETE FROM ledger_unidentified WHERE (stream, stream_seq, stored_at, sha256) IN (
    SELECT l.stream, l.stream_seq, l.stored_at, l.sha256 FROM ledger_unidentified l, delivery d
    WHERE l.stream_created <> d.stream_created AND l.stored_at < now() - $1::interval LIMIT $2)
"""


class Entered(NamedTuple):
    """What the ledger made of messages: new ones, known ones that have another hash, and epochs with a new name."""

    new: list[Decoded]
    conflicts: list[Decoded]
    renamed: list[Decoded]


async def enter(connection: asyncpg.Connection, messages: Sequence[Decoded], *, exclusive: bool) -> Entered:
    """Enter messages that have an identity, within the caller's transaction.

    exclusive: nobody else may be at the watermarks until this transaction ends, since these messages change them.
    """
    if not messages:
        return Entered([], [], [])
    by_key = {key_of(message): message for message in messages}
    keys = sorted(by_key)
    inserted = await connection.fetch(
        "INSERT INTO ledger (epoch, seq, sha256, stored, dead, disposition, base) "
        "SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::int[], $5::int[], $6::text[], $7::bigint[]) "
        "ORDER BY 1, 2 ON CONFLICT DO NOTHING RETURNING epoch, seq",
        *_columns(_row(by_key[key]) for key in keys),
    )
    fresh = {(row["epoch"], row["seq"]) for row in inserted}
    if exclusive:
        await gaps.lock(connection)
    watermarks = await _watermarks(connection, by_key.values())
    # Read after the watermarks were locked: a declaration is either seen here, or has seen our ledger rows.
    suspects = [key for key in fresh if key[1] <= watermarks[key[0]]["gaps_to"]]
    found = await gaps.take_out(connection, {key: _samples_of(by_key[key]) for key in suspects})
    under = {key for key in fresh if key[1] <= watermarks[key[0]]["seq"]} - found
    if under:
        await connection.execute(
            "DELETE FROM ledger USING unnest($1::bigint[], $2::bigint[]) AS k (epoch, seq) "
            "WHERE ledger.epoch = k.epoch AND ledger.seq = k.seq",
            *_columns(under),
        )
    return Entered(
        [by_key[key] for key in keys if key in fresh and key not in under],
        await _conflicts(connection, [by_key[key] for key in keys if key not in fresh or key in under]),
        _renamed(watermarks, by_key.values()),
    )


async def is_known(connection: asyncpg.Connection, message: Decoded) -> bool:
    """Return whether a message's identity is taken: what was true once stays so, and nothing is locked for it."""
    known: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM ledger WHERE epoch = $1 AND seq = $2) "
        "OR EXISTS (SELECT FROM folded_epochs WHERE epoch = $1 AND seq >= $2) "
        "OR EXISTS (SELECT FROM watermarks WHERE epoch = $1 AND seq >= $2) "
        "AND NOT EXISTS (SELECT FROM gaps WHERE epoch = $1 AND $2 BETWEEN seq_from AND seq_to)",
        *key_of(message),
    )
    return known


async def rename(connection: asyncpg.Connection, messages: Iterable[Decoded]) -> None:
    """Let epochs belong to the site and edge that they arrived under last, by JetStream's time of the messages.

    The watermark is told under that name: an edge that was renamed hears of its older epochs.
    """
    await gaps.lock(connection)
    await connection.executemany(
        "UPDATE watermarks SET site = $2, edge = $3, named = $4, advanced = now() WHERE epoch = $1 AND named < $4",
        [
            (message.identity.epoch, *message.origin, message.incoming.stored_at)
            for message in messages
            if message.identity
        ],
    )


async def enter_unidentified(
    connection: asyncpg.Connection, messages: Sequence[Decoded], stream_created: datetime
) -> list[Decoded]:
    """Enter messages without identity by place in the stream and content (rule B3) and return those that are new."""
    if not messages:
        return []
    by_place = {place_of(message): message for message in messages}
    inserted = await connection.fetch(
        "INSERT INTO ledger_unidentified "
        "(stream, stream_created, stream_seq, sha256, stored, dead, disposition, stored_at) "
        "SELECT $1, $2, * FROM unnest($3::bigint[], $4::bytea[], $5::int[], $6::int[], $7::text[], "
        "$8::timestamptz[]) ORDER BY 3, 8, 4 ON CONFLICT DO NOTHING RETURNING stream_seq, stored_at, sha256",
        names.STREAM,
        stream_created,
        *_columns(_place_row(by_place[place]) for place in sorted(by_place)),
    )
    return [by_place[(row["stream_seq"], row["stored_at"], row["sha256"])] for row in inserted]


async def forget_dropped(connection: asyncpg.Connection, stream_created: datetime, first_seq: int) -> int:
    """Delete rows of messages without identity that the stream has dropped (rule B3), a bounded number; return it.

    stream_created, first_seq: of the stream that is there now. Rows of another creation stay: `forget_restored`.
    """
    return await _in_portions(connection, _DROPPED, names.STREAM, first_seq, stream_created)


async def forget_restored(connection: asyncpg.Connection, max_age: timedelta) -> int:
    """Delete rows of earlier streams' messages that no restored snapshot can bring back (rule B3), a bounded number.

    max_age: of the stream's messages; a server that restores a snapshot expires what is older. Returns how many.
    """
    return await _in_portions(connection, _OF_OTHERS, max_age + RESTORE_MARGIN)


async def _in_portions(connection: asyncpg.Connection, query: str, *arguments: Any) -> int:
    deleted = 0
    for _ in range(FORGET_STATEMENTS):
        done = await connection.execute(query, *arguments, FORGET_ROWS)
        deleted += (number := int(done.split()[-1]))
        if number < FORGET_ROWS:
            break
    return deleted


async def _watermarks(connection: asyncpg.Connection, messages: Iterable[Decoded]) -> dict[int, asyncpg.Record]:
    """Return epoch → watermark, locked against being advanced; rows are made for epochs seen for the first time."""
    origins = {message.identity.epoch: message.origin for message in messages if message.identity}
    epochs = sorted(origins)
    query = "SELECT epoch, seq, gaps_to, site, edge FROM watermarks WHERE epoch = ANY($1) ORDER BY epoch FOR SHARE"
    found = {row["epoch"]: row for row in await connection.fetch(query, epochs)}
    missing = [epoch for epoch in epochs if epoch not in found]
    if missing:
        await connection.execute(
            "INSERT INTO watermarks (epoch, site, edge) SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[]) "
            "ORDER BY 1 ON CONFLICT DO NOTHING",
            *(missing, [origins[epoch].site for epoch in missing], [origins[epoch].edge for epoch in missing]),
        )
        found |= {row["epoch"]: row for row in await connection.fetch(query, missing)}
    return found


async def _conflicts(connection: asyncpg.Connection, messages: Sequence[Decoded]) -> list[Decoded]:
    """A known identity with another hash is another batch under a stolen or repeated name: keep its bytes."""
    if not messages:
        return []
    known = await hashes.known(connection, [key_of(message) for message in messages])
    conflicts = []
    for message in messages:
        there = known.get(key_of(message), b"")
        if not message.sha256.startswith(there):
            said = f"the database has this epoch and seq with a SHA-256 that begins with {there[:8].hex()}"
            message.bury("identity_conflict", said)
            conflicts.append(message)
    return conflicts


def _renamed(watermarks: dict[int, asyncpg.Record], messages: Iterable[Decoded]) -> list[Decoded]:
    """Return messages whose subject names another edge than the epoch's row; a subject without one says nothing."""
    renamed = []
    for message in messages:
        if message.identity and message.origin.edge:
            row = watermarks[message.identity.epoch]
            if (row["site"], row["edge"]) != message.origin:
                renamed.append(message)
    return renamed


def key_of(message: Decoded) -> Key:
    """Return (epoch, seq) of a message with an identity."""
    if message.identity is None:
        raise AssertionError("only messages with an identity have a key")
    return message.identity.epoch, message.identity.seq


def place_of(message: Decoded) -> Place:
    """Return what a message without identity is known by: stream sequence, JetStream's time, SHA-256."""
    return message.incoming.stream_seq, message.incoming.stored_at, message.sha256


def _counts(message: Decoded) -> tuple[int, int, str]:
    """Return samples stored, samples dead, disposition. Their sum is what the agent counts: events are no samples."""
    disposition = "dead" if message.whole_dead else "stored"
    if message.identity is None:
        return len(message.packed), len(message.dead), disposition
    if message.identity.kind == "events":
        return 0, 0, disposition
    dead = dead_letters.frames_of_whole(message) if message.whole_dead else len(message.dead)
    return len(message.packed), dead, disposition


def _samples_of(message: Decoded) -> tuple[int | None, int]:
    stored, dead, _ = _counts(message)
    return _base_of(message), stored + dead


def _base_of(message: Decoded) -> int | None:
    """Return the header's count, unless it is so large that the database could not add to it."""
    base = message.identity.base if message.identity else SEQ_MAX
    return base if base < SEQ_MAX else None


def _row(message: Decoded) -> tuple[Any, ...]:
    return (*key_of(message), message.sha256, *_counts(message), _base_of(message))


def _place_row(message: Decoded) -> tuple[Any, ...]:
    incoming = message.incoming
    return incoming.stream_seq, message.sha256, *_counts(message), incoming.stored_at


def _columns(rows: Iterable[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
