"""A week with its faults. The hours in which nothing happens pass at an accelerated clock; what breaks takes its time.

Seven days of samples of one edge are accepted as fast as its disk takes them; beside it another reads real machines.
Each day faults hit at random while both deliver, and last as long as they last: a process is started again after a
second, as its supervisor would. Time to repair is from the blow until all that was accepted by its end is in the
database, and for so long the week counts as not available.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from statistics import fmean

import pytest

from robustness.scenarios.plant import MakePlant, Plant
from robustness.scenarios.size import LONG, SIZE
from robustness.traffic.local import LocalAgent
from testkit.servers import Postgres

DAYS = 7
DAY_S = 86400
RESTART_S = 1.0
"""What a supervisor takes to see that a process is gone and to start it again."""

Fault = Callable[[Plant, Postgres], Awaitable[None]]


async def kill_ingest(plant: Plant, _: Postgres) -> None:
    plant.ingest.kill()
    await asyncio.sleep(RESTART_S)
    plant.ingest.start()


async def kill_agent(plant: Plant, _: Postgres) -> None:
    plant.agents[0].kill()
    await asyncio.sleep(RESTART_S)
    plant.agents[0].start()


async def kill_nats(plant: Plant, _: Postgres) -> None:
    plant.nats.kill()
    await asyncio.sleep(RESTART_S)
    await asyncio.to_thread(plant.nats.start)


async def kill_database(_: Plant, postgres: Postgres) -> None:
    postgres.kill()
    await asyncio.sleep(RESTART_S)
    await asyncio.to_thread(postgres.start)


async def freeze_database(plant: Plant, postgres: Postgres) -> None:
    postgres.pause()
    await asyncio.sleep(plant.dice.uniform(1, 5) * SIZE.fault_s)
    postgres.resume()


async def cut_network(plant: Plant, _: Postgres) -> None:
    await plant.proxy.refuse()
    await asyncio.sleep(plant.dice.uniform(1, 5) * SIZE.fault_s)
    await plant.proxy.open()


async def silence_network(plant: Plant, _: Postgres) -> None:
    plant.proxy.pause()
    await asyncio.sleep(plant.dice.uniform(1, 5) * SIZE.fault_s)
    plant.proxy.resume()


FAULTS: dict[str, Fault] = {
    "ingest kill -9": kill_ingest,
    "agent kill -9": kill_agent,
    "NATS kill -9": kill_nats,
    "PostgreSQL kill -9": kill_database,
    "database frozen": freeze_database,
    "network cut": cut_network,
    "network silent": silence_network,
}


@pytest.mark.timeout(SIZE.timeout_s * 2)
async def test_a_week(plant_with: MakePlant, migrated: Postgres) -> None:
    """0 lost, 0 doubled; beside it availability, mean time to repair and integrity of the week."""
    plant = plant_with(migrated.dsn)
    week_s = DAYS * DAY_S
    generated = plant.local_agent("week", seed=plant.seed, generated=SIZE.soak_machines, outage_s=week_s)
    # Each kind hits once before any hits again.
    blows = [name for _ in range(-(-DAYS * SIZE.soak_faults // len(FAULTS))) for name in FAULTS]
    plant.dice.shuffle(blows)
    repair_s: list[float] = []
    async with plant.running(edges=1, machines=2), generated as edge:
        await plant.flow()
        for name in blows:
            passing = asyncio.create_task(_pass(edge, week_s / len(blows)))
            await asyncio.sleep(plant.dice.uniform(0, 0.5) * SIZE.fault_s)
            plant.note_fault(name)
            began_s = time.monotonic()
            await FAULTS[name](plant, migrated)
            await plant.recovered()
            repair_s.append(time.monotonic() - began_s)
            await passing
    plant.notes["availability of the week"] = f"{1 - sum(repair_s) / week_s:.3%}"
    plant.notes["mean time to repair in s"] = f"{fmean(repair_s):.1f}"
    plant.notes["longest in s"] = f"{max(repair_s):.1f}"
    await plant.holds()
    if LONG:  # one test at a time: what it takes is the system's, not that of others on the machine
        assert sum(repair_s) / week_s < 0.001
        assert fmean(repair_s) < 300


async def _pass(edge: LocalAgent, seconds: float) -> None:
    await edge.live_through(seconds, interval_s=SIZE.soak_interval_s, linger_s=5 * SIZE.soak_interval_s)
