"""The cloud side of the model: a real nats-server and a real database, workers and a leader made of ingest's parts.

A worker takes, commits and acknowledges when the model says so, and may die between any two of these. The leader makes
one round at a time; what reads the stream again is the real task, which runs during the model's steps.
"""

import asyncio
import contextlib
import itertools
import shutil
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError, ServerError

from cncmon_core import names
from cncmon_core.identity import identity_of
from cncmon_core.nats_link import TolerantClient
from cncmon_ingest import bootstrap
from cncmon_ingest.commit import commit
from cncmon_ingest.connection import connect
from cncmon_ingest.database_identity import DatabaseIdentity
from cncmon_ingest.decode import Limits, decode
from cncmon_ingest.errors import DATABASE_ERRORS, OutageError
from cncmon_ingest.identity_watch import IdentityWatch
from cncmon_ingest.leader import leading
from cncmon_ingest.settings import IngestSettings
from cncmon_ingest.store import Store
from cncmon_ingest.suspects import incoming_of
from robustness.model.promises import Key
from testkit.servers import Server

_snapshots = itertools.count(1)

ENDS = (OutageError, ExceptionGroup, *DATABASE_ERRORS)
"""What ends a worker's or a leader's session, for the next to begin anew."""


class ModelWorker:
    """A worker's session, by hand."""

    def __init__(self, client: Client, settings: IngestSettings, created: datetime) -> None:
        self._client = client
        self._settings = settings
        self._created = created
        self._watch = IdentityWatch(client)
        self._store: Store | None = None
        self._identity: DatabaseIdentity | None = None

    async def begin(self) -> None:
        """Raises OutageError: the database may not be used now."""
        await self._watch.open()
        connection = await connect(self._settings.database_dsn)
        try:
            self._identity = await self._watch.admit(connection)
        except OutageError:
            connection.terminate()
            raise
        self._store = Store(connection, self._created, self._watch.known)

    async def take(self, count: int) -> list[Msg]:
        """Return messages that the shared consumer has for anybody, without waiting for more."""
        inbox = self._client.new_inbox()
        subscription = await self._client.subscribe(inbox)
        request = msgspec.json.encode({"batch": count, "no_wait": True})
        await self._client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{names.STREAM}.{names.DURABLE}", request, reply=inbox)
        taken: list[Msg] = []
        while len(taken) < count:
            message = await subscription.next_msg(timeout=30)
            if message.headers and message.headers.get("Status"):
                break
            taken.append(message)
        await subscription.unsubscribe()
        return taken

    async def handle(self, messages: Sequence[Msg], *, dies_before_ack: bool) -> None:
        """Commit and acknowledge.

        Raises:
            OutageError: nothing was acknowledged.
        """
        if self._store is None or self._identity is None or not messages:
            return
        limits = Limits.at(datetime.now(UTC), self._settings.future_s_max, self._settings.retention_days)
        await commit(self._store, [decode(incoming_of(message), limits) for message in messages])
        if dies_before_ack:
            return
        await self._watch.may_acknowledge(self._identity)
        for message in messages:
            await message.ack_sync(timeout=30)

    def end(self) -> None:
        """Its process is gone."""
        if self._store is not None:
            self._store.close()
            self._store = None


