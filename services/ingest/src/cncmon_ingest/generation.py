"""The leader's part of rule D3: it begins a new generation where the database regressed, and writes the mirror.

A database regresses when a replica takes over that lacks the last commits, or a backup is restored. What was
acknowledged since then is missing from it, and nobody would send it again by himself. So nothing is acknowledged until
the leader has begun a new generation: from then on the stream is read again (`reread`), and agents take watermarks that
are lower.
"""

from typing import Final, NamedTuple

import asyncpg
import msgspec
from nats.js import JetStreamContext
from nats.js.errors import KeyNotFoundError, NoKeysError
from nats.js.kv import KeyValue

from cncmon_core import logs
from cncmon_core.events import SEQ_MAX
from cncmon_core.identity import EPOCH_MAX
from cncmon_core.watermark import Watermark, decode_watermark
from cncmon_ingest import metrics
from cncmon_ingest.adoption import adoption, leads, refuse
from cncmon_ingest.database_identity import (
    GENERATIONS_AHEAD_MAX,
    DatabaseIdentity,
    absurd,
    behind,
    check_complete,
    foreign,
    identity_of,
    raise_counter,
)
from cncmon_ingest.errors import ForeignError, OutageError
from cncmon_ingest.identity_mirror import Mirror, read_mirror, write_mirror
from cncmon_ingest.stream_position import StreamPosition, stream_state

log = logs.get(__name__)

WRITES_MAX: Final = 3
"""Tries to write the mirror; in between somebody else would have had to write an older one each time."""

# What the edges were told that the database had, by epoch: where no heartbeat lists such an epoch any more, nobody else
# knows that it ever was. `abandoned` looks after it from here on.
_CLAIM = """
INSERT INTO edge_epochs (epoch, site, edge, boot_id, last_seq, freed_seq, listed)
SELECT epoch, site, edge, '', seq, 0, now()
FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[]) AS told (epoch, site, edge, seq)
WHERE NOT EXISTS (SELECT FROM watermarks w WHERE w.epoch = told.epoch AND w.seq >= told.seq)
ON CONFLICT (epoch) DO UPDATE SET
    accepted_samples = CASE WHEN excluded.last_seq <= edge_epochs.last_seq THEN edge_epochs.accepted_samples END,
    settled = edge_epochs.settled AND excluded.last_seq <= edge_epochs.last_seq,
    last_seq = greatest(edge_epochs.last_seq, excluded.last_seq)
"""

_BEGIN = """
WITH before AS (
    SELECT CASE WHEN stream_created = $2 AND committed_floor <= $4 AND NOT $3 THEN committed_floor ELSE 0 END AS floor
    FROM delivery
)
UPDATE delivery SET generation = $1, counter = counter + 1, stream_created = $2, committed_floor = before.floor,
    reread_from = before.floor + 1, reread_to = $4, reread_begun = now(), reread_ended = NULL, reread_asked = false
FROM before WHERE (generation, counter) = ($5, $6)
RETURNING true
"""


class _Reported(NamedTuple):
    """What the watermark documents say: epoch, site, edge and seq of each epoch, and the highest generation."""

    epochs: list[tuple[int, str, str, int]]
    generation: int


