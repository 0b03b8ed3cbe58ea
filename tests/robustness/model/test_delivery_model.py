"""Rules A to E in any order: edges, stream, workers, leader and database in one state machine.

Real nats-server, PostgreSQL, ingest and agent; only the agent's disk is one in memory. After every step no sample is
stored twice, no watermark is above what is stored, dead or a gap, and no edge has freed what is not in the database. In
the end all comes to rest, the books balance, and what was promised is stored, a dead letter, or a gap.
"""

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from cncmon_agent import gaps
from robustness.model.cloud import Cloud
from robustness.model.delivery_world import DeliveryWorld, qualities_of
from robustness.model.promises import REFUSED_PART_COUNT, Quality
from testkit.ingest import settings_for
from testkit.servers import Server

LONG = os.environ.get("CNCMON_ROBUSTNESS") == "long"
SEED = int(os.environ.get("CNCMON_ROBUSTNESS_SEED", "1"))
EXAMPLES = int(os.environ.get("CNCMON_MODEL_EXAMPLES", "600" if LONG else "10"))
EDGES = 2

edges = st.integers(0, EDGES - 1)
workers = st.integers(0, 1)


class Servers:
    """What all examples share."""

    def __init__(self, loop: asyncio.AbstractEventLoop, cloud: Cloud, pristine: str, folder: Path) -> None:
        self.loop = loop
        self.cloud = cloud
        self.pristine = pristine
        self.folder = folder


class DeliveryMachine(RuleBasedStateMachine):
    """Everything that can happen to a batch."""

    servers: Servers

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=self.servers.folder))
        self.run(self.servers.cloud.reset(self.servers.pristine))
        # Epochs' timers and events belong to a running loop.
        self.world = self.run(self._make())
        self.restored = self.steps = 0

    async def _make(self) -> DeliveryWorld:
        return DeliveryWorld(self.servers.cloud, self.folder, EDGES)

    def run(self, work: Awaitable[Any]) -> Any:
        async def awaited() -> Any:
            return await work

        return self.servers.loop.run_until_complete(awaited())

    def step(self, work: Callable[[], Any]) -> None:
        """Do something, and look whether all still holds."""

        self.steps += 1
        self.world.at = f"step {self.steps}"

        async def done() -> None:
            if asyncio.iscoroutine(made := work()):
                await made
            await self.world.check()

        self.run(done())

    @rule(edge=edges, count=st.integers(1, 4), mix=st.integers(0, 1000), batches=st.integers(1, 4))
    def accept(self, edge: int, count: int, mix: int, batches: int) -> None:
        random = Random(mix)

        def work() -> None:
            for _ in range(batches):
                self.world.edges[edge].accept(qualities_of(random, count))

        self.step(work)

    @rule(edge=edges)
    def sync(self, edge: int) -> None:
        self.step(self.world.edges[edge].sync)

    @rule(edge=edges, asks=st.booleans())
    def connect(self, edge: int, asks: bool) -> None:
        self.step(lambda: self.world.connect(edge, asks=asks))

    @rule(edge=edges, count=st.integers(1, 8), loses_acks=st.booleans())
    def publish(self, edge: int, count: int, loses_acks: bool) -> None:
        self.step(lambda: self.world.publish(edge, count, loses_acks=loses_acks))

    @initialize(first=st.integers(0, 1000), second=st.integers(0, 1000))
    def begin(self, first: int, second: int) -> None:
        """Both edges are at work, and known."""

        async def work() -> None:
            for edge, mix in ((0, first), (1, second)):
                self.world.edges[edge].recover()
                await self.world.connect(edge, asks=True)
                await self.world.beat(edge)
                await self.world.flow(edge, 0, qualities_of(Random(mix), 2))

        self.step(work)

    @rule(edge=edges, worker=workers, mix=st.integers(0, 1000))
    def flow(self, edge: int, worker: int, mix: int) -> None:
        self.step(lambda: self.world.flow(edge, worker, qualities_of(Random(mix), 3)))

    @precondition(lambda self: self.restored < 2)
    @rule(edge=edges, batches=st.integers(1, 3), asks=st.booleans())
    def lose_tail(self, edge: int, batches: int, asks: bool) -> None:
        """The stream loses what it acknowledged last."""
        self.restored += 1

        async def work() -> None:
            await self.world.snapshot_stream()
            for _ in range(batches):
                self.world.edges[edge].accept([Quality.GOOD])
            self.world.edges[edge].sync()
            await self.world.publish(edge, 20, loses_acks=False)
            await self.world.restore_stream()
            await self.world.connect(edge, asks=asks)

        self.step(work)

    @rule(edge=edges, worker=workers, flows=st.integers(1, 4), beats=st.booleans(), ends_sessions=st.booleans())
    def lose_commits(self, edge: int, worker: int, flows: int, beats: bool, ends_sessions: bool) -> None:
        """The database loses what it committed last, after the edge has freed it."""

        async def work() -> None:
            await self.world.round()
            await self.world.snapshot_database()
            for _ in range(flows):
                await self.world.flow(edge, worker, [Quality.GOOD])
            if beats:
                await self.world.beat(edge)
            await self.world.round()
            await self.world.restore_database(ends_sessions=ends_sessions)

        self.step(work)

    @rule(worker=workers, count=st.integers(1, 20))
    def deliver(self, worker: int, count: int) -> None:
        self.step(lambda: self.world.cloud.deliver(worker, count))

    @rule(worker=workers, count=st.integers(1, 8))
    def crash_before_ack(self, worker: int, count: int) -> None:
        self.step(lambda: self.world.cloud.deliver(worker, count, dies_before_ack=True))

    @rule()
    def redeliver(self) -> None:
        self.step(self.world.cloud.redeliver)

    @rule()
    def lead(self) -> None:
        self.step(self.world.round)

    @rule()
    def end_leader(self) -> None:
        self.step(self.world.cloud.end_leader)

    @rule()
    def wait_for_grace(self) -> None:
        self.step(self.world.cloud.wait_for_grace)

    @rule(edge=edges)
    def hear(self, edge: int) -> None:
        self.step(lambda: self.world.hear(edge))

    @rule(which=st.integers(0, 1000))
    def hear_again(self, which: int) -> None:
        self.step(lambda: self.world.hear_again(which))

    @rule(edge=edges)
    def beat(self, edge: int) -> None:
        self.step(lambda: self.world.beat(edge))

    @rule(edge=edges)
    def keep(self, edge: int) -> None:
        self.step(self.world.edges[edge].keep)

    @rule(edge=edges)
    def resend(self, edge: int) -> None:
        self.step(self.world.edges[edge].resend)

    @rule(edge=edges)
    def drop_oldest(self, edge: int) -> None:
        self.step(self.world.edges[edge].drop_oldest)

    @rule(edge=edges)
    def kill(self, edge: int) -> None:
        self.step(self.world.edges[edge].kill)

    @rule(edge=edges, keep=st.sampled_from((0.0, 0.3, 0.9)), mix=st.integers(0, 1000))
    def cut_power(self, edge: int, keep: float, mix: int) -> None:
        self.step(lambda: self.world.edges[edge].cut_power(Random(mix), keep))

    @rule(edge=edges)
    def recover(self, edge: int) -> None:
        self.step(self.world.edges[edge].recover)

    @rule(edge=edges)
    def lose_disk(self, edge: int) -> None:
        self.step(lambda: self.world.lose_disk(edge, Path(tempfile.mkdtemp(dir=self.folder))))

    @rule()
    def replay(self) -> None:
        self.step(self.world.replay)

    @rule()
    def make_stream_again(self) -> None:
        self.step(self.world.make_stream_again)

    @rule()
    def snapshot_database(self) -> None:
        self.step(self.world.snapshot_database)

    @rule(ends_sessions=st.booleans())
    def restore_database(self, ends_sessions: bool) -> None:
        self.step(lambda: self.world.restore_database(ends_sessions=ends_sessions))

    @precondition(lambda self: self.world.stream is None)
    @rule()
    def snapshot_stream(self) -> None:
        self.step(self.world.snapshot_stream)

    @precondition(lambda self: self.world.stream is not None and self.restored < 2)
    @rule()
    def restore_stream(self) -> None:
        self.restored += 1
        self.step(self.world.restore_stream)

    def teardown(self) -> None:
        try:
            self.run(self.world.settle())
        finally:
            self.run(self._forget())

    async def _forget(self) -> None:
        if self.world.database is not None:
            await self.servers.cloud.drop_snapshot(self.world.database)


