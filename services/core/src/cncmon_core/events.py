"""Events: what an edge reports beside samples. They ride in the same log, stream and ledger (`Cncmon-Kind: events`)."""

from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from cncmon_core.errors import FrameError
from cncmon_core.identity import EPOCH_MAX

EPOCH_CLOSED = "epoch_closed"
GAP = "gap"

SEQ_MAX: Final = 1 << 62
"""Nobody counts so far: 292 years at a batch a nanosecond. Sums of two still fit a database's bigint."""

Epoch = Annotated[int, Meta(ge=1, le=EPOCH_MAX)]


class Event(msgspec.Struct, omit_defaults=True):
    """One event. `data` depends on `type`; for `epoch_closed` and `gap` it is the struct below."""

    type: Annotated[str, Meta(min_length=1, max_length=64)]
    timestamp: Annotated[datetime, Meta(tz=True)]
    machine_id: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    data: dict[str, Any] = {}


class EpochClosed(msgspec.Struct):
    """An agent's start says of an earlier epoch: this is all that was recovered, it will not grow.

    samples: of the epoch up to last_seq, null where nobody can tell.
    """

    epoch: Epoch
    last_seq: Annotated[int, Meta(ge=0, le=SEQ_MAX)]
    samples: Annotated[int, Meta(ge=0, le=SEQ_MAX)] | None = None


class Gap(msgspec.Struct):
    """An agent says: batches seq_from to seq_to of an epoch are not here any more, and won't come.

    samples: how many they held, null where nobody can tell. base, end: samples of the epoch before seq_from (as
    `Cncmon-Base`) and up to seq_to, where known: one of them, and what the database has, tells what is missing; with
    both the count stays exact when a batch turns up after all.
    """

    epoch: Epoch
    seq_from: Annotated[int, Meta(ge=1, le=SEQ_MAX)]
    seq_to: Annotated[int, Meta(ge=1, le=SEQ_MAX)]
    reason: Annotated[str, Meta(min_length=1, max_length=64)]
    samples: Annotated[int, Meta(ge=0, le=SEQ_MAX // 2)] | None = None
    base: Annotated[int, Meta(ge=0, le=SEQ_MAX // 2)] | None = None
    end: Annotated[int, Meta(ge=0, le=SEQ_MAX // 2)] | None = None

    def __post_init__(self) -> None:
        if self.seq_to < self.seq_from:
            raise ValueError(f"seq_to {self.seq_to} lies before seq_from {self.seq_from}")


_KINDS: Final[dict[str, type[EpochClosed | Gap]]] = {EPOCH_CLOSED: EpochClosed, GAP: Gap}

encode_event = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Event).decode


def decode_event(frame: bytes) -> Event:
    """Return the event of one frame.

    Raises:
        FrameError: not JSON, not an event, or an `epoch_closed` or `gap` without its numbers.
    """
    if b"\\u0000" in frame:
        raise FrameError("nul_character", "a text holds U+0000, which PostgreSQL can't store")
    try:
        event = _decode(frame)
        # No database has times that can't be told in UTC.
        event.timestamp.astimezone(UTC)
        if event.type in _KINDS:
            msgspec.convert(event.data, _KINDS[event.type])
    except (msgspec.ValidationError, OverflowError) as error:
        raise FrameError("invalid_field", str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError("malformed_json", str(error)) from error
    return event