class Generation:
    """Begins generations, and alone writes the mirror, by compare-and-set. adopts: see `IngestSettings`."""

    def __init__(
        self, connection: asyncpg.Connection, js: JetStreamContext, bucket: KeyValue, *, adopts: bool = False
    ) -> None:
        self._connection = connection
        self._js = js
        self._bucket = bucket
        self._adopts = adopts
        self._mirror = Mirror()
        self._ours: DatabaseIdentity | None = None

    async def settle(self) -> None:
        """Begin a new generation if the database regressed; must be done before anything else a leader does.

        Raises:
            ForeignError: the stream's samples went into another database, and nobody has adopted this one.
            OutageError
        """
        mirror = await read_mirror(self._bucket)
        self._mirror, self._ours = mirror, None
        ours = await identity_of(self._connection)
        problem = mirror.problem
        if mirror.identity and problem is None:
            problem = absurd(ours, mirror.identity, *await stream_state(self._js))
        known = None if problem else mirror.identity
        why = behind(ours, known)
        if refusal := await self._refusal(ours, mirror.identity if problem is None else None, bool(why or problem)):
            await self._refuse(refusal)
        if problem:
            metrics.MIRROR_ABSURD.inc()
            log.error("the mirror of the database is absurd: all of the stream is read again", problem=problem)
            await self._begin(ours, ours.generation, from_start=True)
        elif known and why:
            log.warning("the database regressed: the stream is read again", reason=why)
            await self._begin(ours, known.generation, from_start=False)
        await leads(self._connection)
        await self.check()

    async def _refusal(self, ours: DatabaseIdentity, mirror: DatabaseIdentity | None, unlike: bool) -> str | None:
        """Return why this database may not lead; None: it may. unlike: it is not what the mirror says it was.

        One that was refused, or that another one took over from, goes on only as what the mirror says, or adopted: with
        two databases that are alive each would take the other's generation for a backup restored.
        """
        refused, adopted = await adoption(self._connection)
        if self._adopts or adopted == ours.server:
            return None
        if mirror and (why := await foreign(self._connection, ours, mirror)):
            return why
        return refused if unlike or mirror is None else None

    async def _refuse(self, why: str) -> None:
        await refuse(self._connection, why)
        raise ForeignError(why)

    async def begin_if_asked(self) -> bool:
        """Begin a new generation, with all of the stream read again, if somebody requested that."""
        if not await self._connection.fetchval("SELECT reread_asked FROM delivery"):
            return False
        log.info("the stream is read again from its beginning, as requested")
        await self.check()
        ours = self._leading()
        await self._begin(ours, ours.generation, from_start=True)
        await self.check()
        return True

    async def _begin(self, ours: DatabaseIdentity, generation: int, *, from_start: bool) -> None:
        """Begin the generation after the highest of: the database's, `generation`, and what edges were told."""
        await check_complete(self._connection)
        stream_created, last_seq = await stream_state(self._js)
        reported = await self._reported_to_edges(ours.generation + GENERATIONS_AHEAD_MAX)
        new = max(ours.generation, generation, reported.generation) + 1
        self._ours = None
        async with self._connection.transaction():
            begun = await self._connection.fetchval(
                _BEGIN, new, stream_created, from_start, last_seq, ours.generation, ours.counter
            )
            if not begun:
                raise OutageError("the database was exchanged while a generation began")
            if reported.epochs:
                columns = (list(column) for column in zip(*reported.epochs, strict=True))
                await self._connection.execute(_CLAIM, *columns)
        metrics.GENERATIONS.inc()

    async def _reported_to_edges(self, generation_max: int) -> _Reported:
        """Return what the edges were told that the database had; what it can't have had is skipped."""
        try:
            keys = await self._bucket.keys()
        except NoKeysError:
            return _Reported([], 0)
        reported: dict[int, tuple[int, str, str, int]] = {}
        highest = 0
        for key in keys:
            site, dot, edge = key.partition(".")
            if not dot:
                continue
            try:
                document = decode_watermark((await self._bucket.get(key)).value or b"")
            except (KeyNotFoundError, msgspec.MsgspecError):
                continue
            if not _is_sane(document, generation_max):
                metrics.DOCUMENTS_ABSURD.inc()
                log.error("a watermark document is absurd and does not count", key=key)
                continue
            highest = max(highest, document.generation)
            for epoch, seq in document.epochs.items():
                if epoch not in reported or reported[epoch][3] < seq:
                    reported[epoch] = (epoch, site, edge, seq)
        return _Reported(list(reported.values()), highest)

    async def check(self) -> None:
        """Make sure that this database is where it was and that the mirror is its own; bring the mirror up to date.

        Raises:
            OutageError: it regressed, or is another one.
        """
        ours = await identity_of(self._connection)
        known = self._ours
        if known is not None:
            if ours.server != known.server:
                raise OutageError("the connection leads to another server than it did")
            if ours.moment != known.moment:
                raise OutageError(f"the database regressed: it is {ours.moment}, and was {known.moment}")
        self._ours = ours
        await self._write(ours)

    async def record(self, place: StreamPosition) -> None:
        """Raise the counter and note the floor, then mirror both: to be done before edges are told of a change.

        Raises:
            OutageError: the database regressed, or is another one.
        """
        known = self._leading()
        ours = await raise_counter(self._connection, known.moment, *place)
        if ours is None:
            raise OutageError(f"the database regressed: it is not where it was, {known.moment}")
        if ours.server != known.server:
            raise OutageError("the connection leads to another server than it did")
        self._ours = ours
        await self._write(ours)

    def _leading(self) -> DatabaseIdentity:
        if self._ours is None:
            raise AssertionError("it was settled")
        return self._ours

    async def _write(self, ours: DatabaseIdentity) -> None:
        for _ in range(WRITES_MAX):
            if ours == self._mirror.identity:
                found = await read_mirror(self._bucket)
                if found.revision == self._mirror.revision:
                    return
            else:
                written = await write_mirror(self._bucket, self._mirror.revision, ours)
                if written is not None:
                    self._mirror = written
                    return
                found = await read_mirror(self._bucket)
            await self._on_other_mirror(ours, found)
            self._mirror = found
        raise OutageError(f"the mirror of the database was written by others {WRITES_MAX} times in a row")

    async def _on_other_mirror(self, ours: DatabaseIdentity, found: Mirror) -> None:
        """Judge a mirror that this leader did not write; return where it is an older one and to be replaced.

        Raises:
            OutageError: it is malformed or absurd: to be settled.
            ForeignError: the leader of another database wrote it, while this one is where it was.
        """
        problem = found.problem
        if found.identity and problem is None:
            problem = absurd(ours, found.identity, *await stream_state(self._js))
        if problem:
            raise OutageError(f"the mirror of the database is absurd: {problem}")
        if found.identity is None:
            return
        why = await foreign(self._connection, ours, found.identity) or behind(ours, found.identity)
        if why and not self._adopts:
            await self._refuse(f"another database leads: {why}")
        if why:
            raise OutageError(f"another database leads: {why}")


def _is_sane(document: Watermark, generation_max: int) -> bool:
    if not 0 <= document.generation <= generation_max:
        return False
    return all(1 <= epoch <= EPOCH_MAX and 0 <= seq <= SEQ_MAX for epoch, seq in document.epochs.items())
