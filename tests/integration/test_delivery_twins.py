"""Rule A1 on real servers where two agents have one memory: cloned while it ran, or reverted to a snapshot.

Two agents get one epoch and one boot id, as a clone of a running machine has them; what they read differs.
"""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import asyncpg
import msgspec
import pytest
from nats.aio.client import Client

from cncmon_agent import fork
from cncmon_agent.agent import Agent
from cncmon_agent.settings import AgentSettings
from cncmon_core import frames, names
from cncmon_core.sample import Sample
from cncmon_ingest.reconcile import reconcile
from testkit import agent as agents
from testkit import ingest
from testkit.gaps import gaps_of, watermark_of
from testkit.ingest import drained, running_ingest, settings_for, until

SHARED = 4711
"""The epoch that both have."""

WAIT_S = 120.0


def accept(agent: Agent, machine_id: str, numbers: Iterable[int]) -> None:
    """Accept one batch per number."""
    began = datetime(2026, 11, 1, tzinfo=UTC)
    for number in numbers:
        moment = began + timedelta(seconds=number)
        agent.batcher.add(Sample(machine_id, moment, temperature=None, spindle_speed=None, part_count=number))
        agent.batcher.cut()


async def stored(database: asyncpg.Connection) -> list[tuple[str, int]]:
    """Return what is in the table of samples."""
    rows = await database.fetch("SELECT machine_id, part_count FROM sensor_data ORDER BY 1, 2")
    return [(row["machine_id"], row["part_count"]) for row in rows]


async def in_letters(database: asyncpg.Connection) -> list[tuple[str, int]]:
    """Return what is in dead letters because of a conflict."""
    found = []
    for row in await database.fetch("SELECT payload, reason FROM dead_letters"):
        assert row["reason"] == "identity_conflict"
        parts, _ = frames.split(frames.decompress(row["payload"]))
        samples = [msgspec.json.decode(part) for part in parts]
        found += [(sample["machine_id"], sample["part_count"]) for sample in samples]
    return sorted(found)


def made(url: str, settings: AgentSettings, monkeypatch: pytest.MonkeyPatch) -> Agent:
    """Return an agent with the shared epoch and boot id; what it draws later is its own."""
    with monkeypatch.context() as patch:
        patch.setattr("cncmon_agent.epochs.draw_epoch", lambda: SHARED)
        agent = agents.make_agent(url, settings)
    agent.beats.boot_id = "shared"
    return agent


@contextlib.asynccontextmanager
async def twins(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Agent, Agent]]:
    """Run two agents with one memory."""
    one, other = (made(url, agents.settings_for(folder / name), monkeypatch) for name in ("one", "other"))
    async with agents.running(one), agents.running(other):
        yield one, other


async def delivered(agent: Agent) -> bool:
    """Whether the agent has nothing left that the database lacks."""
    return agent.deliveries.heard and not any(list(delivery.buffer) for delivery in agent.deliveries)


