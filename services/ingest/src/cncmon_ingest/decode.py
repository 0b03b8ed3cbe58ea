"""From a stream message to what the transaction writes: rows, events, dead letters, and the identity of it all."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, cast

import msgspec

from cncmon_core import frames, identity, names
from cncmon_core.errors import FrameError, IdentityError, MessageError, RejectedError
from cncmon_core.events import EPOCH_CLOSED, GAP, Event, decode_event
from cncmon_core.identity import Identity, identity_of
from cncmon_core.names import Origin
from cncmon_core.sample import Sample, decode_sample
from cncmon_ingest import fast, rows

WHOLE_MESSAGE = -1

DAYS_MAX = 200
"""Days on which the samples of one transaction may lie: a day is a chunk of the table, and each takes locks, of which a
server has some thousands for all its sessions.
"""

_DAMAGED = b""


class Incoming(NamedTuple):
    """A message as the stream holds it. `stored_at` is JetStream's own time of it."""

    subject: str
    headers: Mapping[str, str]
    data: bytes
    stream_seq: int
    stored_at: datetime


class DeadLetter(NamedTuple):
    """What can't be stored: a frame by its number, or a whole message (-1)."""

    frame: int
    reason: str
    detail: str
    payload: bytes


class Decoded(msgspec.Struct):
    """One message, ready to be written.

    identity is None for a message without (usable) identity headers: that is known by its place in the stream.
    packed holds one COPY row a sample, `machine_ids` the machines in it; payload_bytes is
    the size decompressed, ticks those that the samples lie in, days the days (counted from 2000-01-01 UTC).
    """

    incoming: Incoming
    origin: Origin
    identity: Identity | None
    sha256: bytes
    packed: list[bytes] = []
    frame_numbers: list[int] = []
    machine_ids: set[str] = set()
    events: list[Event] = []
    dead: list[DeadLetter] = []
    payload_bytes: int = 0
    ticks: set[int] = set()
    days: set[int] = set()

    @property
    def whole_dead(self) -> bool:
        """Nothing of the message could be used."""
        return bool(self.dead) and any(letter.frame == WHOLE_MESSAGE for letter in self.dead)

    @property
    def declares(self) -> bool:
        """Whether it speaks of other batches than itself: gaps and closings."""
        return bool(self.events) and any(event.type in (EPOCH_CLOSED, GAP) for event in self.events)

    def bury(self, reason: str, detail: str) -> None:
        """Give up the whole message, with its bytes as they came."""
        self.packed, self.frame_numbers, self.machine_ids, self.events = [], [], set(), []
        self.ticks, self.days = set(), set()
        self.dead = [DeadLetter(WHOLE_MESSAGE, reason, detail, self.incoming.data)]


class Limits(NamedTuple):
    """Between which times a sample may lie."""

    oldest: datetime
    newest: datetime

    @staticmethod
    def at(now: datetime, future_s_max: float, retention_days: int) -> "Limits":
        """Return the limits at a time; retention_days 0: any age."""
        oldest = now - timedelta(days=retention_days) if retention_days else datetime.min.replace(tzinfo=UTC)
        return Limits(oldest, now + timedelta(seconds=future_s_max))


def decode(incoming: Incoming, limits: Limits) -> Decoded:
    """Return what to write for a message. Never raises for bad bytes: they become dead letters with a reason."""
    origin = names.origin_of(incoming.subject)
    try:
        known = identity_of(incoming.headers)
    except IdentityError as error:
        return _buried(incoming, origin, None, error)
    decoded = Decoded(incoming, origin, known, bytes.fromhex(known.sha256) if known else _DAMAGED)
    try:
        payload = _uncompressed(incoming)
        decoded.payload_bytes = len(payload)
        if known:
            known.check_payload(payload)
        else:
            decoded.sha256 = bytes.fromhex(identity.digest(payload))
        of_samples = not known or known.kind != "events"
        if of_samples and _take_natively(decoded, payload, limits):
            return decoded
        parts, tail = frames.split(payload)
    except MessageError as error:
        return _buried(incoming, origin, known, error)
    take = _take_samples if of_samples else _take_events
    take(decoded, enumerate(parts), limits)
    if tail:
        decoded.dead.append(DeadLetter(len(parts), tail.reason, tail.detail, tail.raw))
    return decoded


def frames_of(incoming: Incoming) -> list[bytes]:
    """Return the frames of a message that was decoded before."""
    return frames.split(_uncompressed(incoming))[0]