class Cloud:
    """Server, database, workers A and B, and the leader."""

    def __init__(self, server: Server, folder: Path, settings: IngestSettings, database: asyncpg.Connection) -> None:
        self.settings = settings
        self.database = database
        self.workers: list[ModelWorker] = []
        self.unacknowledged: list[Msg] = []
        self.skew_s = 0.0
        self._server = server
        self._folder = folder
        self._leader: asyncio.Task[None] | None = None
        self._wanted: asyncio.Queue[tuple[float, asyncio.Future[None]]] = asyncio.Queue()
        self.client = TolerantClient()

    @property
    def js(self) -> JetStreamContext:
        """JetStream, with patience for a busy machine."""
        return self.client.jetstream(timeout=30)

    async def begin(self) -> None:
        """Connect, and make what is not there. Sessions that were are gone."""
        await self.end()
        self.client = TolerantClient()
        await self.client.connect(f"nats://127.0.0.1:{self._server.port}", allow_reconnect=False)
        await self._ensure()

    async def reset(self, pristine: str) -> None:
        """Make everything as it was at first."""
        await self.begin()
        await self.end_sessions()
        for stream in await self.js.streams_info():
            await self.js.delete_stream(stream.config.name or "")
        await self._ensure()
        await self.restore_database(pristine)
        self.unacknowledged, self.skew_s = [], 0.0

    async def _ensure(self) -> None:
        """Make what is not there; the server may still be removing the files of what was."""
        async with asyncio.timeout(60):
            while True:
                try:
                    await bootstrap.ensure(self.client, self.settings)
                except ServerError:
                    await asyncio.sleep(0.02)
                else:
                    return

    async def end(self) -> None:
        """Close everything."""
        await self.end_sessions()
        if self.client.is_connected:
            await self.client.close()

    async def end_sessions(self) -> None:
        """Workers and leader die."""
        for worker in self.workers:
            worker.end()
        self.workers = []
        await self.end_leader()

    async def worker(self, number: int) -> ModelWorker | None:
        """Return worker A or B; None while the database may not be used."""
        created = (await self.js.stream_info(names.STREAM)).created
        assert created is not None
        while len(self.workers) <= number:
            worker = ModelWorker(self.client, self.settings, created)
            try:
                await worker.begin()
            except ENDS:
                worker.end()
                return None
            self.workers.append(worker)
        return self.workers[number]

    async def deliver(self, number: int, count: int, *, dies_before_ack: bool = False) -> int:
        """A worker takes messages and stores them; return how many."""
        worker = await self.worker(number)
        if worker is None:
            return 0
        messages = await worker.take(count)
        try:
            await worker.handle(messages, dies_before_ack=dies_before_ack)
        except ENDS:
            self.unacknowledged += messages
            self._end_worker(worker)
            return 0
        if dies_before_ack:
            self.unacknowledged += messages
            self._end_worker(worker)
        return len(messages)

    def _end_worker(self, worker: ModelWorker) -> None:
        worker.end()
        self.workers.remove(worker)

    async def redeliver(self) -> None:
        """What dead workers had in hand is delivered again."""
        messages, self.unacknowledged = self.unacknowledged, []
        for message in messages:
            await self.client.publish(message.reply, b"-NAK")
        await self.client.flush()

    async def round(self) -> bool:
        """The leader makes a round in which everything is due; return whether there was one."""
        if self._leader is None:
            self._leader = asyncio.create_task(self._lead(self._wanted))
        self.skew_s += 100
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wanted.put_nowait((time.monotonic() + self.skew_s, done))
        await asyncio.wait([done, self._leader], return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            return True
        await self.end_leader()
        return False

    async def _lead(self, wanted: "asyncio.Queue[tuple[float, asyncio.Future[None]]]") -> None:
        connection = await connect(self.settings.database_dsn)
        try:
            async with leading(self.settings, connection, self.client) as rounds:
                while True:
                    now_s, done = await wanted.get()
                    await rounds.next(now_s)
                    done.set_result(None)
        finally:
            connection.terminate()

    async def end_leader(self) -> None:
        """The leader's process is gone."""
        leader, self._leader, self._wanted = self._leader, None, asyncio.Queue()
        if leader is not None:
            leader.cancel()
            with contextlib.suppress(asyncio.CancelledError, *ENDS):
                await leader

    async def wait_for_grace(self) -> None:
        """`ack_wait` passes since the reading again began."""
        await self.database.execute("UPDATE delivery SET reread_begun = reread_begun - INTERVAL '1 day'")

    async def is_drained(self) -> bool:
        """Whether all that is in the stream is acknowledged, and nothing is being read again."""
        state = (await self.js.stream_info(names.STREAM)).state
        info = await self.js.consumer_info(names.STREAM, names.DURABLE)
        given = info.delivered.stream_seq if info.delivered is not None else 0
        if info.num_pending or info.num_ack_pending or (state.messages and given < state.last_seq):
            return False
        return not await self.database.fetchval(
            "SELECT count(*) FROM delivery WHERE reread_from IS NOT NULL AND reread_ended IS NULL"
        )

    async def batches_in_stream(self) -> set[Key]:
        """Return the identities of the messages that the stream has."""
        state = (await self.js.stream_info(names.STREAM)).state
        found = set()
        for seq in range(max(1, state.first_seq), state.last_seq + 1):
            with contextlib.suppress(NotFoundError):
                message = await self.js.get_msg(names.STREAM, seq, direct=True)
                if known := identity_of(message.headers):
                    found.add((known.epoch, known.seq, known.sha256))
        return found

    async def make_stream_again(self) -> None:
        """The stream is deleted with all it holds, and made again."""
        await self.end_sessions()
        self.unacknowledged = []
        await self.js.delete_stream(names.STREAM)
        await self._ensure()

    async def snapshot_database(self) -> str:
        """Copy every table as of one moment; return the copy's name."""
        name = f"snapshot_{next(_snapshots)}"
        async with self.database.transaction(isolation="repeatable_read"):
            await self.database.execute(f"CREATE SCHEMA {name}")
            for table in await self._filled():
                await self.database.execute(f"CREATE UNLOGGED TABLE {name}.{table} AS TABLE public.{table}")
        return name

    async def is_older(self, name: str) -> bool:
        """Whether a copy was made before the leader last wrote down that the database is further."""
        older: bool = await self.database.fetchval(
            f"SELECT copy.counter < now.counter FROM public.delivery now, {name}.delivery copy"
        )
        return older

    async def restore_database(self, name: str, *, ends_sessions: bool = True) -> None:
        """Put a copy in the place of the tables. ends_sessions: of ingest, and with them what they had sent."""
        if ends_sessions:
            await self.end_sessions()
            others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            while await self.database.fetchval(f"SELECT count(pg_terminate_backend(pid)) {others}"):
                await asyncio.sleep(0.005)
        async with asyncio.timeout(60):
            while True:
                try:
                    await self._put_back(name)
                except asyncpg.DeadlockDetectedError:
                    # With a session of ingest that goes on.
                    continue
                return

    async def _put_back(self, name: str) -> None:
        copied = await self.database.fetch(
            "SELECT relname, string_agg(quote_ident(a.attname), ', ') AS columns FROM pg_class c "
            "JOIN pg_attribute a ON a.attrelid = c.oid AND attnum > 0 "
            "JOIN pg_attribute ours ON ours.attrelid = ('public.' || relname)::regclass AND ours.attname = a.attname "
            "WHERE relnamespace = $1::text::regnamespace AND relkind = 'r' AND ours.attgenerated = '' GROUP BY 1",
            name,
        )
        async with self.database.transaction():
            await self.database.execute("SET LOCAL session_replication_role = replica")
            # All of them, before it is looked which are empty: a session that goes on may fill one meanwhile.
            await self.database.execute(f"LOCK TABLE {', '.join(f'public.{table}' for table in await self._tables())}")
            # Not TRUNCATE, which makes new files for every table and index.
            for table in await self._filled():
                await self.database.execute(f"DELETE FROM public.{table}")
            for table, columns in copied:
                await self.database.execute(
                    f"INSERT INTO public.{table} ({columns}) OVERRIDING SYSTEM VALUE "
                    f"SELECT {columns} FROM {name}.{table}"
                )

    async def drop_snapshot(self, name: str) -> None:
        """Forget a copy."""
        await self.database.execute(f"DROP SCHEMA {name} CASCADE")

    async def _filled(self) -> list[str]:
        """Return the tables that hold anything."""
        parts = [
            f"SELECT '{table}' AS name WHERE EXISTS (SELECT FROM public.{table})" for table in await self._tables()
        ]
        return [row["name"] for row in await self.database.fetch(" UNION ALL ".join(parts))]

    async def _tables(self) -> list[str]:
        """Return all tables but the one of migrations."""
        rows = await self.database.fetch(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') "
            "AND NOT relispartition AND relname <> 'schema_migrations' ORDER BY 1"
        )
        return [row["relname"] for row in rows]

    async def snapshot_stream(self) -> Path:
        """Copy the server's disk."""
        copy = self._folder / f"nats-{next(_snapshots)}"
        await self._with_server_stopped(lambda: shutil.copytree(self._store, copy))
        return copy

    async def restore_stream(self, copy: Path) -> None:
        """Put the copy in the place of the server's disk: streams, consumers and buckets as they were then."""

        def put_back() -> None:
            shutil.rmtree(self._store)
            shutil.copytree(copy, self._store)

        await self._with_server_stopped(put_back)

    @property
    def _store(self) -> Path:
        return self._folder / "nats"

    async def _with_server_stopped(self, work: Callable[[], object]) -> None:
        await self.end()
        self._server.stop()
        work()
        self._server.start()
        await self.begin()
