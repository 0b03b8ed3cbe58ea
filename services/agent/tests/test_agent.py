"""The whole agent in one process: liveness, forecast, memory-only running, restarts."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.aio.client import Client
from prometheus_client import REGISTRY

from cncmon_agent import agent as agent_module
from cncmon_agent import forecast
from cncmon_agent.agent import Agent, note_end, note_synced
from cncmon_agent.batch import make
from cncmon_agent.buffer.emptied import Emptied
from cncmon_agent.buffer.hot import HotRing
from cncmon_agent.delivery import Delivery
from cncmon_agent.epochs import FILE, Epoch, EpochsFile
from cncmon_agent.heartbeat import epoch_report, unread_report
from cncmon_agent.publish import Publisher, _Flight, _Lane
from cncmon_agent.settings import AgentSettings
from cncmon_core import frames, names, nats_link
from cncmon_core.events import GAP, decode_event
from cncmon_core.watermark import Watermark
from cncmon_ingest import bootstrap
from testkit import agent as agents
from testkit import bulky, ingest
from testkit.ingest import until
from testkit.times import Times

NOWHERE = "nats://127.0.0.1:9"


async def make_stream(client: Client) -> None:
    """Make the stream and the buckets, with no database behind them."""
    await bootstrap.ensure(client, ingest.settings_for("postgresql://nobody@127.0.0.1:9/none"))


@pytest.fixture
async def stream(nats_client: Client) -> Client:
    """A server with the stream and the buckets, and no database behind them."""
    await make_stream(nats_client)
    return nats_client


def link_to(url: str) -> nats_link.NatsLink:
    return nats_link.NatsLink(nats_link.NatsSettings(servers=(url,)), "agent")


@contextlib.asynccontextmanager
async def feeding(agent: Agent) -> AsyncIterator[None]:
    """Give an agent a few samples ten times a second."""

    async def feed() -> None:
        samples = bulky.Samples()
        while True:
            for sample in samples.take(3):
                agent.batcher.add(sample)
            await asyncio.sleep(0.1)

    task = asyncio.create_task(feed())
    try:
        yield
    finally:
        task.cancel()


def online(agent: Agent) -> Any:
    async def connected() -> bool:
        return agent.batcher.online

    return connected


async def heartbeat_of(client: Client) -> dict[str, Any]:
    found = await (await client.jetstream().key_value(names.KV_STATUS)).get("hall.e1")
    decoded: dict[str, Any] = msgspec.json.decode(found.value or b"")
    return decoded


async def turned(agent: Agent) -> None:
    """Wait until every loop whose standing still would count as stuck has turned twice from now on."""
    care = agent.storage.care
    assert care is not None
    for _ in range(2):
        began_s = time.monotonic()

        def all_turned(began_s: float = began_s) -> bool:
            return min(care.turned_s, *(lane.turned_s for lane in agent.publisher._lanes), math.inf) > began_s

        await until(all_turned)


async def test_nats_away_is_no_reason_for_a_restart(tmp_path: Path) -> None:
    async with agents.running_agent(NOWHERE, agents.settings_for(tmp_path)) as agent, feeding(agent):
        await turned(agent)
        assert agent.stuck() is None
        assert agent.machines.healthy() is None
        assert agent.batcher.refused == 0


async def test_nor_is_having_nothing_to_say(stream: Client, nats_url: str, tmp_path: Path) -> None:
    async with agents.running_agent(nats_url, agents.settings_for(tmp_path)) as agent:
        await until(online(agent))
        await turned(agent)
        assert agent.stuck() is None
        assert agent.machines.healthy() is None


async def test_nor_is_a_stream_that_is_not_there(nats_client: Client, nats_url: str, tmp_path: Path) -> None:
    async with agents.running_agent(nats_url, agents.settings_for(tmp_path, drain_s_max=0)) as agent, feeding(agent):
        await until(online(agent))
        await turned(agent)
        assert agent.publisher.stream_error is not None
        assert agent.stuck() is None


async def test_a_stream_that_comes_is_noticed_though_nothing_is_read_yet(
    nats_client: Client, nats_url: str, tmp_path: Path
) -> None:
    async with agents.running_agent(nats_url, agents.settings_for(tmp_path)) as agent:
        await until(online(agent))
        assert agent.publisher.stream_error is not None
        await make_stream(nats_client)

        async def takes() -> bool:
            return agent.publisher.stream_error is None

        await until(takes)


@pytest.mark.parametrize("lane", ["_live", "_backlog"])
async def test_a_publish_loop_that_is_dead_while_there_is_a_connection_is_one(
    stream: Client, nats_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lane: str
) -> None:
    async def dead(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Publisher, lane, dead)
    settings = agents.settings_for(tmp_path, drain_s_max=0)
    bulky.fill(settings, 100_000)
    async with agents.running_agent(nats_url, settings) as agent:
        await until(online(agent))
        assert agent.stuck() is None
        monkeypatch.setattr(agent_module, "STUCK_S", 1.0)
        await until(lambda: (agent.stuck() or "").startswith("nothing was published, nor looked at, for "))


async def test_a_disk_that_does_not_answer_a_sync_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent(agents.settings_for(tmp_path), link_to(NOWHERE))
    assert agent.storage.care is not None
    assert agent.stuck() is None
    agent.storage.care.turned_s -= agent_module.STUCK_S + 1
    assert (agent.stuck() or "").startswith("a sync of the batches on disk has not ended for ")


async def test_the_forecast_is_told_and_sane(
    stream: Client, nats_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "BUCKET_S", 0.5)
    settings = agents.settings_for(tmp_path, spool_bytes_max=64 << 20, spool_free_bytes_min=0)
    async with agents.running_agent(nats_url, settings) as agent:
        await until(online(agent))
        assert agent.heartbeat().buffer.hours_left is None, "nothing comes in yet"
        async with feeding(agent):
            began_bytes, began_s = agent.storage.accepted_bytes, time.monotonic()
            await asyncio.sleep(4)
            rate = (agent.storage.accepted_bytes - began_bytes) / (time.monotonic() - began_s)
            held = agent.storage.held()
            expected = (64 * 2**20 - held.warm_bytes) / rate / 3600
            assert agent.heartbeat().buffer.hours_left == pytest.approx(expected, rel=0.4)
            assert REGISTRY.get_sample_value("cncmon_edge_buffer_hours_left") == pytest.approx(expected, rel=0.4)
            said = (await heartbeat_of(stream))["buffer"]
            assert said["hours_left"] == pytest.approx(expected, rel=0.4)
            assert said["capacity_bytes"] == 64 << 20
            assert not said["memory_only"]


async def test_memory_only_is_in_the_heartbeat(stream: Client, nats_url: str, tmp_path: Path) -> None:
    (tmp_path / "agent").touch()
    async with agents.running_agent(nats_url, agents.settings_for(tmp_path, spool="preferred")) as agent:
        await until(online(agent))
        await asyncio.sleep(0.5)
        said = await heartbeat_of(stream)
    assert said["buffer"]["memory_only"] is True
    assert said["buffer"]["capacity_bytes"] == 2 << 20
    assert said["problems"] == [f"data folder {tmp_path / 'agent'} can't be used: a file has that name"]


async def test_no_disk_on_purpose_is_no_problem(tmp_path: Path) -> None:
    agent = Agent(agents.settings_for(tmp_path, spool="off"), link_to(NOWHERE))
    said = agent.heartbeat()
    assert (said.buffer.memory_only, said.problems) == (True, [])


async def test_a_cold_tier_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "stick").touch()
    agent = Agent(agents.settings_for(tmp_path, cold_dir=str(tmp_path / "stick")), link_to(NOWHERE))
    assert agent.heartbeat().problems == [
        f"cold tier {tmp_path / 'stick'} can't be used: Not a directory. Batches stay in {tmp_path / 'agent'}"
    ]


class Ticking(Times):
    """Clocks that go on between any two looks at them."""

    def boottime_ns(self) -> int:
        self.pass_s(1e-6)
        return super().boottime_ns()


async def test_who_starts_again_knows_the_time_at_once(tmp_path: Path) -> None:
    times = Ticking()
    times.rtc = True
    settings = agents.settings_for(tmp_path)
    for _ in range(3):
        agent, stop = Agent(settings, link_to(NOWHERE), source=times), asyncio.Event()
        assert agent.clock.known, "the bound on disk is this very clock's"
        task = asyncio.create_task(agent.run(stop))
        await asyncio.sleep(0.3)
        stop.set()
        await task


async def test_a_stop_without_a_connection_drains_nothing_and_everything_is_synced(tmp_path: Path) -> None:
    settings = agents.settings_for(tmp_path, sync_interval_ms=60_000, drain_s_max=3600, linger_offline_ms=60_000)
    async with agents.running_agent(NOWHERE, settings) as agent:
        for sample in bulky.Samples().take(5):
            agent.batcher.add(sample)
    again = Agent(settings, link_to(NOWHERE))
    earlier = again.epochs.open[-1]
    assert (earlier.epoch, earlier.last_seq, earlier.last_samples) == (agent.epochs.current.epoch, 1, 5)


def end_of(epoch: Epoch, held: range) -> tuple[int, int]:
    ring = HotRing(1 << 20, first_seq=held.start)
    for seq in held:
        ring.append(make(7, seq, (seq - 1) * 2, "samples", [b"a", b"b"], 1, 0))
    note_end(epoch, ring if held else Emptied(held.start))
    return epoch.last_seq, epoch.last_samples


def test_an_earlier_epoch_ends_at_the_last_that_is_known_of_it() -> None:
    assert end_of(Epoch(7), range(1, 4)) == (3, 6)
    assert end_of(Epoch(7, last_seq=2, last_samples=4), range(1, 4)) == (3, 6)
    assert end_of(Epoch(7, last_seq=9, last_samples=18), range(1, 4)) == (9, 18), "the disk lost a synced end"
    assert end_of(Epoch(7, acked_seq=5, acked_samples=10), range(1, 4)) == (5, 10), "the stream has more than the disk"
    assert end_of(Epoch(7, last_seq=2, last_samples=4), range(6, 6)) == (5, 0), "dropped: nobody counts the rest"
    assert end_of(Epoch(7, last_seq=4, last_samples=8), range(5, 5)) == (4, 8)


def test_settings_with_a_disk_that_is_wanted_are_the_default() -> None:
    assert AgentSettings().spool == "required"


async def test_delivery_a6_what_is_delivered_still_counts_as_accepted(
    nats_client: Client, nats_url: str, postgres_dsn: str, tmp_path: Path
) -> None:
    """All of it was in the database, and the heartbeat told of no sample: the books did not balance."""
    ours = ingest.settings_for(postgres_dsn)
    await bootstrap.ensure(nats_client, ours)
    settings = agents.settings_for(tmp_path, state_save_ms=60_000)
    async with agents.running_agent(nats_url, settings) as agent, ingest.running_ingest(nats_url, ours):
        for sample in bulky.Samples().take(7):
            agent.batcher.add(sample)
        agent.batcher.cut()

        async def stored_and_gone() -> bool:
            return agent.batcher.samples == 7 and not list(agent.storage.buffer)

        await until(stored_and_gone)
        report = agent.heartbeat().epochs[-1]
    assert report.accepted_samples == 7
    assert report.last_seq == report.freed_seq >= 1


def with_earlier_epoch(folder: Path) -> Epoch:
    """Write an epochs file, as a run before this one left it, and return its epoch."""
    epoch = Epoch(5, last_seq=9, last_samples=90, acked_seq=8, freed_seq=7)
    folder.mkdir(parents=True)
    (folder / FILE).write_bytes(msgspec.json.encode(EpochsFile(epoch)))
    return epoch


async def test_delivery_a1_how_far_the_epoch_is_synced_is_saved_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start after a power cut says that much was there, whatever the disk has lost of it."""
    async with agents.running_agent(NOWHERE, agents.settings_for(tmp_path)) as agent:
        for sample in bulky.Samples().take(6):
            agent.batcher.add(sample)
            agent.batcher.cut()
        await agent.storage.synced(6)
        saved, save = asyncio.Event(), agent._save

        async def note_save() -> None:
            await save()
            saved.set()

        monkeypatch.setattr(agent, "_save", note_save)
        await asyncio.wait_for(saved.wait(), 60)
        current = msgspec.json.decode((tmp_path / "agent" / FILE).read_bytes(), type=EpochsFile).current
    assert (current.last_seq, current.last_samples) == (6, 6)


