"""Samples that fill a disk in seconds: valid ones, each with kilobytes that hardly compress, and counted."""

import asyncio
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from cncmon_agent.agent import Agent
from cncmon_agent.batch import make
from cncmon_agent.buffer.spool import Spool
from cncmon_agent.epochs import Epochs
from cncmon_agent.settings import AgentSettings
from cncmon_agent.storage import spool_settings
from cncmon_core.sample import Sample, encode_sample
from testkit.waiting import WAIT_S_MAX

FRAMES: Final = 8
"""Samples in a batch: some 16 KiB compressed at level 1, a seventh less at level 9, a third less at 19."""

BATCHES_UNSYNCED_MAX: Final = 25


class Samples:
    """A source of samples, numbered from `first` on. One seed, one story."""

    def __init__(self, machine: str = "bulky", seed: int = 1, first: int = 0) -> None:
        self._machine = machine
        rng = random.Random(seed)
        self._curves = [" ".join(_curve(rng)) for _ in range(64)]
        self._began = datetime.now(UTC) - timedelta(hours=1)
        self.number = first

    def take(self, count: int = FRAMES) -> Iterator[Sample]:
        """Yield the next samples."""
        for _ in range(count):
            self.number += 1
            yield Sample(
                machine_id=self._machine,
                timestamp=self._began + timedelta(milliseconds=10 * self.number),
                temperature=40.0,
                spindle_speed=1000.0,
                machine_state="running",
                active_program_line=self.number,
                extras={"curve": self._curves[self.number % len(self._curves)]},
            )


def _curve(rng: random.Random) -> Iterator[str]:
    value = rng.uniform(0, 500)
    for _ in range(900):
        value += rng.uniform(-0.5, 0.5)
        yield f"{value:.2f}"


class Filled(NamedTuple):
    """What lies in a data folder."""

    epoch: int
    batches: int
    samples: int
    segments: int


def fill(settings: AgentSettings, size: int, samples: Samples | None = None) -> Filled:
    """Leave a data folder as an agent does that was stopped after an outage: so many bytes of batches, all synced."""
    data = Path(settings.data_dir)
    data.mkdir(parents=True, exist_ok=True)
    samples = samples or Samples("backlog")
    epochs = Epochs(data, settings.site, settings.edge)
    spool = Spool(data / "spool", spool_settings(settings))
    log = spool.begin(epochs.current.epoch)
    written = number = 0
    while written < size:
        frames = [encode_sample(sample) for sample in samples.take()]
        batch = make(epochs.current.epoch, number + 1, number * FRAMES, "samples", frames, 1, 1_700_000_000_000)
        assert log.append(batch)
        number += 1
        written += batch.bytes
        if not number % BATCHES_UNSYNCED_MAX:
            _sync(spool)
    _sync(spool)
    segments = len(spool.segments())
    epochs.current.last_seq, epochs.current.last_samples = number, number * FRAMES
    epochs.save()
    spool.close()
    return Filled(epochs.current.epoch, number, number * FRAMES, segments)


def _sync(spool: Spool) -> None:
    if (work := spool.sync_work()) is not None:
        work.run()
        spool.synced(work)


async def feed(agent: Agent, samples: Samples, size: int) -> int:
    """Let a running agent accept so many bytes of batches as fast as its disk takes them; return how many samples."""
    began, number = agent.storage.accepted_bytes, samples.number
    batches = 0
    while agent.storage.accepted_bytes - began < size:
        for sample in samples.take():
            agent.batcher.add(sample)
        agent.batcher.cut()
        batches += 1
        if not batches % BATCHES_UNSYNCED_MAX:
            await _all_synced(agent)
        await asyncio.sleep(0)
    # Whoever feeds little, but often, must not get ahead of the disk either.
    await _all_synced(agent)
    return samples.number - number


async def _all_synced(agent: Agent) -> None:
    # A dead agent is reported by whoever awaits it.
    async with asyncio.timeout(WAIT_S_MAX):
        await agent.storage.synced(agent.storage.buffer.range()[1] - 1)
