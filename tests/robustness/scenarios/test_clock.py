"""Clocks that are wrong, are set, or know nothing yet: the edges', and that of NATS."""

import asyncio
import time
from pathlib import Path
from typing import Any

from robustness.faults.proxy import running_proxy
from robustness.scenarios.plant import LOCAL, Plant
from robustness.scenarios.size import LONG, SIZE
from robustness.traffic.shifted import VARIABLE, Setting
from robustness.validate.times import largest_error_s

HOUR_S = 3600
DAY_S = 24 * HOUR_S
SEEN_S = 2.5
"""An agent looks at its clock once a second."""


def shifted(clock: Path) -> dict[str, Any]:
    return {"module": "robustness.traffic.shifted", "environ": {VARIABLE: str(clock)}}


async def test_clock_steps(plant: Plant) -> None:
    """FAULT 7: an hour back and a day ahead; what claims to be of the future is a dead letter, nothing is lost."""
    clock = plant.folder / "clock.json"
    Setting().write(clock)
    async with plant.running(edges=1, agent=shifted(clock)):
        for _ in range(SIZE.freezes):
            for offset_s, name in ((-HOUR_S, "clock an hour back"), (DAY_S, "clock a day ahead")):
                await plant.flow()
                plant.note_fault(name)
                Setting(offset_s).write(clock)
                await asyncio.sleep(SEEN_S + SIZE.fault_s)
                await plant.recovered()
                Setting().write(clock)
                await asyncio.sleep(SEEN_S)
    finding = await plant.holds(dead={"future_timestamp"})
    assert finding.verdict.dead_lettered > 0


async def test_boot_in_1970_without_network(plant: Plant) -> None:
    """FAULT 32: no clock, no network; once there is time, samples read before get theirs, right to 100 ms."""
    clock = plant.folder / "clock.json"
    Setting(-time.time(), disciplined=False).write(clock)
    async with plant.running(edges=1, agent=shifted(clock), start=False):
        plant.note_fault("boot in 1970 without network")
        await plant.proxy.refuse()
        plant.agents[0].start()
        await asyncio.sleep(SEEN_S + SIZE.calm_s)
        polled = sum(machine.counter for machine in plant.machines[0].fleet.machines.values())
        assert polled > 0, "machines are read though nobody knows the time"
        await plant.proxy.open()
        await asyncio.sleep(SIZE.calm_s)
        Setting().write(clock)
        await plant.flow()
        await plant.recovered()
    error_s = await largest_error_s(plant.dsn, plant.polls)
    plant.notes["largest error of a time in ms"] = f"{error_s * 1000:.0f}"
    finding = await plant.holds()
    assert finding.sent >= polled
    # What passes between answer and stamp counts too, and is more where other tests run beside.
    assert error_s < (0.1 if LONG else 2.0)


async def test_clock_of_nats(plant: Plant) -> None:
    """FAULT 8: NATS' clock is 10 min ahead, and with that it takes for new what it has had: all is sent twice.

    The duplicate window here is a second; PubAcks are withheld for longer than that, so that agents send again.
    """
    async with running_proxy((LOCAL, plant.nats.port)) as stream:
        async with plant.running(stream=stream):
            for number in range(SIZE.rounds):
                await plant.flow()
                plant.note_fault("clock of NATS 10 min ahead")
                stream.clock_s = 600
                plant.proxy.swallow_acks(1.0, plant.seed + number)
                await asyncio.sleep(SEEN_S + SIZE.fault_s)
                plant.proxy.swallow_acks(0.0, plant.seed)
                plant.proxy.cut()
                await plant.recovered()
                plant.note_fault("and back")
                stream.clock_s = 0
        held = await plant.held()
    plant.notes["batches twice in the stream"] = str(sum(times > 1 for times in held.values()))
    assert max(held.values()) > 1
    await plant.holds()