async def test_delivery_a6_an_epoch_is_listed_before_its_log_is_read(tmp_path: Path) -> None:
    old = with_earlier_epoch(tmp_path / "agent")
    agent = Agent(agents.settings_for(tmp_path), link_to(NOWHERE))
    listed = {report.epoch: report for report in agent.heartbeat().epochs}
    assert set(listed) == {old.epoch, agent.epochs.current.epoch}
    report = listed[old.epoch]
    assert (report.first_seq, report.last_seq, report.freed_seq, report.accepted_samples) == (8, 9, 7, 90)
    agent.storage.close()


async def test_delivery_a6_what_the_heartbeat_before_listed_and_is_not_here_is_passed_on(
    stream: Client, nats_url: str, tmp_path: Path
) -> None:
    with_earlier_epoch(tmp_path / "agent")
    bucket = await stream.jetstream().key_value(names.KV_STATUS)
    counts = {"first_seq": 1, "last_seq": 3, "freed_seq": 0, "acked_seq": 0, "accepted_samples": 3}
    before = {"epochs": [{"epoch": 5} | counts, {"epoch": 6} | counts], "gone": [{"epoch": 7} | counts]}
    await bucket.put("hall.e1", msgspec.json.encode(before))
    async with agents.running_agent(nats_url, agents.settings_for(tmp_path)):

        async def beaten() -> bool:
            return "boot_id" in await heartbeat_of(stream)

        await until(beaten)
        assert [report["epoch"] for report in (await heartbeat_of(stream))["gone"]] == [6, 7]


