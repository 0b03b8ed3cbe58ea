"""The main job on real parts: simulated Modbus machines, agent, NATS, ingest, PostgreSQL, compared field by field."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
from nats.aio.client import Client

from cncmon_simulator import Settings, running
from cncmon_standalone.proof.accepted import AcceptedLog
from cncmon_standalone.proof.compare import Verdict, Window, compare
from testkit import agent as agents
from testkit import ingest
from testkit.ingest import until
from testkit.servers import Server

MACHINES = 8


def simulator(folder: Path, **changes: Any) -> Settings:
    """Machines on free ports, with documents and poll log in a folder."""
    settings: dict[str, Any] = {
        "machines": MACHINES,
        "site": "hall",
        "edge": "e1",
        "port_base": 0,
        "control_port": -1,
        "poll_interval_ms": 50,
        "poll_log": str(folder / "polls.jsonl"),
        "machines_file": str(folder / "machines.yaml"),
    }
    return Settings(**(settings | changes))


async def verdict_on(database: asyncpg.Connection, folder: Path) -> Verdict:
    """Compare what was accepted with what is stored, and every stored field with what the controller answered."""
    accepted, everything = AcceptedLog(folder / "accepted.jsonl"), Window(0, 2**63 - 1)
    return await compare(database, accepted, folder / "polls.jsonl", everything, datetime(2000, 1, 1, tzinfo=UTC))


async def test_every_accepted_sample_is_stored_as_the_controller_answered_it(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path
) -> None:
    ours = ingest.settings_for(postgres_dsn)
    await ingest.prepare(nats_client, ours)
    settings = agents.settings_for(
        tmp_path, machines=(str(tmp_path / "machines.yaml"),), accepted_log=str(tmp_path / "accepted.jsonl")
    )
    async with running(simulator(tmp_path)), ingest.running_ingest(nats_url, ours, workers=2):
        async with agents.running_agent(nats_url, settings) as agent:
            await asyncio.sleep(3)
            assert all(report.state == "connected" for report in agent.machines.reports())
            status = await (await nats_client.jetstream().key_value("edge_status")).get("hall.e1")
            heartbeat = msgspec.json.decode(status.value or b"")
            assert len(heartbeat["machines"]) == MACHINES
        await until(lambda: ingest.drained(nats_client))

    found = await verdict_on(database, tmp_path)
    assert found.accepted > MACHINES * 20 * 2
    assert found.holds, found.examples
    assert await database.fetchval("SELECT count(*) FROM dead_letters") == 0
    assert await database.fetchval("SELECT count(*) FROM machines WHERE site = 'hall' AND edge = 'e1'") == MACHINES


async def test_the_buffer_drains_at_the_watermark(
    nats_client: Client, nats_url: str, postgres_dsn: str, tmp_path: Path
) -> None:
    ours = ingest.settings_for(postgres_dsn)
    await ingest.prepare(nats_client, ours)
    settings = agents.settings_for(tmp_path, machines=(str(tmp_path / "machines.yaml"),))
    async with running(simulator(tmp_path)), agents.running_agent(nats_url, settings) as agent:
        await asyncio.sleep(1)
        held = agent.storage.buffer.stats().batches
        assert held > 5, "acknowledged by the stream alone frees nothing"
        assert agent.epochs.current.acked_seq > 5
        async with ingest.running_ingest(nats_url, ours):

            async def freed() -> bool:
                return bool(agent.epochs.current.freed_seq >= held)

            await until(freed)
            assert agent.storage.buffer.stats().batches < held


async def test_nats_killed_and_back(
    own_nats: Server, postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path
) -> None:
    url = f"nats://127.0.0.1:{own_nats.port}"
    ours = ingest.settings_for(postgres_dsn, ack_wait_ms=2000)
    settings = agents.settings_for(
        tmp_path, machines=(str(tmp_path / "machines.yaml"),), accepted_log=str(tmp_path / "accepted.jsonl")
    )
    async with running(simulator(tmp_path)), ingest.running_ingest(url, ours):
        async with agents.running_agent(url, settings):
            await asyncio.sleep(1.5)
            own_nats.kill()
            await asyncio.sleep(1.5)
            await asyncio.to_thread(own_nats.start)
            await asyncio.sleep(2)
        client = Client()
        await client.connect(url)
        await until(lambda: ingest.drained(client))
        await client.close()
    found = await verdict_on(database, tmp_path)
    assert found.accepted > MACHINES * 20 * 3
    assert found.holds, found.examples


async def test_no_stream_says_so_and_goes_on_once_there_is_one(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path
) -> None:
    ours = ingest.settings_for(postgres_dsn)
    settings = agents.settings_for(
        tmp_path, machines=(str(tmp_path / "machines.yaml"),), accepted_log=str(tmp_path / "accepted.jsonl")
    )
    async with running(simulator(tmp_path)):
        async with agents.running_agent(nats_url, settings) as agent:
            await asyncio.sleep(1)
            assert agent.publisher.stream_error is not None
            assert "no stream captures CNC_DATA.hall.e1" in agent.publisher.stream_error
            assert agent.storage.buffer.stats().samples > MACHINES * 10
            async with ingest.running_ingest(nats_url, ours):

                async def going() -> bool:
                    return agent.publisher.stream_error is None and agent.epochs.current.freed_seq > 0

                await until(going)
        async with ingest.running_ingest(nats_url, ours):
            await until(lambda: ingest.drained(nats_client))
    found = await verdict_on(database, tmp_path)
    assert found.accepted > MACHINES * 15
    assert found.holds, found.examples