@pytest.mark.parametrize("pruned", [False, True])
async def test_delivery_a1_every_batch_of_two_agents_with_one_memory_is_stored_or_a_dead_letter(
    nats_client: Client,
    nats_url: str,
    postgres_dsn: str,
    database: asyncpg.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pruned: bool,
) -> None:
    settings = settings_for(postgres_dsn, edges_interval_ms=50)
    await ingest.prepare(nats_client, settings)
    # They tell each other by nothing but what they publish.
    monkeypatch.setattr("cncmon_agent.beats.Beats.is_twins", lambda *_: False)
    async with twins(nats_url, tmp_path, monkeypatch) as (one, other), running_ingest(nats_url, settings):
        accept(one, "one", range(100))
        if pruned:

            async def is_pruned() -> bool:
                return await watermark_of(database, SHARED) == 100

            await until(is_pruned, WAIT_S)
        accept(other, "other", range(100))

        async def both_began() -> bool:
            return SHARED not in (one.epochs.current.epoch, other.epochs.current.epoch)

        await until(both_began, WAIT_S)
        assert one.epochs.current.epoch != other.epochs.current.epoch
        assert one.beats.boot_id != other.beats.boot_id
        # From now on nothing conflicts.
        accept(one, "one", range(100, 120))
        accept(other, "other", range(100, 120))
        for agent in (one, other):
            await until(partial(delivered, agent), WAIT_S)
        await until(lambda: drained(nats_client), WAIT_S)
        here, there = await stored(database), await in_letters(database)
        everything = sorted((name, number) for name in ("one", "other") for number in range(120))
        assert sorted(here + there) == everything
        assert len(there) == 100
        assert {number for _, number in there} <= set(range(100))
        assert await database.fetchval("SELECT count(*) FROM events WHERE type = 'epoch_forked'") == 1

        async def forgotten() -> bool:
            return not one.epochs.open and not other.epochs.open

        await until(forgotten, WAIT_S)
        # Neither closed it, so that the other could go on.
        assert await database.fetchval("SELECT closed_seq FROM watermarks WHERE epoch = $1", SHARED) is None
        assert await gaps_of(database, SHARED) == []
        books = await reconcile(database, timedelta(0))
        assert books.balanced, books.unbalanced