@pytest.mark.parametrize("missing", [None, "not there"])
async def test_delivery_a7_of_earlier_starts_nothing_is_declared_while_the_cold_disk_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str | None
) -> None:
    old = with_earlier_epoch(tmp_path / "agent")
    agent = agents.make_agent(NOWHERE, agents.settings_for(tmp_path))
    agent.storage.cold_missing = missing
    agent.gaps.go(online=True)
    agent.deliveries.told(Watermark(1, "made", 0, {old.epoch: 7}))
    turned = asyncio.Event()
    step = agent.closings.step

    def note_step() -> list[int]:
        turned.set()
        return step()

    monkeypatch.setattr(agent.closings, "step", note_step)
    async with agents.running(agent):
        # After each look for gaps.
        await asyncio.wait_for(turned.wait(), 60)
        said = [part for batch in agent.storage.buffer for part in frames.split(frames.decompress(batch.data))[0]]
    gaps = [event.data["seq_from"] for event in map(decode_event, said) if event.type == GAP]
    assert gaps == ([] if missing else [8])


async def test_delivery_a5_a_last_sequence_heard_while_batches_are_on_their_way_is_no_evidence(
    stream: Client, nats_url: str, tmp_path: Path
) -> None:
    """What the stream took since the server was asked would seem to lie above its end."""
    agent = Agent(agents.settings_for(tmp_path), link_to(nats_url))
    for sample in bulky.Samples().take(2):
        agent.batcher.add(sample)
        agent.batcher.cut()
    current = agent.deliveries.current
    assert [current.next_live(), current.next_live()] == [1, 2]
    # The stream is empty by what the server says; the first is acknowledged by then, the second on its way.
    agent.deliveries.taken(current, 1, 1, 0.0, duplicate=False)
    flight = _Flight(current, 2, "samples", _Lane("live", 1, paced=False), 0.0, 100)
    agent.publisher._flights[flight] = asyncio.get_running_loop().create_future()
    await agent.publisher._look_at_stream(stream.jetstream())
    assert agent.deliveries.stream_created
    assert current.resent == 0
    agent.publisher._flights.clear()
    await agent.publisher._look_at_stream(stream.jetstream())
    assert current.resent == 1
    agent.storage.close()


