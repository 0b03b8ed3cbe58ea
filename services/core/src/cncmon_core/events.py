"""Events: what an edge reports beside samples. They ride in the same log, stream and ledger (`Cncmon-Kind: events`)."""

from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from cncmon_core.errors import FrameError

EPOCH_CLOSED = "epoch_closed"


class Event(msgspec.Struct, omit_defaults=True):
    """One event. `data` depends on `type`; for `epoch_closed`: epoch, last_seq, samples."""

    type: Annotated[str, Meta(min_length=1, max_length=64)]
    timestamp: Annotated[datetime, Meta(tz=True)]
    machine_id: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    data: dict[str, Any] = {}


class EpochClosed(msgspec.Struct):
    """An agent's start says of an earlier epoch: this is all that was recovered, it will not grow."""

    epoch: Annotated[int, Meta(ge=1)]
    last_seq: Annotated[int, Meta(ge=0)]
    samples: Annotated[int, Meta(ge=0)]


encode_event = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Event).decode


def decode_event(frame: bytes) -> Event:
    """Return the event of one frame.

    Raises:
        FrameError: not JSON, not an event, or an `epoch_closed` without its numbers.
    """
    if b"\\u0000" in frame:
        raise FrameError("nul_character", "a text holds U+0000, which PostgreSQL can't store")
    try:
        event = _decode(frame)
        if event.type == EPOCH_CLOSED:
            msgspec.convert(event.data, EpochClosed)
    except msgspec.ValidationError as error:
        raise FrameError("invalid_field", str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError("malformed_json", str(error)) from error
    return event
