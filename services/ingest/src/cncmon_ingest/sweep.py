"""What the leader does every few seconds: prune rows of dropped messages, keep room in the stream, abandon and fold
epochs.
"""

from datetime import timedelta
from typing import Final

import asyncpg
from nats.js import JetStreamContext

from cncmon_core import names
from cncmon_core.names import Origin
from cncmon_ingest import forks, hashes, ledger
from cncmon_ingest.abandoned import Abandoned
from cncmon_ingest.care import care_for_stream
from cncmon_ingest.folded import fold
from cncmon_ingest.settings import IngestSettings
from cncmon_ingest.stream_position import StreamPosition

_ACTIVE = "SELECT DISTINCT site, edge FROM watermarks WHERE advanced > now() - INTERVAL '1 day' AND edge <> ''"


FORKED_FOR: Final = timedelta(days=30)
"""So long the edge of a forked epoch is told how far the stream is committed: only then its agent frees what it has."""


async def sweep(
    connection: asyncpg.Connection,
    js: JetStreamContext,
    settings: IngestSettings,
    place: StreamPosition,
    abandoned: Abandoned,
) -> set[Origin]:
    """Do what need not be done in every round; return the edges whose documents are to be compared again.

    Raises:
        asyncpg.PostgresError
    """
    stream = await js.stream_info(names.STREAM)
    await ledger.forget_dropped(connection, place.stream_created, stream.state.first_seq)
    await connection.execute(
        "DELETE FROM suspects WHERE stream_seq < $1 OR stream_created <> $2",
        *(stream.state.first_seq, place.stream_created),
    )
    await care_for_stream(js, settings, place.floor)
    await abandoned.look(connection, stream.state.last_seq, place.floor)
    await fold(connection)
    await hashes.prune(connection, max(stream.config.max_age or 0, settings.stream_age_s_max))
    active = {Origin(row["site"], row["edge"]) for row in await connection.fetch(_ACTIVE)}
    return active | await forks.edges_since(connection, FORKED_FOR)