def _uncompressed(incoming: Incoming) -> bytes:
    encoding = incoming.headers.get(identity.ENCODING)
    if not encoding:
        return incoming.data
    if encoding != frames.ENCODING_ZSTD:
        raise MessageError(
            "unknown_encoding", f"{identity.ENCODING} is {encoding[:40]!r}; known is {frames.ENCODING_ZSTD}"
        )
    return frames.decompress(incoming.data)


def buried(incoming: Incoming, reason: str, detail: str) -> Decoded:
    """Return a message as a dead letter, without a look at its bytes."""
    try:
        known = identity_of(incoming.headers)
    except IdentityError:
        known = None
    return _buried(incoming, names.origin_of(incoming.subject), known, MessageError(reason, detail))


def _buried(incoming: Incoming, origin: Origin, known: Identity | None, error: RejectedError) -> Decoded:
    sha256 = known.sha256 if known else identity.digest(incoming.data)
    decoded = Decoded(incoming, origin, known, bytes.fromhex(sha256))
    decoded.bury(error.reason, error.detail)
    return decoded


def _take_natively(decoded: Decoded, payload: bytes, limits: Limits) -> bool:
    """Take the samples of a message whose frames are whole: the usual ones by `fast`, the others one by one.

    False: nothing was taken, all is to be taken one by one.
    """
    taken = fast.pack(payload, rows.microseconds(limits.oldest), rows.microseconds(limits.newest))
    if taken is None:
        return False
    packed, machine_ids, ticks, left = taken
    days = {tick // rows.TICKS_A_DAY for tick in ticks}
    if len(days) + len(left) > DAYS_MAX:
        # Any that is left may lie on a day of its own, and which of them is one too many goes by the order of them all.
        return False
    decoded.machine_ids, decoded.ticks, decoded.days = machine_ids, ticks, days
    if not left:
        decoded.packed, decoded.frame_numbers = cast("list[bytes]", packed), list(range(len(packed)))
        return True
    parts, _ = frames.split(payload)
    _take_samples(decoded, [(number, parts[number]) for number in left], limits)
    for number, row in zip(decoded.frame_numbers, decoded.packed, strict=True):
        packed[number] = row
    decoded.frame_numbers = [number for number, row in enumerate(packed) if row is not None]
    decoded.packed = [row for row in packed if row is not None]
    return True


def _take_samples(decoded: Decoded, parts: Iterable[tuple[int, bytes]], limits: Limits) -> None:
    oldest_us, newest_us = rows.microseconds(limits.oldest), rows.microseconds(limits.newest)
    packed, numbers, machines, ticks = decoded.packed, decoded.frame_numbers, decoded.machine_ids, decoded.ticks
    pack, microseconds, tick_us = rows.pack, rows.microseconds, rows.TICK_US
    for number, part in parts:
        try:
            sample = decode_sample(part)
            time_us = microseconds(sample.timestamp)
            if not oldest_us <= time_us <= newest_us:
                check_time(sample, limits)
            if (tick := time_us // tick_us) not in ticks:
                _add_day(decoded.days, tick // rows.TICKS_A_DAY)
            packed.append(pack(sample, time_us))
        except FrameError as error:
            decoded.dead.append(DeadLetter(number, error.reason, error.detail, part))
            continue
        ticks.add(tick)
        numbers.append(number)
        machines.add(sample.machine_id)


def _add_day(days: set[int], day: int) -> None:
    if day not in days and len(days) >= DAYS_MAX:
        raise FrameError("too_many_days", f"the message's samples lie on more than {DAYS_MAX} days")
    days.add(day)


def check_time(sample: Sample, limits: Limits) -> None:
    """Raise FrameError (future_timestamp, too_old) unless the sample's time lies within the limits."""
    if sample.timestamp > limits.newest:
        detail = (
            f"timestamp {sample.timestamp.isoformat()} lies after {limits.newest.isoformat()}, the latest taken now"
        )
        raise FrameError("future_timestamp", detail)
    if sample.timestamp < limits.oldest:
        raise FrameError("too_old", f"timestamp {sample.timestamp.isoformat()} is older than the retention")


def _take_events(decoded: Decoded, parts: Iterable[tuple[int, bytes]], _limits: Limits) -> None:
    for number, part in parts:
        try:
            decoded.events.append(decode_event(part))
        except FrameError as error:
            decoded.dead.append(DeadLetter(number, error.reason, error.detail, part))


def headers_of(raw: Mapping[str, Any] | None) -> dict[str, str]:
    """Return a message's headers as plain text."""
    return {str(name): str(value) for name, value in (raw or {}).items()}
