"""Sequences that once lost, doubled, blocked or flooded something at the edge, or would have; on real servers."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import msgspec
from nats.aio.client import Client

from cncmon_agent.agent import Agent
from cncmon_agent.batch import make
from cncmon_agent.buffer.spool import Spool
from cncmon_agent.buffer.store import SpoolSettings
from cncmon_agent.cold_disk import ColdDisk
from cncmon_agent.epochs import FILE, Epoch, EpochsFile
from cncmon_core import names
from testkit import agent as agents
from testkit import ingest
from testkit.ingest import frame, running_ingest, until

Check = Callable[[], Awaitable[bool]]

EPOCHS = 150
"""More starts than one document tells of."""


def leave_epochs(folder: Path, number: int, batches: int = 1, *, listed: bool = True) -> list[Epoch]:
    """Leave what so many starts without a network leave: a log each, and the epochs file."""
    epochs = []
    for epoch in range(1, number + 1):
        spool = Spool(folder / "spool", SpoolSettings(reserve_bytes=0))
        log = spool.begin(epoch)
        for seq in range(1, batches + 1):
            assert log.append(make(epoch, seq, seq - 1, "samples", [frame(10 * epoch + seq)], 1, 0))
        work = spool.sync_work()
        assert work is not None
        work.run()
        spool.synced(work)
        spool.close()
        epochs.append(Epoch(epoch, last_seq=batches, last_samples=batches))
    if listed:
        (folder / FILE).write_bytes(msgspec.json.encode(EpochsFile(epochs[-1], epochs[:-1])))
    return epochs


async def test_more_starts_than_a_document_tells_of_are_all_delivered_and_forgotten(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path
) -> None:
    ours = ingest.settings_for(postgres_dsn)
    await ingest.prepare(nats_client, ours)
    settings = agents.settings_for(tmp_path)
    leave_epochs(Path(settings.data_dir), EPOCHS)
    async with agents.running_agent(nats_url, settings) as agent:
        # The stream has it all before the database sees anything: every watermark moves in one round then.
        await until(_all_taken(agent))
        async with running_ingest(nats_url, ours, workers=2):
            await until(_all_forgotten(agent))
    assert await database.fetchval("SELECT count(*) FROM sensor_data") == EPOCHS


async def test_an_edge_that_was_renamed_forgets_what_its_old_name_had_delivered(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path
) -> None:
    """All delivered under the old name, a power cut before the epochs file says so, then a start under a new name."""
    ours = ingest.settings_for(postgres_dsn)
    await ingest.prepare(nats_client, ours)
    settings = agents.settings_for(tmp_path)
    folder = Path(settings.data_dir)
    leave_epochs(folder, 1, 3)
    stale = (folder / FILE).read_bytes()
    async with running_ingest(nats_url, ours, workers=2):
        async with agents.running_agent(nats_url, settings) as agent:
            await until(_all_forgotten(agent))
        (folder / FILE).write_bytes(stale)
        shutil.rmtree(folder / "spool")
        renamed = agents.settings_for(tmp_path, edge="renamed")
        async with agents.running_agent(nats_url, renamed) as agent:
            await until(_all_forgotten(agent))
    assert await database.fetchval("SELECT count(*) FROM gaps") == 0


async def test_a_document_of_the_stream_before_floods_no_new_one(
    nats_client: Client, nats_url: str, tmp_path: Path, postgres_dsn: str
) -> None:
    """The stream is deleted and made anew; ingest is away, and the bucket still has what it said of the old one."""
    ours = ingest.settings_for(postgres_dsn)
    await ingest.prepare(nats_client, ours)
    js = nats_client.jetstream()
    bucket = await js.key_value(names.KV_WATERMARK)
    old = {"generation": 1, "stream_created": "2020-01-01T00:00:00+00:00", "committed_floor": 10**7, "epochs": {}}
    await bucket.put("hall.e1", msgspec.json.encode(old))
    settings = agents.settings_for(tmp_path, duplicate_window_s=1)
    leave_epochs(Path(settings.data_dir), 1, 3)
    async with agents.running_agent(nats_url, settings) as agent:
        await until(_all_taken(agent))
        for delivery in agent.deliveries:
            delivery._window_s = 0.1
        messages = (await js.stream_info(names.STREAM)).state.messages
        await asyncio.sleep(3)
        assert agent.deliveries.resent == 0
        assert (await js.stream_info(names.STREAM)).state.messages == messages
        await js.delete_stream(names.STREAM)
        await ingest.prepare(nats_client, ours)
        created = (await js.stream_info(names.STREAM)).created
        assert created is not None
        told = old | {"stream_created": created.isoformat(), "committed_floor": 0}
        await bucket.put("hall.e1", msgspec.json.encode(told))
        await until(_has(nats_client, messages))


async def test_what_is_on_a_stick_that_is_not_mounted_is_waited_for(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path
) -> None:
    ours = ingest.settings_for(postgres_dsn)
    await ingest.prepare(nats_client, ours)
    stick, away = tmp_path / "stick", tmp_path / "away"
    settings = agents.settings_for(tmp_path, cold_dir=str(stick))
    folder = Path(settings.data_dir)
    assert ColdDisk(folder, settings.cold_dir).missing() is None
    on_stick = leave_on_a_stick(folder, stick, batches=200)
    stick.rename(away)
    stick.mkdir()
    async with running_ingest(nats_url, ours, workers=1):
        async with agents.running_agent(nats_url, settings) as agent:
            await until(_stored(database, 200 - on_stick))
            agent.gaps._connected_s = -1e9  # as if it had been connected for long
            await asyncio.sleep(3)
            assert "not mounted" in agent.heartbeat().problems[0]
            assert agent.stuck() is None
            assert len(agent.epochs.open) == 1
            stick.rmdir()
            away.rename(stick)
            assert "is there again" in (agent.stuck() or "")
        async with agents.running_agent(nats_url, settings) as agent:
            await until(_all_forgotten(agent))
    assert await database.fetchval("SELECT count(*) FROM sensor_data") == 200
    assert await database.fetchval("SELECT count(*) FROM gaps") == 0


def leave_on_a_stick(folder: Path, stick: Path, batches: int) -> int:
    """Leave an epoch of which all but the last segment is on a stick; return how many batches that is."""
    spool = Spool(folder / "spool", SpoolSettings(segment_bytes=32 << 10, reserve_bytes=0, cold_dir=str(stick)))
    log = spool.begin(1)
    for seq in range(1, batches + 1):
        assert log.append(make(1, seq, seq - 1, "samples", [frame(seq)], 1, 0))
    work = spool.sync_work()
    assert work is not None
    work.run()
    spool.synced(work)
    while (moving := spool.cold_work(3)) is not None:
        moving.run()
        assert spool.moved(moving)
    moved = sum(info.batches for info in spool.segments() if info.tier == "cold")
    assert 0 < moved < batches
    spool.close()
    current = Epoch(1, last_seq=batches, last_samples=batches)
    (folder / FILE).write_bytes(msgspec.json.encode(EpochsFile(current, [])))
    return moved


def _stored(database: asyncpg.Connection, rows: int) -> Check:
    async def stored() -> bool:
        return bool(await database.fetchval("SELECT count(*) >= $1 FROM sensor_data", rows))

    return stored


def _has(client: Client, messages: int) -> Check:
    async def has() -> bool:
        return (await client.jetstream().stream_info(names.STREAM)).state.messages == messages

    return has


def _all_taken(agent: Agent) -> Check:
    async def taken() -> bool:
        return bool(agent.deliveries.earlier) and not agent.deliveries.unacknowledged()

    return taken


def _all_forgotten(agent: Agent) -> Check:
    async def forgotten() -> bool:
        return agent.storage.recovered and not agent.deliveries.earlier and not agent.epochs.open

    return forgotten