def test_a_count_is_that_of_its_seq_or_unknown() -> None:
    ring = HotRing(1 << 20)
    for seq in range(1, 7):
        ring.append(make(7, seq, (seq - 1) * 2, "samples", [b"a", b"b"], 1, 0))
    epoch = Epoch(7)
    note_synced(epoch, ring, 3)
    assert (epoch.last_seq, epoch.last_samples, epoch.counted) == (3, 6, 6)
    ring.free(4)
    note_synced(epoch, ring, 4)
    assert (epoch.last_seq, epoch.counted) == (4, 8), "the batch behind it tells"
    ring.free(6)
    note_synced(epoch, ring, 5)
    assert (epoch.last_seq, epoch.counted) == (5, None), "not that of seq 4"
    delivery = Delivery(ring, epoch, 120.0)
    assert epoch_report(delivery).accepted_samples is None
    assert epoch_report(delivery, 12).accepted_samples == 12
    assert unread_report(epoch).accepted_samples is None
    assert Epoch(7).counted == 0


async def test_delivery_a7_what_the_cap_drops_before_it_is_read_is_known_after_a_crash(tmp_path: Path) -> None:
    settings = agents.settings_for(tmp_path, sync_interval_ms=10, state_save_ms=3_600_000, linger_offline_ms=1)
    async with agents.running_agent(NOWHERE, settings) as agent:
        for sample in bulky.Samples().take(5):
            agent.batcher.add(sample)
        await until(lambda: agent.storage.synced_seq > 0)
        epoch, content = agent.epochs.current.epoch, (tmp_path / "agent" / FILE).read_bytes()
    # As kill -9 leaves it: nothing was saved since the start.
    (tmp_path / "agent" / FILE).write_bytes(content)
    again = Agent(settings, link_to(NOWHERE))
    assert (again.epochs.open[-1].epoch, again.epochs.open[-1].last_seq) == (epoch, 0)
    assert again.storage.spool is not None
    assert again.storage.spool.shed() is not None
    saved = msgspec.json.decode((tmp_path / "agent" / FILE).read_bytes(), type=EpochsFile)
    assert (saved.open[-1].epoch, saved.open[-1].last_seq) == (epoch, agent.storage.synced_seq)
