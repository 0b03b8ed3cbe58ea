"""The database is away, ingest is killed: the stream holds each batch once, and the edges keep quiet."""

import asyncio
from collections.abc import Awaitable, Callable

import psutil
from nats.aio.client import Client

from cncmon_core import names
from robustness.scenarios.plant import MakePlant, Plant
from robustness.scenarios.size import LONG, SIZE
from testkit.servers import Postgres
from testkit.waiting import WAIT_S_MAX, until


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
            twice = {name: times for name, times in (await plant.held()).items() if times > 1}
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


ACK_WAIT_S = 1
ACK_WAITS = 20 if LONG else 8
"""How many of them the database is down: as many as 10 min are in production, in the long round."""
RSS_GROWTH_MB_MAX = 25
"""What a worker may take more while the database is away or slow: what it has fetched once, not what waits."""


async def test_database_down(plant_with: MakePlant, migrated: Postgres) -> None:
    """FAULT 17: many times `ack_wait`. Nothing is given twice, nothing buried."""
    plant = plant_with(migrated.dsn)
    async with plant.running(ingest={"ack_wait_ms": 1000 * ACK_WAIT_S, "max_deliver": 2}):
        await plant.flow()
        before_mb = rss_mb(plant)
        plant.note_fault(f"database down for {ACK_WAITS} × ack_wait")
        migrated.kill()
        await asyncio.sleep(ACK_WAITS * ACK_WAIT_S)
        grown_mb = rss_mb(plant) - before_mb
        async with plant.client() as client:
            info = await client.jetstream().consumer_info(names.STREAM, names.DURABLE)
        await asyncio.to_thread(migrated.start)
        await plant.recovered()
        assert info.num_redelivered == 0, "what a worker holds is given to nobody else"
        assert grown_mb < RSS_GROWTH_MB_MAX
        plant.notes["worker grown by"] = f"{grown_mb:.1f} MB"
    await plant.holds()


async def waiting_messages(client: Client) -> int:
    info = await client.jetstream().consumer_info(names.STREAM, names.DURABLE)
    return (info.num_pending or 0) + (info.num_ack_pending or 0)


def rss_mb(plant: Plant) -> float:
    return float(psutil.Process(plant.ingest.pid).memory_info().rss) / 1e6


SLOW_TURNS = 10 * SIZE.rounds
SLOW_MESSAGES = 25
"""What comes into the stream between two turns of a slow database."""


async def test_database_slow(plant_with: MakePlant, migrated: Postgres) -> None:
    """FAULT 21: the database does a little, then stands still until more has come in than that.

    What it does not manage waits in the stream.
    """
    plant = plant_with(migrated.dsn)
    async with plant.running(agent={"linger_ms": 20}), plant.client() as client:
        await plant.flow()
        before_mb, calm = rss_mb(plant), await waiting_messages(client)
        plant.note_fault("database slowed down")
        for _ in range(SLOW_TURNS):
            migrated.pause()
            await until(more_published(client, await last_seq(client) + SLOW_MESSAGES))
            waiting = await waiting_messages(client)
            migrated.resume()
            await asyncio.sleep(0.01)
        grown_mb = rss_mb(plant) - before_mb
        await plant.recovered()
        assert waiting > calm, "more came in than was committed"
        assert grown_mb < RSS_GROWTH_MB_MAX
        plant.notes["messages waiting"] = str(waiting)
        plant.notes["worker grown by"] = f"{grown_mb:.1f} MB"
    await plant.holds()


async def last_seq(client: Client) -> int:
    return (await client.jetstream().stream_info(names.STREAM)).state.last_seq


def more_published(client: Client, seq: int) -> Callable[[], Awaitable[bool]]:
    """Whether the stream has got up to a sequence."""

    async def holds() -> bool:
        return await last_seq(client) >= seq

    return holds


async def test_the_same_messages_on_two_workers(plant: Plant) -> None:
    """FAULT 15: a worker stands still, the other gets its messages; then it goes on as if nothing had been."""
    async with plant.running(ingest={"ack_wait_ms": 1000 * ACK_WAIT_S, "max_deliver": 1000}, workers=2):
        for number in range(2 * SIZE.rounds):
            await plant.flow(plant.dice.uniform(0, 0.5))
            plant.note_fault("messages of one worker given to another")
            worker = plant.workers[number % 2]
            worker.pause()
            await asyncio.sleep(ACK_WAIT_S + plant.dice.uniform(0.2, 1))
            worker.resume()
            await plant.recovered()
        async with plant.client() as client:
            info = await client.jetstream().consumer_info(names.STREAM, names.DURABLE)
        plant.notes["consumer sequences above the stream's"] = str(
            (info.delivered.consumer_seq if info.delivered else 0)
            - (info.delivered.stream_seq if info.delivered else 0)
        )
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
            async with plant.client() as client, asyncio.timeout(WAIT_S_MAX):
                while not await full(client):
                    await asyncio.sleep(0.05)
                first_seq = await first_of(client)
                await asyncio.sleep(SIZE.fault_s)
                assert await full(client)
                assert await first_of(client) == first_seq, "what is full refuses, and drops nothing uncommitted"
            plant.ingest.start()
            await plant.recovered()
    await plant.holds()


async def first_of(client: Client) -> int:
    return (await client.jetstream().stream_info(names.STREAM)).state.first_seq


async def full(client: Client) -> bool:
    info = await client.jetstream().stream_info(names.STREAM)
    return info.state.messages >= 1000 or info.state.bytes > 0.95 * (1 << 20)