@pytest.fixture
def servers(own_nats: Server, postgres_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Servers]:
    # The model's clocks move on when it says so.
    monkeypatch.setattr(gaps, "REPEAT_S", 0.0)
    monkeypatch.setattr(gaps, "UNKNOWN_S", 0.0)
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        # Short, so that little fills it and nothing is waited for; and no message is a suspect.
        given = settings_for(
            postgres_dsn,
            duplicate_window_s=0.1,
            ack_wait_ms=2000,
            abandon_grace_s=0.0,
            max_deliver=100_000,
            stream_messages_max=16,
        )
        database = runner.run(asyncpg.connect(postgres_dsn))
        runner.run(database.execute(f"ALTER TABLE sensor_data ADD CHECK (part_count <> {REFUSED_PART_COUNT})"))
        cloud = Cloud(own_nats, tmp_path, given, database)
        pristine = runner.run(cloud.snapshot_database())
        yield Servers(loop, cloud, pristine, tmp_path)
        runner.run(cloud.end())
        runner.run(database.close())


@pytest.mark.timeout(14_400 if LONG else 1800)
def test_delivery_e_whatever_happens_in_any_order(servers: Servers) -> None:
    @seed(SEED)
    class Machine(DeliveryMachine):
        pass

    Machine.servers = servers
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=60 if LONG else 40,
            deadline=None,
            database=None,
            # Shortening takes minutes, and is wanted where somebody looks at what was found.
            phases=[Phase.generate, *([Phase.shrink] if LONG else [])],
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        ),
    )
