"""How far the consumers have the stream: what they acknowledged is committed, since nothing is acknowledged before."""

from datetime import datetime
from typing import NamedTuple

from nats.js import JetStreamContext

from cncmon_core import names
from cncmon_ingest import metrics


class StreamPosition(NamedTuple):
    """When the stream was made, and up to which of its sequences everything is committed."""

    stream_created: datetime
    floor: int


async def stream_created(js: JetStreamContext) -> datetime:
    """Return when the stream was made."""
    created = (await js.stream_info(names.STREAM)).created
    if created is None:
        raise AssertionError("the server always says when a stream was made")
    return created


async def committed_position(js: JetStreamContext, created: datetime) -> StreamPosition:
    """Return how far the shared consumer is."""
    info = await js.consumer_info(names.STREAM, names.DURABLE)
    floor = info.ack_floor.stream_seq if info.ack_floor else 0
    metrics.PENDING.set(info.num_pending or 0)
    metrics.ACK_PENDING.set(info.num_ack_pending or 0)
    metrics.FLOOR.set(floor)
    return StreamPosition(created, floor)
