"""A worker: take messages, decode, commit, acknowledge. Holds while the database is away, buries what it refuses."""

import asyncio
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from nats.aio.client import Client
from nats.aio.msg import Msg

from cncmon_core import logs, names
from cncmon_ingest import bootstrap
from cncmon_ingest.commit import PORTION_BYTES_MAX, commit
from cncmon_ingest.connection import connect
from cncmon_ingest.database_identity import DatabaseIdentity
from cncmon_ingest.decode import DAYS_MAX, Decoded, Limits, decode
from cncmon_ingest.errors import OutageError
from cncmon_ingest.feed import Feed
from cncmon_ingest.hold import Hold
from cncmon_ingest.identity_watch import IdentityWatch
from cncmon_ingest.machines import Bounds
from cncmon_ingest.settings import IngestSettings
from cncmon_ingest.store import Store
from cncmon_ingest.suspects import Suspects, incoming_of

log = logs.get(__name__)

TAKE_S = 1.0
GIVE_WAY_BYTES = 64 << 10
"""Decompressed payload that is decoded in one go, 0.2 ms of batches and 2 ms of single frames: what waits meanwhile is
the COPY of the portion before.
"""
ORPHANS_S_MAX = 5.0
"""How long what was in hand when NATS went away may take to be committed."""


Portion = list[tuple[Msg, Decoded]]


