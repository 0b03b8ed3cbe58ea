"""What edges report beside samples, as rows; an epoch's closing also marks its watermark, a gap is entered as one."""

from collections.abc import Sequence

import asyncpg
import msgspec

from cncmon_core.events import EPOCH_CLOSED, GAP, EpochClosed, Gap
from cncmon_ingest import forks, gaps
from cncmon_ingest.decode import Decoded


async def insert_events(connection: asyncpg.Connection, messages: Sequence[Decoded]) -> None:
    """Write the events of messages, within the caller's transaction."""
    found = [(message, event) for message in messages for event in message.events]
    if not found:
        return
    await connection.executemany(
        "INSERT INTO events (time, site, edge, type, machine_id, data) VALUES ($1, $2, $3, $4, $5, $6)",
        [
            (event.timestamp, *message.origin, event.type, event.machine_id, msgspec.json.encode(event.data).decode())
            for message, event in found
        ],
    )
    if any(message.declares for message in messages):
        await gaps.lock(connection)
    for message, event in found:
        if event.type == EPOCH_CLOSED:
            closed = msgspec.convert(event.data, EpochClosed)
            if await forks.is_forked(connection, closed.epoch):
                # The other agent may go on under it: what lies above is not void.
                continue
            await connection.execute(
                "INSERT INTO watermarks (epoch, site, edge, closed_seq, closed_samples) VALUES ($1, $2, $3, $4, $5) "
                "ON CONFLICT (epoch) DO UPDATE SET closed_seq = greatest(watermarks.closed_seq, $4), "
                "closed_samples = greatest(watermarks.closed_samples, $5), advanced = now(), "
                # Its edge waits to be told of it: under the name that it has by now, and though nothing moves any more.
                "site = CASE WHEN watermarks.named < $6 THEN $2 ELSE watermarks.site END, "
                "edge = CASE WHEN watermarks.named < $6 THEN $3 ELSE watermarks.edge END, "
                "named = greatest(watermarks.named, $6)",
                *(closed.epoch, *message.origin, closed.last_seq, closed.samples, message.incoming.stored_at),
            )
            await gaps.void(connection, closed.epoch, closed.last_seq, closed.samples)
        elif event.type == GAP:
            await gaps.declare(connection, msgspec.convert(event.data, Gap), message.origin)
