"""Heartbeats of the edges as ingest reads them (rule A6): little is asked of them, so that older agents are heard."""

from datetime import datetime
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta

from cncmon_core import names
from cncmon_core.errors import FrameError
from cncmon_core.events import SEQ_MAX, Epoch
from cncmon_core.names import Origin

BYTES_MAX: Final = 512 << 10
"""Some 3,000 machines' reports. A larger one is no heartbeat."""

EPOCHS_MAX: Final = 512
"""An agent lists its current epoch, 256 earlier ones and the logs beside them. A heartbeat with more is refused whole:
a list that was cut would say that the others are gone, and they would be abandoned.
"""

Count = Annotated[int, Meta(ge=0, le=SEQ_MAX)]


class EpochReport(msgspec.Struct):
    """What an edge says of an epoch on its disk. accepted_samples: up to last_seq; None: an agent that does not say."""

    epoch: Epoch
    last_seq: Count = 0
    freed_seq: Count = 0
    acked_seq: Count = 0
    accepted_samples: Count | None = None

    @property
    def highest_seq(self) -> int:
        """The last seq that it has given out for certain."""
        return max(self.last_seq, self.freed_seq, self.acked_seq)


class _Fields(msgspec.Struct):
    boot_id: Annotated[str, Meta(min_length=1, max_length=64)]
    time: Annotated[datetime, Meta(tz=True)]
    epochs: list[EpochReport] | None = None
    gone: list[EpochReport] = []
    forked: Annotated[list[Epoch], Meta(max_length=EPOCHS_MAX)] = []
    beat: Count = 0


class Heartbeat(NamedTuple):
    """One heartbeat. received: JetStream's time of it. epochs is None where the agent does not list them.

    gone: epochs that the heartbeats before told of and that the edge has no more, its disk being another one. forked:
    epochs on it under which another agent publishes, too. number: of this process's heartbeats; 0: it does not say.
    """

    origin: Origin
    boot_id: str
    time: datetime
    received: datetime
    epochs: list[EpochReport] | None
    document: str
    gone: tuple[EpochReport, ...] = ()
    forked: tuple[int, ...] = ()
    number: int = 0


_decode = msgspec.json.Decoder().decode
YEARS: Final = range(1970, 2200)


def decode_heartbeat(key: str, value: bytes, received: datetime) -> Heartbeat:
    """Return the heartbeat in an entry of the bucket. Site and edge are the key's: that is what permissions bind.

    Raises:
        FrameError: it is none, or nothing that the database could keep.
    """
    site, _, edge = key.partition(".")
    if names.origin_of(names.samples_subject(site, edge)) != (site, edge) or not site:
        raise FrameError("bad_key", f"{key[:80]!r} does not name a site and an edge")
    if len(value) > BYTES_MAX:
        raise FrameError("too_large", f"{len(value)} bytes; a heartbeat has at most {BYTES_MAX}")
    if b"\\u0000" in value:
        raise FrameError("nul_character", "a text holds U+0000, which PostgreSQL can't store")
    try:
        content = _decode(value)
        fields = msgspec.convert(content, _Fields)
        # Encoded again: what is kept is JSON to the letter.
        document = msgspec.json.encode(content).decode()
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise FrameError("malformed", str(error)) from error
    listed = len(fields.epochs or ()), len(fields.gone)
    if max(listed) > EPOCHS_MAX:
        text = f"{listed[0]} epochs and {listed[1]} that are gone; a heartbeat has at most {EPOCHS_MAX} of each"
        raise FrameError("too_many_epochs", text)
    if fields.time.year not in YEARS:
        raise FrameError("malformed", f"time is {fields.time.isoformat()}")
    return Heartbeat(
        Origin(site, edge),
        fields.boot_id,
        fields.time,
        received,
        fields.epochs,
        document,
        tuple(fields.gone),
        tuple(fields.forked),
        fields.beat,
    )