class Worker:
    """Consumes the shared durable, or one of its own. `session` runs once for each NATS connection."""

    def __init__(self, settings: IngestSettings, stop: asyncio.Event, durable: str = names.DURABLE) -> None:
        self._settings = settings
        self._stop = stop
        self._durable = durable
        self._watch: IdentityWatch | None = None
        self._identity: DatabaseIdentity | None = None
        self._suspects: Suspects | None = None
        self._store: Store | None = None
        self._stream_created = datetime.min.replace(tzinfo=UTC)
        self._offset = timedelta(0)
        self._in_hand: list[Msg] = []
        self._problem: str | None = "not started yet"

    def check(self) -> str | None:
        """Readiness: taking messages, and the database takes them?"""
        return self._problem

    def waits_for(self, what: str) -> None:
        """Say what must be there before it can begin."""
        self._problem = f"database: {what}"

    async def session(self, client: Client) -> None:
        """Work until told to stop, or until the connection or the consumer is gone."""
        await bootstrap.ensure(client, self._settings)
        js = client.jetstream()
        created = (await js.stream_info(names.STREAM)).created
        if created is None:
            raise AssertionError("the server always says when a stream was made")
        if created != self._stream_created:
            self._stream_created = created
            await self._drop_store()
        self._watch = IdentityWatch(client, adopts=self._settings.adopt_database)
        await self._watch.open()
        self._suspects = Suspects(self._settings, created, self._watch)
        feed = Feed(client, self._settings, self._durable)
        await feed.open()
        hold = Hold(js, feed, self._settings, self._stop, self._durable)
        self._in_hand = []
        left: list[Msg] = []
        waking = asyncio.create_task(self._wake_at_stop(feed))
        settling = asyncio.create_task(self._suspects.run())
        try:
            while not self._stop.is_set():
                if settling.done():
                    settling.result()
                await hold.until(self._connected)
                if messages := await feed.take(TAKE_S):
                    await self._handle(messages, feed, hold)
        except asyncio.CancelledError:
            await self._commit_orphans([*self._in_hand, *feed.waiting])
            raise
        finally:
            waking.cancel()
            settling.cancel()
            await self._drop_store()
            await asyncio.wait([settling])
            left = [*await feed.close(), *self._suspects.waiting]
        # Stopped in order: others can have at once what was not begun.
        for message in left:
            await message.nak()
        await client.flush()

    async def _wake_at_stop(self, feed: Feed) -> None:
        await self._stop.wait()
        feed.wake()

    async def _connected(self) -> None:
        """Have a connection to the database; OutageError while it can't be had."""
        if self._store is not None and self._store.usable:
            return
        try:
            connection = await connect(self._settings.database_dsn)
            self._store = Store(
                connection,
                self._stream_created,
                self._watch.known if self._watch else None,
                bounds=Bounds.of(self._settings),
            )
            self._identity = await self._watch.admit(connection) if self._watch else None
            self._offset = await self._store.clock_offset()
        except OutageError as error:
            await self._drop_store()
            self._problem = f"database: {error}"
            raise
        self._problem = None

    async def _drop_store(self) -> None:
        if self._store is not None:
            store, self._store = self._store, None
            store.close()

    async def _commit_orphans(self, messages: list[Msg]) -> None:
        """The connection to NATS is gone: nothing can be acknowledged, yet what is here need not wait to be sent again.

        It will be delivered a second time, and the ledger knows it then.
        """
        if not messages or self._stop.is_set():
            return
        try:
            async with asyncio.timeout(ORPHANS_S_MAX):
                todo = deque(messages)
                while todo:
                    await self._commit([item for _, item in await self._portion(todo)])
        except (OutageError, TimeoutError) as error:
            log.info("left to be delivered again", messages=len(messages), reason=str(error))

    async def _handle(self, messages: list[Msg], feed: Feed, hold: Hold) -> None:
        """Commit messages in portions that fit into memory decompressed, and acknowledge each after its commit.

        While the database works on one portion the next is decoded, of what came meanwhile, too: under much load
        neither waits for the other.
        """
        todo = deque(await self._unsuspected(messages))
        self._in_hand = list(todo)
        portion = await self._portion(todo)
        while portion:
            if not self._stop.is_set() and len(todo) < self._settings.fetch_messages // 4:
                todo.extend(await self._unsuspected(await feed.take_arrived()))
            self._in_hand = [*(message for message, _ in portion), *todo]
            ahead = asyncio.create_task(self._portion(todo))
            try:
                if not await self._commit_portion(portion, hold):
                    break
                portion = await ahead
            finally:
                ahead.cancel()
        self._in_hand = []

    async def _unsuspected(self, messages: list[Msg]) -> list[Msg]:
        """Return the messages that are taken in the usual way; the others are tried alone, beside it."""
        if self._suspects is None:
            raise AssertionError("they are made before messages are taken")
        usual = []
        for message in messages:
            if self._suspects.suspects(message):
                await self._suspects.add(message)
            else:
                usual.append(message)
        return usual

    async def _portion(self, todo: deque[Msg]) -> Portion:
        """Take messages off `todo` and decode them, as many as one transaction may hold by size and days.

        Gives way to others between them.
        """
        portion: Portion = []
        size = given_way = 0
        days: set[int] = set()
        # A worker with a slow clock must not refuse a plant: the latest of the clocks that others keep counts.
        now = datetime.now(UTC) + self._offset
        limits = self._limits(now)
        while todo and size < PORTION_BYTES_MAX:
            incoming = incoming_of(todo[0])
            decoded = decode(incoming, limits if incoming.stored_at <= now else self._limits(incoming.stored_at))
            if portion and len(days | decoded.days) > DAYS_MAX:
                break
            message = todo.popleft()
            days |= decoded.days
            size += decoded.payload_bytes
            portion.append((message, decoded))
            if size - given_way >= GIVE_WAY_BYTES:
                given_way = size
                await asyncio.sleep(0)
        return portion

    async def _commit_portion(self, portion: Portion, hold: Hold) -> bool:
        decoded = [item for _, item in portion]

        async def step() -> None:
            await self._commit(decoded)
            await self._check_identity()

        if not await hold.until(step, self._in_hand):
            return False
        for message, item in portion:
            # Committed: what could not be decoded at all need never come again.
            await (message.term() if item.whole_dead else message.ack())
        return True

    async def _check_identity(self) -> None:
        """Raise OutageError where the database regressed meanwhile: it may lack what was committed just now."""
        if self._watch is None or self._identity is None:
            return
        try:
            await self._watch.may_acknowledge(self._identity)
        except OutageError as error:
            self._problem = f"database: {error}"
            await self._drop_store()
            raise

    def _limits(self, now: datetime) -> Limits:
        return Limits.at(now, self._settings.future_s_max, self._settings.retention_days)

    async def _commit(self, decoded: Sequence[Decoded]) -> None:
        """Commit all of it; what the database refuses is found and buried, the rest is committed.

        Raises:
            OutageError: some of it is not committed; trying all of it again is right, the ledger knows the rest.
        """
        await self._connected()
        store = self._store
        if store is None:
            raise OutageError("no connection")
        try:
            done = await commit(store, decoded)
        except OutageError as error:
            self._problem = f"database: {error}"
            await self._drop_store()
            raise
        if done.database_time is not None:
            self._offset = done.database_time - datetime.now(UTC)
        self._problem = None
