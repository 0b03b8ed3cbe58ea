"""Agents in the test's own process: where many are needed, or recorded samples are fed at an accelerated clock."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cncmon_agent.agent import Agent
from robustness.traffic.generator import Generator
from robustness.traffic.machines import Machines
from robustness.traffic.services import common_settings
from testkit.agent import running_agent
from testkit.waiting import WAIT_S_MAX

LINGER_S = 2.0
"""Of an agent without a connection (`linger_offline_ms`): what decides how many batches an outage has."""

BATCHES_UNSYNCED_MAX = 250
"""So many are accepted at once: in a real outage the disk is not asked for more between two syncs, either."""


@dataclass(frozen=True)
class LocalAgent:
    """A running agent, and the generator whose samples go into its batches beside those of real machines."""

    agent: Agent
    accepted: Path
    generator: Generator

    async def live_through(self, seconds: float, *, interval_s: float = 1.0, linger_s: float = LINGER_S) -> int:
        """Accept what an outage of so many seconds brings, as fast as the disk takes it; return how many samples."""
        batcher = self.agent.batcher
        given = 0
        while seconds > 0:
            part_s = min(seconds, BATCHES_UNSYNCED_MAX * linger_s)
            given += await self.generator.run(
                batcher.add, batcher.cut, seconds=part_s, interval_s=interval_s, linger_s=linger_s
            )
            seconds -= part_s
            # An agent that has died is told of where it is awaited.
            async with asyncio.timeout(WAIT_S_MAX):
                await self.agent.storage.synced(self.agent.storage.buffer.range()[1] - 1)
        return given

    def accept_now(self) -> None:
        """Accept one live sample of each of the generator's machines."""
        for sample in self.generator.poll_now():
            self.agent.batcher.add(sample)


@contextlib.asynccontextmanager
async def local_agent(
    folder: Path,
    nats_url: str,
    *,
    edge: str,
    seed: int,
    generated: int,
    outage_s: float = 0.0,
    machines: Machines | None = None,
    **changes: Any,
) -> AsyncIterator[LocalAgent]:
    """Run an agent until the block ends, then stop it in order.

    generated: machines of the generator, whose time begins `outage_s` ago, so that the outage ends now.
    """
    folder.mkdir(parents=True, exist_ok=True)
    start = datetime.now(UTC) - timedelta(seconds=outage_s)
    generator = Generator(edge, generated, seed, folder / "polls-generated.jsonl", start)
    settings = common_settings(folder, edge, machines.documents if machines else None, **changes)
    try:
        async with running_agent(nats_url, settings) as agent:
            yield LocalAgent(agent, Path(settings.accepted_log), generator)
    finally:
        generator.close()
