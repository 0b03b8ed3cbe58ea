"""Which machines there are, and whose they are."""

from collections.abc import Mapping, Sequence

import asyncpg

from cncmon_core.names import Origin
from cncmon_ingest.decode import Decoded


async def note(
    connection: asyncpg.Connection, messages: Sequence[Decoded], known: Mapping[str, Origin]
) -> dict[str, Origin]:
    """Write down machines that are not known, or not as this edge's, within the caller's transaction.

    Returns what is known in addition, once that is committed.
    """
    seen: dict[str, Origin] = {}
    for message in messages:
        for machine_id in message.machine_ids:
            if known.get(machine_id) != message.origin:
                seen[machine_id] = message.origin
    if seen:
        ids = sorted(seen)
        await connection.execute(
            "INSERT INTO machines (machine_id, site, edge) "
            "SELECT * FROM unnest($1::text[], $2::text[], $3::text[]) ORDER BY 1 "
            "ON CONFLICT (machine_id) DO UPDATE SET site = excluded.site, edge = excluded.edge "
            "WHERE excluded.edge <> '' AND (machines.site, machines.edge) IS DISTINCT FROM "
            "(excluded.site, excluded.edge)",
            *(ids, [seen[machine_id].site for machine_id in ids], [seen[machine_id].edge for machine_id in ids]),
        )
    return seen
