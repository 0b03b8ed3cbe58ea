"""Checks of a running system: its parts, NATS, the database, what waits and what could not be stored."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import nats.errors
import nats.js.errors
from nats.js.api import StreamInfo

from cncmon_core import names
from cncmon_ingest import compression, migrate, rollups
from cncmon_standalone import adopting, backlog
from cncmon_standalone.doctor.check import Group
from cncmon_standalone.embedded.database import ERRORS as DATABASE_ERRORS
from cncmon_standalone.state import ProcessState, RunState
from cncmon_standalone.supervise.probes import http_get, missing

BACKLOG_WARN = 1000
STREAM_PART_WARN = 0.7
RESTARTS_WARN = 3


async def running(state: RunState) -> list[Group]:
    """Check everything that a running system can be asked for."""
    return list(await asyncio.gather(_parts(state), _nats(state), _database(state)))


async def _parts(state: RunState) -> Group:
    group = Group("parts")
    group.ok(f"cncmon {state.command} runs", f"pid {state.pid}, {state.data}")
    for process in state.processes:
        name = f"{process.name} is ready"
        if process.state == "done":
            group.ok(f"{process.name} is done")
        elif process.state != "running":
            group.fail(name, process.state, f"read its log: {process.log}")
        elif (said := await _not_ready(process)) is not None:
            group.fail(name, said, f"read its log: {process.log}")
        elif process.restarts >= RESTARTS_WARN:
            group.warn(name, f"restarted {process.restarts} times", f"its log may say why: {process.log}")
        else:
            group.ok(name, f"pid {process.pid}")
    return group


async def _not_ready(process: ProcessState) -> str | None:
    if process.monitor_port is None:
        return None
    try:
        status, body = await http_get(process.monitor_port, "/readyz")
    except (OSError, TimeoutError, ValueError):
        return f"does not answer on port {process.monitor_port}"
    return None if status == 200 else missing(body)


async def _nats(state: RunState) -> Group:
    group = Group("NATS")
    try:
        client = await backlog.connect(state.nats_url)
    except (OSError, TimeoutError, nats.errors.Error) as error:
        group.fail("NATS answers", f"{state.nats_url}: {error}", f"read its log: {state.folder.logs / 'nats.log'}")
        return group
    js = client.jetstream(timeout=2)
    try:
        account = await js.account_info()
        group.ok("NATS answers, with JetStream", f"{state.nats_url}, {account.storage / 1e6:.1f} MB stored")
        _stream(group, await js.stream_info(names.STREAM))
        info = await js.consumer_info(names.STREAM, names.DURABLE)
        group.ok(f"consumer {names.DURABLE} exists", f"{info.num_waiting or 0} requests waiting")
        waiting = (info.num_pending or 0) + (info.num_ack_pending or 0)
        if waiting > BACKLOG_WARN:
            group.warn(
                "nothing piles up", f"{waiting:,} messages wait to be stored", "is ingest ready? try --workers 2"
            )
        else:
            group.ok("nothing piles up", f"{waiting:,} messages wait to be stored")
    except nats.js.errors.NotFoundError as error:
        group.fail("streams and consumer exist", str(error), "start cncmon again: its bootstrap makes them")
    except (OSError, TimeoutError, nats.errors.Error, nats.js.errors.Error) as error:
        group.fail("JetStream answers", str(error) or type(error).__name__, "is the disk full? see nats.log")
    finally:
        await client.close()
    return group


def _stream(group: Group, info: StreamInfo) -> None:
    held = f"{info.state.messages:,} messages, {info.state.bytes / 1e6:.1f} MB"
    most = info.config.max_bytes or 0
    if most > 0 and info.state.bytes > STREAM_PART_WARN * most:
        group.warn(
            f"stream {names.STREAM} has room", f"{held} of {most / 1e6:.0f} MB", "is ingest storing? see ingest.log"
        )
    else:
        group.ok(f"stream {names.STREAM} exists", held)


async def _database(state: RunState) -> Group:
    group = Group("database")
    log = state.folder.logs / "postgres.log"
    try:
        async with _connected(state.database_dsn) as connection:
            version = await connection.fetchval("SHOW server_version")
            group.ok("PostgreSQL answers", f"version {version}")
            await _schema(group, connection)
    except DATABASE_ERRORS as error:
        group.fail("PostgreSQL answers", str(error) or type(error).__name__, f"read its log: {log}")
    return group


@asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn, timeout=3, command_timeout=10)
    try:
        yield connection
    finally:
        await connection.close(timeout=2)


async def _schema(group: Group, connection: asyncpg.Connection) -> None:
    found = await migrate.schema(connection)
    if found.oldest > migrate.LATEST:
        group.fail("the tables are up to date", f"migration {found.number}", "use the newer version that made them")
        return
    if found.number < migrate.LATEST:
        group.fail(
            "the tables are up to date", f"{found.number} of {migrate.LATEST}", "start cncmon again: it migrates"
        )
        return
    group.ok("the tables are up to date", f"migration {found.number}")
    refused, adopted = await adopting.state(connection)
    if refused and not adopted:
        group.fail("it is the stream's database", refused, adopting.ADVICE)
    else:
        group.ok("it is the stream's database", "adopted" if adopted else "")
    extension = await connection.fetchval("SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'")
    if extension:
        group.ok("TimescaleDB is there", extension)
    else:
        group.ok("plain PostgreSQL, without TimescaleDB", "all features; samples are partitions of a day")
    group.ok("old samples", await compression.unavailable(connection) or "are compressed by TimescaleDB")
    waiting = await rollups.waiting(connection)
    if waiting.aside:
        group.warn("rollups are up to date", f"{waiting.aside:,} ranges can't be computed", "see: cncmon db check")
    else:
        group.ok("rollups are up to date", f"{waiting.marks:,} ranges wait to be computed")
    dead = await connection.fetchval("SELECT count(*) FROM dead_letters WHERE state = 'dead'")
    if dead:
        group.warn("everything could be stored", f"{dead:,} dead letters", "look at them: cncmon dlq ls")
    else:
        group.ok("everything could be stored", "no dead letters")
    gaps = await connection.fetchval("SELECT coalesce(sum(samples), 0) FROM gaps")
    if gaps:
        group.warn("nothing was dropped", f"{gaps:,} samples in declared gaps", "the edge's buffer was too small")
    else:
        group.ok("nothing was dropped", "no gaps")
