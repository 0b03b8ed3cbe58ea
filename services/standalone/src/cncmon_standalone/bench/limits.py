"""What the parts can take at all: COPY of rows packed beforehand; fetch and ack; decoding in one process."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime

import asyncpg
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig

from cncmon_core import names
from cncmon_ingest import rows
from cncmon_ingest.decode import Incoming, Limits, decode
from cncmon_standalone.bench.traffic import SITE, Message, headers_of

COPY_ROWS = (1000, 5000, 20_000, 50_000)
COPY_S = 1.5


async def copy_rate(dsn: str, packed: list[bytes], connections: int, done: Callable[[], None] = lambda: None) -> float:
    """Return rows a second of bare binary COPY into the table of samples: the best of `COPY_ROWS` rows a COPY.

    Leaves the table empty. done: called after each number of rows.
    """
    best = 0.0
    opened = [await asyncpg.connect(dsn) for _ in range(connections)]
    for size in COPY_ROWS:
        best = max(best, await _copy(opened, packed, size))
        await opened[0].execute("TRUNCATE sensor_data")
        done()
    for connection in opened:
        await connection.close()
    return best


async def _copy(opened: list[asyncpg.Connection], packed: list[bytes], size: int) -> float:
    began_s = time.monotonic()

    async def one(connection: asyncpg.Connection, first: int) -> int:
        copied, at = 0, first
        while time.monotonic() - began_s < COPY_S:
            at = (at + size) % (len(packed) - size + 1)
            some = packed[at : at + size]
            await connection.copy_to_table(rows.TABLE, source=rows.pieces(some), columns=rows.COLUMNS, format="binary")
            copied += size
        return copied

    total = sum(await asyncio.gather(*(one(connection, 7919 * number) for number, connection in enumerate(opened))))
    return total / (time.monotonic() - began_s)


async def fetch_rate(client: Client, count: int) -> float:
    """Return messages a second of fetch and ack by nats-py, nothing else done with them."""
    js = client.jetstream()
    name = "LIMIT"
    config = ConsumerConfig(durable_name=name, ack_policy=AckPolicy.EXPLICIT, max_ack_pending=10_000)
    await js.add_consumer(names.STREAM, config)
    consumer = await js.pull_subscribe("", durable=name, stream=names.STREAM)
    began_s, taken = time.monotonic(), 0
    while taken < count:
        found = await consumer.fetch(min(500, count - taken), timeout=5)
        for message in found:
            await message.ack()
        taken += len(found)
    await client.flush()
    took_s = time.monotonic() - began_s
    await js.delete_consumer(names.STREAM, name)
    return taken / took_s


def decode_rate(messages: list[Message], seconds: float = 2.0) -> float:
    """Return samples a second that one process decompresses, checks and packs as rows, and does nothing else with."""
    now, subject = datetime.now(UTC), names.samples_subject(SITE, "e1")
    incoming = [
        Incoming(subject, headers_of(message, 1, number), message.data, number, now)
        for number, message in enumerate(messages, 1)
    ]
    limits = Limits.at(now, 300, 0)
    began_s, decoded = time.monotonic(), 0
    while time.monotonic() - began_s < seconds:
        for one in incoming:
            decoded += len(decode(one, limits).packed)
    return decoded / (time.monotonic() - began_s)
