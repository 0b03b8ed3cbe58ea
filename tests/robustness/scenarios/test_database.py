"""The database is away, ingest is killed: the stream holds each batch once, and the edges keep quiet."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import asyncpg
import pytest
from nats.aio.client import Client

from cncmon_core import names
from cncmon_ingest.migrate import migrate
from robustness.scenarios.plant import MakePlant, Plant
from robustness.scenarios.size import SIZE
from testkit.servers import Postgres


@pytest.fixture
async def migrated(own_postgres: Postgres) -> AsyncIterator[Postgres]:
    connection = await asyncpg.connect(own_postgres.dsn)
    await migrate(connection)
    await connection.close()
    yield own_postgres
    own_postgres.resume()


async def identities(client: Client) -> Counter[str]:
    """Return how often the stream holds each batch."""
    js = client.jetstream()
    last = (await js.stream_info(names.STREAM)).state.last_seq
    subscription = await js.subscribe(names.SUBJECT_ALL, ordered_consumer=True)
    found: Counter[str] = Counter()
    while True:
        message = await subscription.next_msg(5)
        found[(message.headers or {}).get("Nats-Msg-Id", "")] += 1
        if message.metadata.sequence.stream >= last:
            await subscription.unsubscribe()
            return found


async def test_database_frozen(plant_with: MakePlant, migrated: Postgres) -> None:
    """FAULT 38: the database is there and answers nothing. No batch is sent twice for that."""
    plant = plant_with(migrated.dsn)
    async with plant.running():
        for _ in range(SIZE.freezes):
            await plant.flow()
            plant.note_fault("database frozen")
            migrated.pause()
            # Longer than the duplicate window and the agents' margin on top of it.
            await asyncio.sleep(SIZE.fault_s + 8)
            async with plant.client() as client:
                twice = {name: times for name, times in (await identities(client)).items() if times > 1}
            migrated.resume()
            await plant.recovered()
            assert not twice, "sent again though the stream has it"
    await plant.holds()


async def test_database_killed(plant_with: MakePlant, migrated: Postgres) -> None:
    """FAULT 16: kill -9 of the database, which comes back as its log says."""
    plant = plant_with(migrated.dsn)
    async with plant.running():
        for _ in range(SIZE.rounds):
            await plant.flow()
            plant.note_fault("PostgreSQL kill -9")
            migrated.kill()
            await asyncio.sleep(SIZE.fault_s)
            await asyncio.to_thread(migrated.start)
            await plant.recovered()
    await plant.holds()


async def test_ingest_killed(plant: Plant) -> None:
    """FAULTS 14, 33: kill -9 of the only worker, at any moment of its transactions."""
    async with plant.running(ingest={"ack_wait_ms": 1000, "max_deliver": 1000}):
        for _ in range(SIZE.kills):
            await plant.flow(plant.dice.uniform(0, 0.5))
            plant.note_fault("ingest kill -9")
            plant.ingest.kill()
            plant.ingest.start()
            await asyncio.sleep(plant.dice.uniform(0.5, 2))
        await plant.recovered()
    await plant.holds()


async def test_stream_full(plant: Plant) -> None:
    """FAULTS 12, 37: nothing is committed and the stream is full; once something is committed, that is purged."""
    async with plant.running(agent={"linger_ms": 5}, ingest={"stream_bytes_max": 1 << 20, "stream_messages_max": 1000}):
        for _ in range(SIZE.freezes):
            await plant.flow()
            plant.ingest.kill()
            plant.note_fault("stream full")
            async with plant.client() as client, asyncio.timeout(120):
                while not await full(client):
                    await asyncio.sleep(0.05)
                await asyncio.sleep(SIZE.fault_s)
                assert await full(client), "what is full refuses, and drops nothing"
            plant.ingest.start()
            await plant.recovered()
    await plant.holds()


async def full(client: Client) -> bool:
    info = await client.jetstream().stream_info(names.STREAM)
    return info.state.messages >= 1000 or info.state.bytes > 0.95 * (1 << 20)
