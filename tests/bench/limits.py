"""What the servers can take at all: COPY of rows packed beforehand, and fetch and ack of what is in a stream."""

import asyncio
import time

import asyncpg
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig

from cncmon_core import names
from cncmon_ingest import rows

COPY_ROWS = (1000, 5000, 20_000, 50_000)
COPY_S = 1.5


async def copy_rate(dsn: str, packed: list[bytes], connections: int) -> float:
    """Return rows a second of bare binary COPY into the table of samples: the best of several rows a COPY.

    Leaves the table empty.
    """
    best = 0.0
    opened = [await asyncpg.connect(dsn) for _ in range(connections)]
    for size in COPY_ROWS:
        best = max(best, await _copy(opened, packed, size))
        await opened[0].execute("TRUNCATE sensor_data")
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
