"""Polling of real Modbus servers: simulated machines with faults on command and a log of what they answered."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cncmon_agent import poller as module
from cncmon_agent.poller import Poller
from cncmon_core import machine_files
from cncmon_core.sample import Sample
from cncmon_simulator import Settings, Simulator, documents, poll_log, running
from cncmon_simulator.faults import Fault, parse
from testkit.recorder import Recorder, right_clock, until

pytestmark = pytest.mark.virtual_time

INTERVAL_S = 0.05


class Plant:
    """Simulated machines and the pollers that read them."""

    def __init__(self, simulator: Simulator, pollers: dict[str, Poller], recorder: Recorder, polls: Path) -> None:
        self.simulator = simulator
        self.pollers = pollers
        self.recorder = recorder
        self._polls = polls

    async def fault(self, name: str, **fault: Any) -> None:
        await self.simulator.fleet.set_fault(name, parse(fault) if "registers" in fault else Fault(**fault))

    async def clear(self, name: str) -> None:
        await self.simulator.fleet.clear_faults(name)

    def answered(self) -> dict[tuple[str, int], dict[str, Any]]:
        self.simulator.fleet.flush()
        return {(record.machine_id, record.counter): record.values for record in poll_log.read(self._polls)}


Run = Callable[..., contextlib.AbstractAsyncContextManager[Plant]]


@pytest.fixture
def plant(tmp_path: Path, settings_of) -> Run:
    """Return a context manager that runs a plant; its arguments are the simulator's and `agent`'s settings."""

    @contextlib.asynccontextmanager
    async def run(agent: dict[str, Any] | None = None, timeout_ms: int = 150, **changes: Any) -> AsyncIterator[Plant]:
        settings = settings_of(**(agent or {}))
        polls, machines = tmp_path / "polls.jsonl", tmp_path / "machines.yaml"
        defaults: dict[str, Any] = {
            "machines": 1,
            "port_base": 0,
            "control_port": -1,
            "behaviour": "reference",
            "poll_interval_ms": int(INTERVAL_S * 1000),
            "poll_log": str(polls),
        }
        async with running(Settings(**(defaults | changes))) as simulator:
            documents.write(simulator.fleet, machines)
            machines.write_text(machines.read_text().replace("modbus:", f"modbus:\n      timeoutMs: {timeout_ms}"))
            found = machine_files.load([machines])
            assert not found.problems
            recorder, clock = Recorder(), right_clock()
            pollers = {name: Poller(m, settings, recorder, clock) for name, m in found.machines.items()}
            tasks = [asyncio.create_task(poller.run()) for poller in pollers.values()]
            try:
                yield Plant(simulator, pollers, recorder, polls)
            finally:
                for task in tasks:
                    task.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [r for r in results if not isinstance(r, asyncio.CancelledError)] == []

    return run


ONE, TWO = "cnc-001", "cnc-002"


async def test_polls_are_on_time_and_do_not_drift(plant: Run) -> None:
    async with plant() as here:
        missed = module.MISSED._value.get()
        await asyncio.sleep(1.5)
        times = here.recorder.times(ONE)
        missed = module.MISSED._value.get() - missed
    assert 27 <= len(times) + missed <= 31
    # Each against a fixed grid, on which a busy test machine may cost a place or two: lateness does not add up.
    late = sorted((at_s - times[0]) % INTERVAL_S for at_s in times)
    early = [min(late_s, INTERVAL_S - late_s) for late_s in late]
    assert sorted(early)[len(early) * 3 // 4] < INTERVAL_S / 5


async def test_a_sample_is_what_the_machine_answered(plant: Run) -> None:
    async with plant(behaviour="shop", name_prefix="cnc-") as here:
        await until(lambda: len(here.recorder.of(ONE)) >= 10)
        assert right(here, here.recorder.of(ONE)) >= 10
        report = here.pollers[ONE].report
        assert (report.state, report.error, report.signals) == ("connected", None, {})
        assert report.last_sample == here.recorder.of(ONE)[-1].timestamp


def right(here: Plant, samples: list[Sample]) -> int:
    """Compare samples with the log, field by field; return how many could be compared."""
    answered = here.answered()
    counters = []
    for sample in samples:
        if sample.machine_state == "offline":
            continue
        extras = sample.extras or {}
        counters.append(extras["poll_counter"])
        for name, value in answered[sample.machine_id, extras["poll_counter"]].items():
            found = getattr(sample, name) if name in Sample.__struct_fields__ else extras.get(name)
            assert found == (pytest.approx(value, rel=5.1e-9) if isinstance(value, float) else value), name
    assert counters == sorted(set(counters))
    return len(counters)


@pytest.mark.parametrize(
    "fault",
    [{"fault": "off"}, {"fault": "drop"}, {"fault": "late", "delay_ms": 60_000}, {"fault": "exception", "code": 4}],
    ids=lambda fault: fault["fault"],
)
async def test_one_dead_machine_delays_no_other(plant: Run, fault: dict[str, Any]) -> None:
    async with plant(machines=2) as here:
        await here.fault(TWO, **fault)
        await until(lambda: here.pollers[TWO].report.state == "offline")
        start_s = time.monotonic()
        await asyncio.sleep(1)
        times = [at_s for at_s in here.recorder.times(ONE) if at_s >= start_s]
        assert here.pollers[TWO].report.state == "offline"
        assert {sample.machine_state for sample in here.recorder.of(TWO)} - {"running"} == {"offline"}
    # 20 are due; behind a machine that takes 150 ms to fail there would be 7.
    assert len(times) >= 15
    gaps = sorted(b - a for a, b in itertools.pairwise(times))
    assert gaps[len(gaps) * 3 // 4] < 2 * INTERVAL_S


async def test_a_machine_that_is_off_is_offline_then_reported_again_then_back(plant: Run) -> None:
    async with plant(agent={"offline_after_failures": 3}) as here:
        recorder, report = here.recorder, here.pollers[ONE].report
        await until(lambda: len(recorder.of(ONE)) >= 3)
        assert report.state == "connected"
        connected_since = report.since
        await here.fault(ONE, fault="off")
        await until(lambda: report.state == "offline")
        assert report.since > connected_since
        assert "127.0.0.1" in (report.error or "")
        before = len(recorder.of(ONE))
        await asyncio.sleep(1.0)
        offline = [s for s in recorder.of(ONE) if s.machine_state == "offline"]
        # At once, then every 300 ms.
        assert 3 <= len(offline) <= 5
        assert len(recorder.of(ONE)) == before + len(offline) - 1
        for sample in offline:
            assert sample == Sample(ONE, sample.timestamp, None, None, machine_state="offline")
        steps = [b.timestamp - a.timestamp for a, b in itertools.pairwise(offline)]
        assert all(timedelta(seconds=0.25) < step < timedelta(seconds=0.7) for step in steps)
        offline_since = report.since
        await here.clear(ONE)
        await until(lambda: report.state == "connected", 2)
        assert report.since > offline_since
        assert report.error is None
        resumed = len(recorder.of(ONE))
        await asyncio.sleep(0.5)
        assert len(recorder.of(ONE)) >= resumed + 7
        assert right(here, recorder.of(ONE)) >= 10


async def test_a_machine_that_was_never_there_is_offline_too(plant: Run) -> None:
    async with plant(machines=1) as here:
        await here.fault(ONE, fault="off")
        await until(lambda: here.recorder.of(ONE)[-1:] and here.recorder.of(ONE)[-1].machine_state == "offline")
        assert here.pollers[ONE].report.state == "offline"


async def test_fewer_failures_than_that_are_no_outage_and_leave_no_error(plant: Run) -> None:
    async with plant(agent={"offline_after_failures": 1000}) as here:
        report = here.pollers[ONE].report
        await until(lambda: report.state == "connected")
        await here.fault(ONE, fault="drop")
        await until(lambda: report.error is not None)
        assert report.state == "connected"
        await here.clear(ONE)
        await until(lambda: report.error is None, 2)
        assert report.state == "connected"
        assert all(sample.machine_state != "offline" for sample in here.recorder.of(ONE))


async def test_the_breaker_spaces_the_tries(plant: Run) -> None:
    async with plant(agent={"retry_delay_ms_max": 300, "offline_report_ms": 60_000}) as here:
        await here.fault(ONE, fault="off")
        report = here.pollers[ONE].report
        await until(lambda: report.state == "offline")
        counted = module.POLLS.labels("failed")
        before = counted._value.get()
        await asyncio.sleep(1.5)
        tries = counted._value.get() - before
    # 30 would be due by the interval; jitter up to 300 ms makes some 9 of them.
    assert 3 <= tries <= 20


async def test_registers_that_are_refused_cost_their_signals_and_no_others(plant: Run) -> None:
    async with plant(name_prefix="cnc-") as here:
        await until(lambda: here.recorder.of(ONE))
        await here.fault(ONE, fault="exception", code=2, registers=[118, 121])
        report = here.pollers[ONE].report
        await until(lambda: report.signals)
        assert report.signals == {"total_power_kw": "Modbus exception 2 (illegal data address)"}
        assert report.state == "connected"
        count = len(here.recorder.of(ONE))
        await until(lambda: len(here.recorder.of(ONE)) > count + 3)
        answered = here.answered()
        for sample in here.recorder.of(ONE)[count + 1 :]:
            values = answered[ONE, (sample.extras or {})["poll_counter"]]
            assert sample.total_power_kw is None
            assert sample.temperature == pytest.approx(values["temperature"])
            assert sample.part_count == values["part_count"]


async def test_a_machine_that_refuses_all_for_a_moment_is_back_at_once(plant: Run) -> None:
    async with plant() as here:
        report = here.pollers[ONE].report
        await until(lambda: report.state == "connected")
        await here.fault(ONE, fault="exception", code=4)
        await until(lambda: report.state == "offline")
        await here.clear(ONE)
        await until(lambda: report.state == "connected", 2)
        assert report.signals == {}


@pytest.mark.parametrize(
    "fault",
    [
        {"fault": "late", "delay_ms": 200, "probability": 0.5},
        {"fault": "late", "delay_ms": 140, "probability": 0.5},
        {"fault": "wrong_transaction_id", "probability": 0.5},
        {"fault": "drop", "probability": 0.5},
    ],
    ids=lambda fault: f"{fault['fault']} {fault.get('delay_ms', '')}",
)
async def test_no_fault_on_the_way_gives_a_wrong_value(plant: Run, fault: dict[str, Any]) -> None:
    async with plant(agent={"offline_after_failures": 1000}, behaviour="shop", name_prefix="cnc-") as here:
        await here.fault(ONE, **fault)
        await asyncio.sleep(1.2)
        assert len(here.answered()) >= right(here, here.recorder.of(ONE)) >= 3
        await here.clear(ONE)
        before = len(here.recorder.of(ONE))
        await until(lambda: len(here.recorder.of(ONE)) >= before + 5, 3)
        right(here, here.recorder.of(ONE))


async def test_values_that_stand_still_are_passed_on_as_they_are(plant: Run) -> None:
    async with plant(time_scale=50) as here:
        await here.fault(ONE, fault="frozen")
        await until(lambda: len(here.recorder.of(ONE)) >= 10)
        samples = here.recorder.of(ONE)[3:]
        assert len({sample.temperature for sample in samples}) == 1
        assert len({(sample.extras or {})["poll_counter"] for sample in samples}) == len(samples)
        assert right(here, here.recorder.of(ONE)) >= 10


async def test_what_is_no_number_is_said_and_never_stored(plant: Run) -> None:
    async with plant() as here:
        await here.fault(ONE, fault="out_of_range")
        await until(lambda: len(here.recorder.of(ONE)) >= 8)
        assert right(here, here.recorder.of(ONE)) >= 8
        errors: dict[str, str] = {}
        async with asyncio.timeout(5):
            while not {"machine_state", "spindle_speed"} <= errors.keys():
                errors |= here.pollers[ONE].report.signals
                await asyncio.sleep(0.01)
        assert errors["machine_state"] == "the controller sent 99, which the enumeration does not have"
        assert "the controller sent" in errors["spindle_speed"]
        assert all(sample.machine_state is None for sample in here.recorder.of(ONE)[1:])
        await here.clear(ONE)
        await until(lambda: not here.pollers[ONE].report.signals)


async def test_a_poll_that_takes_longer_than_the_interval_is_counted_and_makes_no_burst(plant: Run) -> None:
    async with plant(timeout_ms=1000) as here:
        await until(lambda: here.recorder.of(ONE))
        missed = module.MISSED._value.get()
        await here.fault(ONE, fault="late", delay_ms=320)
        await asyncio.sleep(1)
        await here.clear(ONE)
        await asyncio.sleep(0.4)
        times = here.recorder.times(ONE)
        assert module.MISSED._value.get() - missed >= 5
    # What was missed is not caught up on: no more polls in any stretch than the interval allows, and one for lateness.
    for first, last in itertools.combinations(range(len(times)), 2):
        assert last - first <= (times[last] - times[first]) / INTERVAL_S + 2


async def test_machines_behind_one_port_are_read_side_by_side(plant: Run) -> None:
    async with plant(machines=4, addressing="unit_ids") as here:
        await here.fault(TWO, fault="off")
        await until(lambda: here.pollers[TWO].report.state == "offline")
        await asyncio.sleep(0.5)
        for name in (ONE, "cnc-003", "cnc-004"):
            assert len(here.recorder.of(name)) >= 8
            assert here.pollers[name].report.state == "connected"
            assert right(here, here.recorder.of(name)) >= 8
