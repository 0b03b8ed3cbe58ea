"""How far the consumers have the stream: what they acknowledged is committed, since nothing is acknowledged before."""

from datetime import datetime
from typing import NamedTuple

from nats.js import JetStreamContext

from cncmon_core import logs, names
from cncmon_ingest import metrics

log = logs.get(__name__)


class StreamPosition(NamedTuple):
    """When the stream was made, and up to which of its sequences everything is committed."""

    stream_created: datetime
    floor: int


async def stream_state(js: JetStreamContext) -> tuple[datetime, int]:
    """Return when the stream was made, and its last sequence."""
    info = await js.stream_info(names.STREAM)
    if info.created is None:
        raise AssertionError("the server always says when a stream was made")
    return info.created, info.state.last_seq


async def committed_position(js: JetStreamContext, created: datetime) -> StreamPosition:
    """Return how far the shared consumer is.

    Of a consumer that is ahead of its stream nothing is known: the stream lost its tail, and gives the same sequences
    to other messages now.
    """
    info = await js.consumer_info(names.STREAM, names.DURABLE)
    floor = info.ack_floor.stream_seq if info.ack_floor else 0
    # Read second: the stream only grows, unless it lost something.
    _, last_seq = await stream_state(js)
    if floor > last_seq:
        metrics.FLOORS_ABSURD.inc()
        log.error("the consumer is ahead of its stream: its floor does not count", floor=floor, last_seq=last_seq)
        floor = 0
    metrics.PENDING.set(info.num_pending or 0)
    metrics.ACK_PENDING.set(info.num_ack_pending or 0)
    metrics.FLOOR.set(floor)
    return StreamPosition(created, floor)
