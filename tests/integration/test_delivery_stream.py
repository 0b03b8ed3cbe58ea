"""The settings of the stream and the buckets on a real server: what is refused, kept and brought up to date."""

import os
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import asyncpg
import msgspec
import pytest
from nats.aio.client import Client
from nats.js import api
from nats.js.errors import APIError

from cncmon_agent.agent import Agent
from cncmon_core import identity, names
from cncmon_core.sample import Sample
from cncmon_ingest.care import care_for_stream
from testkit import agent as agents
from testkit.ingest import drained, frame, prepare, publish_batch, running_ingest, settings_for, until

SHARE = 50


def has_batch(agent: Agent, seq: int) -> bool:
    return agent.storage.buffer.range()[1] > seq


async def first_seq(client: Client) -> int:
    return (await client.jetstream().stream_info(names.STREAM)).state.first_seq


async def test_delivery_d2_a_full_stream_refuses_and_drops_nothing(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection
) -> None:
    """Each message that was accepted is there, from the first, until it is committed."""
    settings = settings_for(postgres_dsn, stream_messages_max=1000, stream_messages_per_edge_max=0)
    await prepare(nats_client, settings)
    accepted = []
    for seq in range(1, 1101):
        try:
            await publish_batch(nats_client, seq, [frame(seq)])
        except APIError:
            continue
        accepted.append(seq)
    assert accepted == list(range(1, 1001))
    assert await first_seq(nats_client) == 1
    async with running_ingest(nats_url, settings):
        await until(lambda: drained(nats_client))
    rows = await database.fetch("SELECT active_program_line AS seq FROM sensor_data ORDER BY 1")
    assert [row["seq"] for row in rows] == accepted


async def test_delivery_d2_an_edge_above_its_share_waits_and_others_do_not(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path
) -> None:
    """It publishes faster than anybody commits; once that is done, its share is freed by what is committed of it."""
    settings = settings_for(postgres_dsn, stream_messages_per_edge_max=SHARE, stream_messages_max=10_000)
    await prepare(nats_client, settings)
    async with agents.running_agent(nats_url, agents.settings_for(tmp_path)) as agent:
        for _ in range(4 * SHARE):
            agent.batcher.add(Sample("m", datetime.now(UTC), 1.0, 2.0))
            agent.batcher.cut()

        async def has_its_share() -> bool:
            subjects = (await nats_client.jetstream().stream_info(names.STREAM, subjects_filter=">")).state.subjects
            return (subjects or {}).get(identity.subject_of("samples", "hall", "e1")) == SHARE

        await until(has_its_share)
        assert agent.deliveries.unacknowledged() >= 3 * SHARE

        async def says_why() -> bool:
            return "maximum messages per subject exceeded" in (agent.publisher.stream_error or "")

        # Not as a PubAck that does not come: the server said no.
        await until(says_why)
        for seq in range(1, SHARE + 1):
            await publish_batch(nats_client, seq, [frame(seq)], edge="other")
        with pytest.raises(APIError, match="per subject"):
            await publish_batch(nats_client, SHARE + 1, [frame(1)], edge="other")
        async with running_ingest(nats_url, settings):
            await until(lambda: agent.storage.buffer.stats().batches == 0)
            await until(lambda: drained(nats_client))
            assert agent.publisher.stream_error is None
    assert await database.fetchval("SELECT count(*) FROM sensor_data WHERE machine_id = 'm'") == 4 * SHARE
    assert await database.fetchval("SELECT count(*) FROM sensor_data") == 5 * SHARE
    assert await database.fetchval("SELECT count(*) FROM gaps") == 0


