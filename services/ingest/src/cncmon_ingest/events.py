"""What edges report beside samples, as rows; an epoch's closing also marks its watermark, a gap is entered as one.

A message may declare more than a transaction should: until it ends no worker gets to the watermarks. Then all of it is
declared ahead, in parts, each in a transaction of its own; the message's ledger row comes after them all, and who dies
in between leaves parts that whoever gets the message next declares once more, to no effect.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

import asyncpg
import msgspec

from cncmon_core.events import EPOCH_CLOSED, GAP, EpochClosed, Gap
from cncmon_core.names import Origin
from cncmon_ingest import forks, gaps
from cncmon_ingest.decode import Decoded

_COLUMNS = ["time", "site", "edge", "type", "machine_id", "data"]

# Its edge waits to be told of it: under the name that it has by now, and though nothing moves any more.
_CLOSE = """
INSERT INTO watermarks (epoch, site, edge, closed_seq, closed_samples, named)
SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::timestamptz[])
ON CONFLICT (epoch) DO UPDATE SET
    closed_seq = greatest(watermarks.closed_seq, excluded.closed_seq),
    closed_samples = CASE
        WHEN excluded.closed_seq < watermarks.closed_seq THEN watermarks.closed_samples
        WHEN excluded.closed_seq = watermarks.closed_seq
            THEN greatest(watermarks.closed_samples, excluded.closed_samples)
        ELSE excluded.closed_samples END,
    advanced = now(),
    site = CASE WHEN watermarks.named < excluded.named THEN excluded.site ELSE watermarks.site END,
    edge = CASE WHEN watermarks.named < excluded.named THEN excluded.edge ELSE watermarks.edge END,
    named = greatest(watermarks.named, excluded.named)
RETURNING epoch, closed_seq, closed_samples
"""


class Said(NamedTuple):
    """What an event says of other batches than itself, of which edge. stored_at: JetStream's time of it."""

    what: EpochClosed | Gap
    origin: Origin
    stored_at: datetime


def said_by(message: Decoded) -> list[Said]:
    """Return the closings and gaps of a message."""
    kinds: dict[str, type[EpochClosed | Gap]] = {EPOCH_CLOSED: EpochClosed, GAP: Gap}
    return [
        Said(msgspec.convert(event.data, kinds[event.type]), message.origin, message.incoming.stored_at)
        for event in message.events
        if event.type in kinds
    ]


def is_long(said: Sequence[Said]) -> bool:
    """Whether it is to be declared ahead: as parts, and not in the transaction of its message."""
    return sum(map(_weight, said)) > gaps.AT_ONCE_MAX


def grouped(messages: Iterable[Decoded]) -> Iterator[list[Decoded]]:
    """Put together messages whose declarations one transaction may hold."""
    group: list[Decoded] = []
    weight = 0
    for message in messages:
        its = sum(map(_weight, said_by(message)))
        if group and weight + its > gaps.AT_ONCE_MAX:
            yield group
            group, weight = [], 0
        group.append(message)
        weight += its
    if group:
        yield group


def _weight(said: Said) -> int:
    """Return how many usual declarations it may cost as much as: a range has no more ledger rows than it is long."""
    length = said.what.seq_to - said.what.seq_from if isinstance(said.what, Gap) else 0
    return 1 + length * gaps.AT_ONCE_MAX // gaps.ROWS_MAX


async def insert_events(connection: asyncpg.Connection, messages: Sequence[Decoded]) -> None:
    """Write the events of messages, within the caller's transaction; what they declare is for `declare`."""
    rows = [
        (event.timestamp, *message.origin, event.type, event.machine_id, msgspec.json.encode(event.data).decode())
        for message in messages
        for event in message.events
    ]
    if rows:
        await connection.copy_records_to_table("events", records=rows, columns=_COLUMNS)


async def declare(connection: asyncpg.Connection, said: Sequence[Said]) -> list[Said]:
    """Close epochs and enter gaps within the caller's transaction, which holds the lock of `gaps`.

    Returns what is left for another transaction: nothing, of what is not `is_long`.
    """
    part, left = said[: gaps.AT_ONCE_MAX], list(said[gaps.AT_ONCE_MAX :])
    await _close(connection, [each for each in part if isinstance(each.what, EpochClosed)])
    declarations = [gaps.Declaration(each.what, each.origin) for each in part if isinstance(each.what, Gap)]
    if declarations:
        _, rest = await gaps.declare(connection, declarations)
        left += [Said(each.gap, each.origin, part[0].stored_at) for each in rest]
    return left


async def _close(connection: asyncpg.Connection, said: Sequence[Said]) -> None:
    closings: dict[int, tuple[EpochClosed, Origin, datetime]] = {}
    for what, origin, stored_at in sorted(said, key=lambda each: each.stored_at):
        if isinstance(what, EpochClosed):
            before = closings.get(what.epoch, (what,))[0]
            closings[what.epoch] = max(before, what, key=_reach), origin, stored_at
    if closings:
        # The other agent may go on under it: what lies above is not void.
        for epoch in await forks.forked_among(connection, list(closings)):
            del closings[epoch]
    if not closings:
        return
    columns = zip(
        *(
            (epoch, *origin, closed.last_seq, closed.samples, stored_at)
            for epoch, (closed, origin, stored_at) in sorted(closings.items())
        ),
        strict=True,
    )
    rows = await connection.fetch(_CLOSE, *(list(column) for column in columns))
    # Above what is closed by now: a closing that says less than one before it takes nothing back.
    await gaps.void(connection, [tuple(row) for row in rows])


def _reach(closed: EpochClosed) -> tuple[int, int]:
    return closed.last_seq, -1 if closed.samples is None else closed.samples
