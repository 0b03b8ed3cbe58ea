"""NATS dies, forgets, is emptied, fills up."""

import asyncio

from nats.js.errors import NoKeysError
from nats.js.kv import KeyValue

from cncmon_core import names
from robustness.faults import nats_store
from robustness.scenarios.plant import Plant
from robustness.scenarios.size import SIZE
from testkit.waiting import WAIT_S_MAX


async def test_nats_killed(plant: Plant) -> None:
    """FAULT 11: kill -9, again and again."""
    async with plant.running():
        for _ in range(SIZE.rounds):
            await plant.flow()
            plant.note_fault("NATS kill -9")
            plant.nats.kill()
            await asyncio.sleep(SIZE.fault_s)
            await asyncio.to_thread(plant.nats.start)
            await plant.recovered()
    await plant.holds()


async def test_nats_loses_the_end_of_its_storage(plant: Plant) -> None:
    """FAULT 11: kill -9, and what it stored in the last minutes is gone, acknowledged or not."""
    copy = plant.folder / "copy"
    async with plant.running():
        for _ in range(SIZE.rounds):
            await plant.flow()
            await asyncio.to_thread(nats_store.copy_store, plant.nats, plant.nats_folder, copy)
            await asyncio.sleep(SIZE.fault_s)
            plant.note_fault("NATS kill -9 and its last storage removed")
            await asyncio.to_thread(nats_store.lose_since, plant.nats, plant.nats_folder, copy)
            await asyncio.to_thread(plant.nats.start)
            await plant.recovered()
    await plant.holds()


async def test_nats_loses_storage_that_nobody_had_committed(plant: Plant) -> None:
    """The same while ingest is away: what is lost there is nowhere but on the edges."""
    copy = plant.folder / "copy"
    async with plant.running():
        for _ in range(SIZE.freezes):
            await plant.flow()
            plant.ingest.kill()
            await asyncio.to_thread(nats_store.copy_store, plant.nats, plant.nats_folder, copy)
            await asyncio.sleep(SIZE.fault_s)
            plant.note_fault("uncommitted NATS storage removed")
            await asyncio.to_thread(nats_store.lose_since, plant.nats, plant.nats_folder, copy)
            await asyncio.to_thread(plant.nats.start)
            plant.ingest.start()
            await plant.recovered()
    await plant.holds()


async def test_stream_deleted(plant: Plant) -> None:
    """FAULT 13: the stream is deleted while ingest is away, and made anew by the bootstrap."""
    async with plant.running():
        for _ in range(SIZE.freezes):
            await plant.flow()
            plant.ingest.kill()
            await asyncio.sleep(SIZE.fault_s)
            plant.note_fault("stream deleted")
            async with plant.client() as client:
                await client.jetstream().delete_stream(names.STREAM)
            await asyncio.sleep(SIZE.fault_s)
            await plant.bootstrap()
            plant.ingest.start()
            await plant.recovered()
    await plant.holds()


async def test_stream_deleted_under_a_running_ingest(plant: Plant) -> None:
    """FAULT 13: nobody stops anything, the stream is deleted and somebody runs the bootstrap."""
    async with plant.running():
        for _ in range(SIZE.rounds):
            await plant.flow()
            plant.note_fault("stream deleted under ingest")
            async with plant.client() as client:
                await client.jetstream().delete_stream(names.STREAM)
            await asyncio.sleep(SIZE.fault_s)
            await plant.bootstrap()
            await plant.recovered()
    await plant.holds()


async def test_buckets_deleted(plant: Plant) -> None:
    """FAULT 29: every KV bucket is deleted; edges go on, and everything is as before within 30 s."""
    async with plant.running():
        for _ in range(SIZE.freezes):
            await plant.flow()
            plant.note_fault("KV buckets deleted")
            async with plant.client() as client:
                js = client.jetstream()
                for stream in await js.streams_info():
                    if (stream.config.name or "").startswith("KV_"):
                        await js.delete_stream(stream.config.name or "")
            await asyncio.sleep(SIZE.fault_s)
            await plant.bootstrap()
            await plant.recovered()
            async with asyncio.timeout(WAIT_S_MAX):
                async with plant.client() as client:
                    bucket = await client.jetstream().key_value(names.KV_WATERMARK)
                    while len(await _keys(bucket)) < len(plant.agents):
                        await asyncio.sleep(0.1)
    await plant.holds()


async def _keys(bucket: KeyValue) -> list[str]:
    try:
        return list(await bucket.keys())
    except NoKeysError:
        return []
