"""Ingest workers in the test's own event loop, and what they are fed with."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
from nats.aio.client import Client
from nats.js.errors import NotFoundError

from cncmon_core import frames, identity, names, nats_link
from cncmon_core.identity import Identity
from cncmon_ingest import bootstrap, dirty, dlq
from cncmon_ingest.leader import Leader
from cncmon_ingest.rollups import Rollups
from cncmon_ingest.settings import IngestSettings
from cncmon_ingest.worker import Worker
from testkit.waiting import WAIT_S_MAX
from testkit.waiting import until as until

EPOCH = 4242


def settings_for(dsn: str, **changes: Any) -> IngestSettings:
    """Settings with short intervals, so that a test need not wait."""
    settings: dict[str, Any] = {"database_dsn": dsn, "leader_interval_ms": 50, "sweep_interval_ms": 200}
    return IngestSettings(**(settings | changes))


async def replay_all(connection: asyncpg.Connection, settings: IngestSettings) -> list[dlq.Replayed]:
    """Store again every dead letter that can be stored now; return what became of each."""
    ids = await dlq.chosen(connection, dlq.Which())
    return [one async for one in dlq.replay(connection, ids, settings)]


async def compute_rollups(connection: asyncpg.Connection, since: datetime, until: datetime) -> None:
    """Compute rollups and states of all samples of a time, as a maintainer would by and by."""
    await dirty.mark_hours(connection, since, until)
    rollups = Rollups(timedelta(seconds=15))
    left = True
    while left:
        left = bool((await rollups.catch_up(connection)).left)


@contextlib.asynccontextmanager
async def running_ingest(
    nats_url: str, settings: IngestSettings, *, workers: int = 1, leader: bool = True
) -> AsyncIterator[list[Worker]]:
    """Run workers, and a leader beside the first, until the block ends."""
    stop = asyncio.Event()
    made: list[Worker] = []
    tasks: list[asyncio.Task[None]] = []
    link_settings = nats_link.NatsSettings(servers=tuple(nats_url.split(",")), retry_delay_ms_max=500)
    for number in range(workers):
        worker = Worker(settings, stop)
        made.append(worker)

        async def session(client: Client, worker: Worker = worker, lead: bool = leader and number == 0) -> None:
            async with asyncio.TaskGroup() as group:
                leading = group.create_task(Leader(settings).session(client)) if lead else None
                await worker.session(client)
                if leading:
                    leading.cancel()

        tasks.append(asyncio.create_task(nats_link.NatsLink(link_settings, f"ingest-{number}").run(session)))
    try:
        yield made
    finally:
        stop.set()
        await asyncio.wait(tasks, timeout=8)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


async def prepare(client: Client, settings: IngestSettings) -> None:
    """Make stream, consumer and buckets."""
    await bootstrap.ensure(client, settings)


def sample(number: int = 0, **changes: Any) -> dict[str, Any]:
    """A plausible sample as the original system sends it: all twelve fields."""
    moment = datetime.now(UTC) - timedelta(seconds=60) + timedelta(milliseconds=10 * number)
    return {
        "machine_id": "cnc-001",
        "temperature": 25.5 + number,
        "spindle_speed": 2500.0,
        "timestamp": moment.isoformat().replace("+00:00", "Z"),
        "x_pos_mm": 100.25,
        "y_pos_mm": 99.5,
        "z_pos_mm": 10.125,
        "feed_rate_actual": 1200.0,
        "spindle_load_percent": 55.5,
        "machine_state": "running",
        "active_program_line": number,
        "total_power_kw": 7.25,
    } | changes


def frame(number: int = 0, **changes: Any) -> bytes:
    """A frame's JSON, without its length."""
    return json.dumps(sample(number, **changes)).encode()


async def publish_plain(client: Client, payload: bytes, subject: str = "CNC_DATA.original") -> int:
    """Publish as the original system does, without headers; return the stream sequence."""
    return (await client.jetstream().publish(subject, payload, timeout=WAIT_S_MAX)).seq


async def publish_batch(
    client: Client,
    seq: int,
    parts: Sequence[bytes],
    *,
    epoch: int = EPOCH,
    site: str = "hall",
    edge: str = "e1",
    compress: bool = True,
    kind: identity.Kind = "samples",
    message_id: str | None = None,
    base: int = 0,
    sha256: str | None = None,
    timeout_s: float = WAIT_S_MAX,
) -> int:
    """Publish a batch as an agent does; return the stream sequence. A `message_id` evades the duplicate window."""
    payload = frames.join(parts)
    batch = Identity(epoch, seq, len(parts), base, sha256 or identity.digest(payload), kind)
    headers = batch.to_headers(site, edge, frames.ENCODING_ZSTD if compress else None)
    if message_id is not None:
        headers[identity.MSG_ID] = message_id
    subject = identity.subject_of(kind, site, edge)
    data = frames.compress(payload) if compress else payload
    return (await client.jetstream().publish(subject, data, timeout=timeout_s, headers=headers)).seq


async def drained(client: Client) -> bool:
    """Whether every message of the stream is acknowledged.

    Right after a PubAck the consumer may not have counted the message yet: so what it was given is compared as well.
    """
    js = client.jetstream()
    try:
        state = (await js.stream_info(names.STREAM)).state
        info = await js.consumer_info(names.STREAM, names.DURABLE)
    except NotFoundError:
        return False
    given = info.delivered.stream_seq if info.delivered is not None else 0
    return not info.num_pending and not info.num_ack_pending and (not state.messages or given >= state.last_seq)