async def test_delivery_d2_an_edge_stops_at_its_share_in_bytes_and_others_do_not(
    nats_client: Client, nats_url: str, postgres_dsn: str, database: asyncpg.Connection, tmp_path: Path
) -> None:
    """Large batches: its messages are few, and nobody commits them."""
    share = 1 << 20
    settings = settings_for(postgres_dsn, stream_bytes_per_edge_max=share, stream_bytes_max=8 << 20)
    await prepare(nats_client, settings)
    batches, samples = 40, 100
    js = nats_client.jetstream()
    in_flight = 2
    async with agents.running_agent(nats_url, agents.settings_for(tmp_path, in_flight_max=in_flight)) as agent:
        # Once it was told its share; nobody is there to commit what comes after.
        async with running_ingest(nats_url, settings):
            agent.batcher.add(Sample("m", datetime.now(UTC), 1.0, 2.0))
            await until(lambda: agent.deliveries.floor > 0)

        for number in range(1, batches + 1):
            for _ in range(samples):
                text = os.urandom(500).hex()
                agent.batcher.add(Sample("m", datetime.now(UTC), 1.0, 2.0, extras={"text": text}))
            agent.batcher.cut()
            # Those of the memory go to the disk before it is full.
            await until(partial(has_batch, agent, number))

        async def says_why_or_has_sent_all() -> bool:
            return agent.publisher.stream_error is not None or agent.deliveries.unacknowledged() == 0

        await until(says_why_or_has_sent_all)
        assert f"share of what is not in the database yet ({share} bytes)" in (agent.publisher.stream_error or "")
        # A batch is 256 KiB at most, and there are two lanes.
        assert (await js.stream_info(names.STREAM)).state.bytes < share + 2 * in_flight * (256 << 10)
        assert agent.deliveries.unacknowledged() >= batches // 4
        await publish_batch(nats_client, 1, [frame(1)], edge="other")
        async with running_ingest(nats_url, settings):
            await until(lambda: agent.storage.buffer.stats().batches == 0)
            await until(lambda: drained(nats_client))
            assert agent.publisher.stream_error is None
    assert await database.fetchval("SELECT count(*) FROM sensor_data WHERE machine_id = 'm'") == batches * samples + 1
    assert await database.fetchval("SELECT count(*) FROM gaps") == 0


async def test_delivery_d2_of_a_share_only_what_is_committed_is_purged(nats_client: Client, postgres_dsn: str) -> None:
    settings = settings_for(postgres_dsn, stream_messages_per_edge_max=SHARE)
    await prepare(nats_client, settings)
    js = nats_client.jetstream()
    for seq in range(1, SHARE + 1):
        await publish_batch(nats_client, seq, [frame(seq)])
        if seq <= 10:
            await publish_batch(nats_client, seq, [frame(seq)], edge="other")

    async def left() -> dict[str, int]:
        return (await js.stream_info(names.STREAM, subjects_filter=">")).state.subjects or {}

    mine, others = identity.subject_of("samples", "hall", "e1"), identity.subject_of("samples", "hall", "other")
    await care_for_stream(js, settings, floor=0)
    assert await left() == {mine: SHARE, others: 10}
    # Of the first 30 in the stream, 20 are on the one subject and 10 on the other, which has room.
    await care_for_stream(js, settings, floor=30)
    assert await left() == {mine: SHARE - 20, others: 10}


async def test_delivery_d2_the_share_can_be_changed_and_taken_away(nats_client: Client, postgres_dsn: str) -> None:
    js = nats_client.jetstream()
    for share in (100, 50, 0):
        await prepare(nats_client, settings_for(postgres_dsn, stream_messages_per_edge_max=share))
        config = (await js.stream_info(names.STREAM)).config
        assert config.max_msgs_per_subject == (share or -1)
        assert bool(config.discard_new_per_subject) is bool(share)


async def test_buckets_that_exist_are_brought_up_to_date(nats_client: Client, postgres_dsn: str) -> None:
    """As an earlier version, or somebody by hand, made them: shorter, with less history, without what agents hear."""
    js = nats_client.jetstream()
    for bucket in (names.KV_STATUS, names.KV_WATERMARK, names.KV_CONFIG):
        await js.create_key_value(api.KeyValueConfig(bucket=bucket, history=1, ttl=60, storage=api.StorageType.FILE))
    await (await js.key_value(names.KV_CONFIG)).put("hall.e1", b"kept")
    settings = settings_for(postgres_dsn, status_ttl_s=3600)
    await prepare(nats_client, settings)
    found = {
        bucket: (await js.stream_info(f"KV_{bucket}")).config
        for bucket in (names.KV_STATUS, names.KV_WATERMARK, names.KV_CONFIG)
    }
    assert [config.max_age or 0 for config in found.values()] == [3600, 0, 0]
    assert [config.max_msgs_per_subject for config in found.values()] == [1, 1, 8]
    for bucket, config in found.items():
        assert config.republish is not None
        assert config.republish.dest == f"cncmon.kv.{bucket}.>"
    assert (await (await js.key_value(names.KV_CONFIG)).get("hall.e1")).value == b"kept"
    # Nothing is changed without a reason: an update is a write to the server's disk at every start.
    await prepare(nats_client, settings)
    again = [(await js.stream_info(f"KV_{bucket}")).config for bucket in found]
    assert [msgspec.to_builtins(one.as_dict()) for one in again] == [
        msgspec.to_builtins(one.as_dict()) for one in found.values()
    ]
