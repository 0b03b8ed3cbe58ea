"""Care for the stream: what is committed makes room before edges are refused.

The stream has `discard: new`: it refuses and never drops; an edge as well, above its share.
"""

from typing import Final

from nats.js import JetStreamContext

from cncmon_core import logs, names
from cncmon_ingest import metrics
from cncmon_ingest.settings import IngestSettings

log = logs.get(__name__)

FULL_RATIO: Final = 0.70
"""Above this, committed messages are purged, oldest first (rule D2 of docs/delivery.md)."""
ROOM_RATIO: Final = 0.60
"""Down to this and no further: what stays is what the database could be given again after going back."""

NEAR_RATIO: Final = 0.90
"""Above this part of a subject's share, all that is committed on it is purged."""


def purge_up_to(first_seq: int, messages: int, fill: float, floor: int) -> int | None:
    """Return the sequence before which to purge, or None where the stream has room or nothing is committed.

    Oldest first, as many as bring the fill from `fill` to ROOM_RATIO (messages taken as equally large), and never past
    the committed floor.
    """
    if fill <= FULL_RATIO or messages <= 0:
        return None
    count = int(messages * (fill - ROOM_RATIO) / fill) + 1
    up_to = min(first_seq + count, floor + 1)
    return up_to if up_to > first_seq else None


async def care_for_stream(js: JetStreamContext, settings: IngestSettings, floor: int) -> None:
    """Purge committed messages where the stream is over 70 % full; raise an alarm where that isn't enough."""
    fill = await _fill(js, settings)
    state = (await js.stream_info(names.STREAM)).state
    up_to = purge_up_to(state.first_seq, state.messages, fill, floor)
    if up_to is not None:
        await js.purge_stream(names.STREAM, seq=up_to)
        metrics.PURGED.inc(up_to - state.first_seq)
        log.info("purged committed messages", up_to=up_to, fill=round(fill, 3))
        fill = await _fill(js, settings)
    await _care_for_shares(js, settings, floor)
    metrics.STREAM_FILL.set(fill)
    metrics.STREAM_PRESSURE.set(fill > FULL_RATIO)
    if fill > FULL_RATIO:
        log.warning("the stream fills up with messages that are not committed yet", fill=round(fill, 3), floor=floor)


async def _care_for_shares(js: JetStreamContext, settings: IngestSettings, floor: int) -> None:
    """Purge committed messages of each subject that has most of its share, as the stream's when that is full.

    Without it a lone edge would be refused with a share of what is committed, long before the stream is full.
    """
    share = settings.stream_messages_per_edge_max
    state = (await js.stream_info(names.STREAM)).state
    # Not asked for the subjects, of which there may be thousands, where none can have so many.
    if not share or state.messages <= share * FULL_RATIO:
        return
    subjects = (await js.stream_info(names.STREAM, subjects_filter=">")).state.subjects or {}
    for subject, messages in subjects.items():
        if messages <= share * FULL_RATIO:
            continue
        first_seq = (await js.get_msg(names.STREAM, seq=1, subject=subject, next=True)).seq or 0
        # As if evenly spread; where they are not, the next sweep goes on, and near the limit all that may go does.
        span = state.last_seq - first_seq + 1
        up_to = purge_up_to(first_seq, span, messages / share, floor) if messages <= share * NEAR_RATIO else floor + 1
        if up_to is not None and up_to > first_seq:
            await js.purge_stream(names.STREAM, subject=subject, seq=up_to)
            log.info("purged committed messages of a subject", subject=subject, messages=messages, up_to=up_to)


async def _fill(js: JetStreamContext, settings: IngestSettings) -> float:
    state = (await js.stream_info(names.STREAM)).state
    return max(state.bytes / settings.stream_bytes_max, state.messages / settings.stream_messages_max)
