"""Which machines there are, how many there may be (rule B10), and which samples are their owner's (rule B9).

A message costs one set comparison, and one look into a dictionary for each of its machines that moved before. Only
messages of machines that are new, that move, or that another site owns cost a statement, in a transaction before the
one that stores them.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

import asyncpg
import msgspec

from cncmon_core import logs
from cncmon_core.names import Origin
from cncmon_ingest import metrics, owners, rows
from cncmon_ingest.decode import DeadLetter, Decoded, frames_of
from cncmon_ingest.owners import ALWAYS, NEVER, Intervals, Span
from cncmon_ingest.settings import IngestSettings

log = logs.get(__name__)

FOREIGN: Final = "foreign_machine"
TOO_MANY: Final = "too_many_machines"
CONTENDED: Final = "machine_contended"

LOCK_KEY: Final = 0x636E636D04
"""Advisory lock of those who add machines, so that they count them one after another: "cncm" and 4."""

KNOWN_MAX: Final = 100_000
"""Machines that one worker remembers."""

REFRESH_S: Final = 5.0
"""Hand-overs and moves that others recorded are read so often."""

REFUSED_S: Final = 10.0
"""A machine beyond the bound is refused for so long without another count."""

ALARM_S: Final = 3600.0
ALARMS_MAX: Final = 1000
"""One alarm in an hour for each sender and reason, of so many; all of them are counted."""

_CHANGED = (
    "SELECT DISTINCT machine_id FROM machine_owners WHERE recorded > clock_timestamp() - make_interval(secs => $1)"
)
_LAG_S: Final = 30.0
"""So much later than `recorded` a change may be committed, and seen."""

_ADD = """
WITH added AS (
    INSERT INTO machines (machine_id, site, edge) SELECT m, $2::text, $3::text FROM unnest($1::text[]) AS m ORDER BY 1
    ON CONFLICT DO NOTHING
)
INSERT INTO machine_owners (machine_id, site, edge, from_time)
SELECT m, $2::text, $3::text, '-infinity' FROM unnest($1::text[]) AS m WHERE $2::text <> '' ORDER BY 1
ON CONFLICT DO NOTHING
"""

_OF_NOBODY = """
INSERT INTO machine_owners (machine_id, site, edge, from_time)
SELECT m, $2::text, $3::text, '-infinity' FROM unnest($1::text[]) AS m
WHERE NOT EXISTS (SELECT FROM machine_owners WHERE machine_id = m) ORDER BY 1
ON CONFLICT DO NOTHING
"""


_NONE: Final[frozenset[str]] = frozenset()


class Bounds(NamedTuple):
    """How many machines there may be, in all and of one edge; 0: any number."""

    in_all: int = 0
    of_edge: int = 0

    @staticmethod
    def of(settings: IngestSettings) -> "Bounds":
        """Return the bounds that are set."""
        return Bounds(settings.machines_max, settings.machines_per_edge_max)


class Machines:
    """What one worker knows of machines. `judge` goes before the transaction that stores messages."""

    def __init__(self, bounds: Bounds = Bounds()) -> None:  # noqa: B008 immutable
        self._bounds = bounds
        self._known: dict[str, Intervals] = {}
        self._sure: dict[Origin, set[str]] = {}
        # When machines that are not sure are settled; until the next refresh.
        self._spans: dict[Origin, dict[str, Span]] = {}
        self._refused: dict[str, float] = {}
        self._alarmed: dict[tuple[str, Origin], float] = {}
        self._read_s = time.monotonic()

    def needs_database(self, messages: Iterable[Decoded]) -> bool:
        """Whether `judge` has to ask the database about any of these; otherwise there is nothing to judge."""
        if time.monotonic() - self._read_s > REFRESH_S:
            return True
        return any(self._unsure(message) for message in messages)

    def _unsure(self, message: Decoded) -> set[str]:
        """Return those of a message's machines that may be anything but this sender's, at the message's times."""
        unsure = message.machine_ids - self._sure.get(message.origin, _NONE)
        if not unsure:
            return unsure
        spans, first_us = self._spans.setdefault(message.origin, {}), _first_us(message)
        found = set()
        for machine_id in unsure:
            # Runs for each sample of machines that moved, so the intervals are not looked through here.
            from_us, until_us = spans.get(machine_id) or self._span(machine_id, message.origin)
            if not from_us <= first_us < until_us:
                found.add(machine_id)
        return found

    def _span(self, machine_id: str, origin: Origin) -> Span:
        """Return when a machine is settled for a sender, and remember it."""
        if machine_id not in self._known:
            return NEVER
        span = owners.settled_span(self._known[machine_id], origin)
        if span == ALWAYS:
            self._sure.setdefault(origin, set()).add(machine_id)
        else:
            self._spans[origin][machine_id] = span
        return span

    def forget(self) -> None:
        """Know nothing: a transaction that `judge` was part of did not come to its end."""
        self._known.clear()
        self._sure.clear()
        self._spans.clear()
        self._alarmed.clear()

    async def judge(self, connection: asyncpg.Connection, messages: Sequence[Decoded]) -> None:
        """Enter machines that are new and moves; make dead letters of frames that are another site's or one too many.

        Within a transaction of the caller's, which is committed before the messages are.
        """
        await self._refresh(connection)
        for message in messages:
            if unsure := self._unsure(message):
                await self._judge_one(connection, message, unsure)

    async def _refresh(self, connection: asyncpg.Connection) -> None:
        now_s = time.monotonic()
        since_s = now_s - self._read_s
        if since_s <= REFRESH_S:
            return
        for row in await connection.fetch(_CHANGED, since_s + _LAG_S):
            self._known.pop(row["machine_id"], None)
            self._doubt(row["machine_id"])
        self._read_s = now_s
        self._spans.clear()
        if max(len(self._known), sum(map(len, self._sure.values()))) > KNOWN_MAX:
            self.forget()
        self._refused = {m: until_s for m, until_s in self._refused.items() if until_s > now_s}

    def _learn(self, found: dict[str, Intervals]) -> None:
        for machine_id, intervals in found.items():
            if self._known.get(machine_id) != intervals:
                self._doubt(machine_id)
                self._known[machine_id] = intervals

    def _doubt(self, machine_id: str) -> None:
        for sure in self._sure.values():
            sure.discard(machine_id)
        for spans in self._spans.values():
            spans.pop(machine_id, None)

    async def _judge_one(self, connection: asyncpg.Connection, message: Decoded, unsure: set[str]) -> None:
        refused = await self._enter(connection, message.origin, unsure)
        if refused:
            await self._bury(connection, message, TOO_MANY, lambda m, _: m in refused)
        origin = message.origin
        suspect = {m for m in unsure - refused if origin.site and self._may_be_foreign(m, origin)}
        if suspect:
            # What others hand over counts at once where it would make a dead letter.
            self._learn(await owners.read(connection, suspect))
            known = self._known
            await self._bury(
                connection, message, FOREIGN, lambda m, at: m in suspect and owners.is_foreign(known[m], origin, at)
            )
        first_us = _first_us(message)
        left = sorted(unsure & message.machine_ids)
        if moving := [m for m in left if owners.moves(self._known[m], origin, first_us)]:
            await self._move(connection, moving, origin, first_us)

    def _may_be_foreign(self, machine_id: str, origin: Origin) -> bool:
        return any(interval.site != origin.site for interval in self._known[machine_id])

    async def _enter(self, connection: asyncpg.Connection, origin: Origin, machine_ids: set[str]) -> set[str]:
        """Have all machines in `_known`, entering those that are new; return those that are too many."""
        now_s = time.monotonic()
        refused = {m for m in machine_ids if self._refused.get(m, 0.0) > now_s}
        missing = machine_ids - refused - self._known.keys()
        if missing:
            refused |= await self._add(connection, origin, missing)
        unowned = [m for m in machine_ids - refused if not self._known[m]]
        if unowned and origin.site:
            await connection.execute(_OF_NOBODY, unowned, *origin)
            self._learn(await owners.read(connection, unowned))
            await owners.show_owner(connection, unowned)
        return refused

    async def _add(self, connection: asyncpg.Connection, origin: Origin, missing: set[str]) -> set[str]:
        query = "SELECT machine_id FROM machines WHERE machine_id = ANY($1)"
        listed = {row["machine_id"] for row in await connection.fetch(query, list(missing))}
        refused: set[str] = set()
        if new := missing - listed:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK_KEY)
            new -= {row["machine_id"] for row in await connection.fetch(query, list(new))}
            taken = sorted(new)[: await self._room(connection, origin)]
            refused = new - set(taken)
            await connection.execute(_ADD, taken, *origin)
            if len(self._refused) < KNOWN_MAX:
                self._refused.update(dict.fromkeys(refused, time.monotonic() + REFUSED_S))
        found = missing - refused
        self._learn(dict.fromkeys(found, ()) | await owners.read(connection, found))
        return refused

    async def _room(self, connection: asyncpg.Connection, origin: Origin) -> int:
        """Return how many machines more this sender may bring."""
        (row,) = await connection.fetch(
            "SELECT count(*) AS in_all, count(*) FILTER (WHERE (site, edge) = ($1, $2)) AS of_edge FROM machines",
            *origin,
        )
        rooms = [KNOWN_MAX]
        if self._bounds.in_all:
            rooms.append(self._bounds.in_all - row["in_all"])
        if self._bounds.of_edge and origin.edge:
            rooms.append(self._bounds.of_edge - row["of_edge"])
        return max(0, min(rooms))

    async def _move(
        self, connection: asyncpg.Connection, machine_ids: Sequence[str], origin: Origin, first_us: int
    ) -> None:
        """Record that another edge of the site reads machines now; tell it where two do.

        What is not recorded is looked at again after the next refresh, not for each message until then.
        """
        found = await owners.read_locked(connection, machine_ids)
        self._learn(found)
        # Without those that another worker has recorded.
        moved = [m for m in machine_ids if owners.moves(found[m], origin, first_us)]
        metrics.MACHINE_MOVES.inc(len(moved))
        recorded = []
        for machine_id in moved:
            intervals = found[machine_id]
            contended = owners.is_contended(intervals, first_us)
            if contended:
                edges = ", ".join(sorted({one.edge for one in intervals[-owners.CONTENDED_MOVES :]}))
                text = f"machine {machine_id!r} is sent by {edges} at the same time: take it out of all but one of them"
                await self._alarm(connection, CONTENDED, origin, machine_id, text, 0)
            if contended or len(intervals) >= owners.INTERVALS_MAX:
                settled = owners.settled_span(intervals, origin)
                self._spans.setdefault(origin, {})[machine_id] = settled._replace(until_us=ALWAYS.until_us)
            else:
                recorded.append(machine_id)
        if recorded:
            await owners.record_moves(connection, recorded, origin, rows.beginning(first_us // rows.TICK_US))
            self._learn(await owners.read(connection, recorded))

    async def _bury(
        self, connection: asyncpg.Connection, message: Decoded, reason: str, is_dead: Callable[[str, int], bool]
    ) -> None:
        """Make dead letters of the rows of a message for whose machine and time `is_dead` holds."""
        judged = [(rows.machine_of(row), rows.time_of(row)) for row in message.packed]
        dead = {index: m for index, (m, at) in enumerate(judged) if is_dead(m, at)}
        if not dead:
            return
        originals = frames_of(message.incoming)
        details = {m: self._detail(reason, m, message.origin) for m in set(dead.values())}
        for index, machine_id in dead.items():
            number = message.frame_numbers[index]
            message.dead.append(DeadLetter(number, reason, details[machine_id], originals[number]))
        keep = [index for index in range(len(judged)) if index not in dead]
        message.packed = [message.packed[index] for index in keep]
        message.frame_numbers = [message.frame_numbers[index] for index in keep]
        message.machine_ids = {judged[index][0] for index in keep}
        message.ticks = {judged[index][1] // rows.TICK_US for index in keep}
        message.days = {tick // rows.TICKS_A_DAY for tick in message.ticks}
        machine_id, frames = Counter(dead.values()).most_common(1)[0]
        await self._alarm(connection, reason, message.origin, machine_id, details[machine_id], frames)

    def _detail(self, reason: str, machine_id: str, origin: Origin) -> str:
        if reason == TOO_MANY:
            return (
                f"machine {machine_id!r} is one too many: at most {self._bounds.in_all or 'any number of'} machines, "
                f"{self._bounds.of_edge or 'any number'} of one edge"
            )
        last = self._known[machine_id][-1]
        return (
            f"machine {machine_id!r} belongs to {last.site}/{last.edge}, and {origin.site}/{origin.edge} sent it. "
            "Rename one of the two machines; or, if it moved: cncmon machines hand-over"
        )

    async def _alarm(
        self, connection: asyncpg.Connection, reason: str, origin: Origin, machine_id: str, text: str, frames: int
    ) -> None:
        now_s = time.monotonic()
        key = (reason, origin)
        if now_s - self._alarmed.get(key, -ALARM_S) < ALARM_S:
            return
        if len(self._alarmed) >= ALARMS_MAX:
            self._alarmed = {key: at_s for key, at_s in self._alarmed.items() if now_s - at_s < ALARM_S}
            if len(self._alarmed) >= ALARMS_MAX:
                return
        self._alarmed[key] = now_s
        log.warning("machine alarm", reason=reason, **origin._asdict(), machine_id=machine_id, detail=text)
        data = msgspec.json.encode({"detail": text, "frames": frames}).decode()
        await connection.execute(
            "INSERT INTO events (time, site, edge, type, machine_id, data) VALUES (now(), $1, $2, $3, $4, $5)",
            *(*origin, reason, machine_id, data),
        )


def _first_us(message: Decoded) -> int:
    """Return a time that none of a message's samples lies before, at most a tick earlier than the first of them."""
    return min(message.ticks, default=0) * rows.TICK_US