async def test_delivery_a1_a_reverted_agent_learns_of_it_by_its_own_heartbeat(
    nats_client: Client,
    nats_url: str,
    postgres_dsn: str,
    database: asyncpg.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other one is gone; what both accepted before the snapshot is stored once, what came after is kept."""
    settings = settings_for(postgres_dsn, edges_interval_ms=50)
    await ingest.prepare(nats_client, settings)
    first, reverted = (made(nats_url, agents.settings_for(tmp_path / name), monkeypatch) for name in ("1", "2"))
    async with running_ingest(nats_url, settings):
        async with agents.running(first):
            accept(first, "both", range(10))
            accept(first, "first", range(20))
            await until(lambda: delivered(first), WAIT_S)
            bucket = await nats_client.jetstream().key_value(names.KV_STATUS)

            async def has_beaten() -> bool:
                return (await bucket.get("hall.e1")).value is not None

            await until(has_beaten, WAIT_S)
        accept(reverted, "both", range(10))
        accept(reverted, "reverted", range(20))
        async with agents.running(reverted):

            async def began() -> bool:
                return reverted.epochs.current.epoch != SHARED

            await until(began, WAIT_S)
            accept(reverted, "reverted", range(20, 40))
            await until(lambda: delivered(reverted), WAIT_S)

        here, there = await stored(database), await in_letters(database)
    assert sorted(here + there) == [
        *(("both", number) for number in range(10)),
        *(("first", number) for number in range(20)),
        *(("reverted", number) for number in range(40)),
    ]
    assert there == [("reverted", number) for number in range(20)]


@pytest.mark.parametrize("step", ["prepared", "begun", "appended"])
async def test_delivery_a1_killed_while_a_new_epoch_begins_nothing_is_lost_or_stored_twice(
    nats_client: Client,
    nats_url: str,
    postgres_dsn: str,
    database: asyncpg.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    settings = settings_for(postgres_dsn, edges_interval_ms=50)
    await ingest.prepare(nats_client, settings)
    killed, left = tmp_path / "killed", tmp_path / "left"
    agent = made(nats_url, agents.settings_for(killed), monkeypatch)
    # Nothing of it runs: each step is taken here, and what is on disk by then is what a kill leaves.
    accept(agent, "before", range(20))
    agent.epochs.current.forked = True
    agent.epochs.prepare()
    agent.epochs.save()
    expected = {("before", number) for number in range(20)}
    if step != "prepared":
        agent.fork._begin()
    if step == "appended":
        accept(agent, "after", range(20))
        expected |= {("after", number) for number in range(20)}
    shutil.copytree(killed, left)
    agent.storage.close()
    async with (
        running_ingest(nats_url, settings),
        agents.running_agent(nats_url, agents.settings_for(left)) as again,
    ):
        [forked] = [epoch for epoch in again.epochs.open if epoch.epoch == SHARED]
        assert forked.forked
        accept(again, "again", range(5))
        await until(lambda: delivered(again), WAIT_S)

        async def forgotten() -> bool:
            return not again.epochs.open

        await until(forgotten, WAIT_S)
    assert await stored(database) == sorted(expected | {("again", number) for number in range(5)})
    assert await database.fetchval("SELECT count(*) FROM dead_letters") == 0
    assert await database.fetchval("SELECT count(*) FROM gaps") == 0
    closed = await database.fetch("SELECT epoch FROM watermarks WHERE closed_seq IS NOT NULL")
    assert SHARED not in {row["epoch"] for row in closed}


async def test_delivery_a1_innocent_duplicates_begin_no_epoch(
    nats_client: Client,
    nats_url: str,
    postgres_dsn: str,
    database: asyncpg.Connection,
    tmp_path: Path,
) -> None:
    """Lost PubAcks, a restart that drains earlier epochs, a stream made anew, a generation read again."""
    settings = settings_for(postgres_dsn, edges_interval_ms=50, ack_wait_ms=1000)
    await ingest.prepare(nats_client, settings)
    epochs = set()
    async with agents.running_agent(nats_url, agents.settings_for(tmp_path)) as agent:
        epochs.add(agent.epochs.current.epoch)
        accept(agent, "m", range(20))

        async def taken() -> bool:
            return agent.deliveries.unacknowledged() == 0

        await until(taken, WAIT_S)
        # As if no PubAck had come: all is published again, and acknowledged as duplicates.
        agent.deliveries.current.lost_from(0)
        agent.publisher.wake()
        await until(taken, WAIT_S)
    async with agents.running_agent(nats_url, agents.settings_for(tmp_path)) as agent:
        epochs.add(agent.epochs.current.epoch)
        accept(agent, "m", range(20, 30))
        await until(lambda: _all_taken(agent), WAIT_S)
        # What the stream had is gone; everything is published again.
        await nats_client.jetstream().delete_stream(names.STREAM)
        await ingest.prepare(nats_client, settings)
        await nats_client.jetstream().publish("CNC_DATA.hall.other", b"")
        accept(agent, "m", range(30, 31))
        async with running_ingest(nats_url, settings):
            await until(lambda: delivered(agent), WAIT_S)
            await database.execute("UPDATE delivery SET reread_asked = true")

            async def read_again() -> bool:
                row = await database.fetchrow("SELECT generation, reread_ended FROM delivery")
                return row is not None and row["generation"] == 2 and row["reread_ended"] is not None

            await until(read_again, WAIT_S)
            accept(agent, "m", range(31, 40))
            await until(lambda: delivered(agent), WAIT_S)
        assert agent.epochs.current.epoch in epochs
        assert not agent.heartbeat().forked
        assert agent.heartbeat().problems == []
    assert await stored(database) == [("m", number) for number in range(40)]
    assert await database.fetchval("SELECT count(*) FROM forked_epochs") == 0
    rows = await database.fetch("SELECT epoch FROM watermarks WHERE edge = 'e1'")
    assert {row["epoch"] for row in rows} == epochs


async def _all_taken(agent: Agent) -> bool:
    return agent.storage.recovered and agent.deliveries.unacknowledged() == 0


async def test_delivery_a1_epochs_named_as_forked_again_and_again_are_begun_once_a_minute(
    nats_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = agents.make_agent(nats_url, agents.settings_for(tmp_path))
    before = agent.epochs.current.epoch
    for _ in range(3):
        agent.epochs.current.forked = True
        await agent.fork.step()
    assert [epoch.epoch for epoch in agent.epochs.open] == [before]
    monkeypatch.setattr(fork, "PAUSE_S", 0.0)
    await agent.fork.step()
    assert len(agent.epochs.open) == 2
    agent.storage.close()
    await asyncio.sleep(0)
