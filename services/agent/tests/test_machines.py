"""The set of running pollers: what a new set touches and what it doesn't, and who looks after one that is stuck."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cncmon_agent import drivers, machines
from cncmon_agent.drivers import Driver, Reading, Told
from cncmon_agent.errors import UnreachableError
from cncmon_agent.machines import MachineSet
from cncmon_core import machine_files
from cncmon_core.machine import UNSET, Machine
from cncmon_simulator import Settings, Simulator, documents, running
from testkit.recorder import Recorder, right_clock, until

pytestmark = pytest.mark.virtual_time

INTERVAL_MS = 50
ONE, TWO, THREE = "cnc-001", "cnc-002", "cnc-003"


def with_spec(machine: Machine, **changes: Any) -> Machine:
    return msgspec.structs.replace(machine, spec=msgspec.structs.replace(machine.spec, **changes))


def with_connection(machine: Machine, **changes: Any) -> Machine:
    modbus = machine.spec.connection.modbus
    assert modbus is not UNSET
    connection = msgspec.structs.replace(machine.spec.connection, modbus=msgspec.structs.replace(modbus, **changes))
    return with_spec(machine, connection=connection)


class Here:
    """Simulated machines, a set that runs, and what it reads."""

    def __init__(
        self, simulator: Simulator, known: dict[str, Machine], running_set: MachineSet, taken: Recorder
    ) -> None:
        self.simulator = simulator
        self.known = known
        self.set = running_set
        self.recorder = taken

    def report(self, name: str) -> Any:
        return next(report for report in self.set.reports() if report.id == name)

    async def all_read(self, *names: str) -> None:
        await until(lambda: all(len(self.recorder.of(name)) >= 3 for name in names or self.known))


Run = Callable[..., contextlib.AbstractAsyncContextManager[Here]]


@pytest.fixture
def plant(tmp_path: Path, settings_of) -> Run:
    @contextlib.asynccontextmanager
    async def run(count: int = 3, **changes: Any) -> AsyncIterator[Here]:
        file = tmp_path / "machines.yaml"
        simulated = Settings(
            machines=count, port_base=0, control_port=-1, behaviour="reference", poll_interval_ms=INTERVAL_MS
        )
        async with running(simulated) as simulator:
            documents.write(simulator.fleet, file)
            known = machine_files.load([file]).machines
            recorder = Recorder()
            here = Here(simulator, known, MachineSet(settings_of(**changes), recorder, right_clock()), recorder)
            here.set.apply(known)
            task = asyncio.create_task(here.set.run())
            try:
                yield here
            finally:
                assert not task.done()
                task.cancel()
                began_s = time.monotonic()
                await asyncio.wait([task])
                assert time.monotonic() - began_s < machines.CLOSE_S_MAX + 1

    return run


def contiguous(counters: list[int]) -> bool:
    return all(b - a == 1 for a, b in itertools.pairwise(counters))


async def test_a_new_interval_counts_at_once_keeps_the_connection_and_leaves_the_others_alone(plant: Run) -> None:
    step_s = INTERVAL_MS / 1000
    async with plant() as here:
        slow = with_spec(here.known[ONE], poll_interval_ms=3_600_000)
        here.set.apply(here.known | {ONE: slow})
        await until(lambda: here.recorder.of(ONE))
        await here.all_read(TWO, THREE)
        count = len(here.recorder.of(ONE))
        since = {report.id: report.since for report in here.set.reports()}
        await asyncio.sleep(0.3)
        assert len(here.recorder.of(ONE)) <= count + 1
        began_s = time.monotonic()
        here.set.apply(here.known | {ONE: with_spec(slow, poll_interval_ms=20)})
        await until(lambda: len(here.recorder.of(ONE)) > count + 1)
        assert time.monotonic() - began_s < 1
        await asyncio.sleep(1)
        fast = here.recorder.times(ONE)[-20:]
        assert 0.015 < (fast[-1] - fast[0]) / 19 < 0.03
        assert {report.id: report.since for report in here.set.reports()} == since
        for name in (ONE, TWO, THREE):
            assert contiguous(here.recorder.counters(name))
        for name in (TWO, THREE):
            times = here.recorder.times(name)
            late = sorted((at_s - times[0]) % step_s for at_s in times)
            # Still on the grid on which it began: half of them closely, as a busy test machine delays the others.
            near = [late_s for late_s in late if min(late_s, step_s - late_s) < step_s / 5]
            assert len(near) > len(late) / 2


async def test_what_does_not_concern_reading_changes_nothing(plant: Run) -> None:
    async with plant(1) as here:
        await here.all_read()
        since = here.report(ONE).since
        here.set.apply({ONE: with_spec(here.known[ONE], display_name="Lathe", ideal_cycle_time_s=7.0)})
        await asyncio.sleep(0.2)
        assert here.report(ONE).since == since
        assert contiguous(here.recorder.counters(ONE))


async def test_changed_signals_and_connections_begin_that_machine_anew_and_no_other(plant: Run) -> None:
    async with plant() as here:
        await here.all_read()
        since = {report.id: report.since for report in here.set.reports()}
        last = here.report(ONE).last_sample
        fewer = [s for s in here.known[ONE].spec.signals if s.name in ("temperature", "spindle_speed", "poll_counter")]
        wanted = {
            ONE: with_spec(here.known[ONE], signals=fewer),
            TWO: with_connection(here.known[TWO], timeout_ms=700),
            THREE: here.known[THREE],
        }
        here.set.apply(wanted)
        await until(lambda: all(here.report(n).since > since[n] and here.report(n).error is None for n in (ONE, TWO)))
        assert here.report(ONE).last_sample >= last
        await until(lambda: here.recorder.of(ONE)[-1].x_pos_mm is None)
        assert here.report(THREE).since == since[THREE]
        await asyncio.sleep(0.2)
        assert contiguous(here.recorder.counters(THREE))


async def test_a_removed_machine_is_let_go_of_and_may_come_back(plant: Run) -> None:
    async with plant() as here:
        await here.all_read()
        here.set.apply({ONE: here.known[ONE], TWO: here.known[TWO]})
        assert [report.id for report in here.set.reports()] == [ONE, TWO]
        await asyncio.sleep(0.1)
        count = len(here.recorder.of(THREE))
        await asyncio.sleep(0.3)
        assert len(here.recorder.of(THREE)) == count
        here.set.apply({})
        here.set.apply(here.known)
        here.set.apply({})
        here.set.apply(here.known)
        await until(lambda: len(here.recorder.of(THREE)) > count + 3)
        await until(lambda: all(report.state == "connected" for report in here.set.reports()))
        for name in (ONE, TWO, THREE):
            counters = here.recorder.counters(name)
            assert counters == sorted(set(counters))
        assert here.set.healthy() is None


async def test_machines_are_spread_within_the_interval(plant: Run) -> None:
    async with plant() as here:
        await here.all_read()
        step_s = INTERVAL_MS / 1000
        firsts = sorted(here.recorder.times(name)[2] % step_s / step_s for name in here.known)
    gaps = [b - a for a, b in itertools.pairwise([*firsts, firsts[0] + 1])]
    assert min(gaps) > 0.1


class Odd:
    """A driver that does what a test wants when read."""

    def __init__(self, read: Callable[[], Any]) -> None:
        self._read = read
        self.closed = False

    def ask(self, told: Told) -> bool:
        return False

    async def read(self) -> Reading:
        return await self._read()

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[], Any]], list[Odd]]:
    """Give a machine an odd driver; returns those that were made."""
    real = drivers.make

    def give(name: str, read: Callable[[], Any]) -> list[Odd]:
        made: list[Odd] = []

        def make(machine: Machine) -> Driver:
            if machine.metadata.name != name:
                return real(machine)
            made.append(Odd(read))
            return made[-1]

        monkeypatch.setattr(drivers, "make", make)
        return made

    return give


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WATCH_S": 0.05, "RESTART_S": 0.1, "CLOSE_S_MAX": 0.2, "DEAD_S": 0.3}.items():
        monkeypatch.setattr(machines, name, value)
    monkeypatch.setattr(machines, "stuck_after_s", lambda _: 0.3)


async def for_ever() -> Reading:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


@pytest.mark.usefixtures("impatient")
async def test_a_stuck_poller_is_counted_and_begun_again_and_the_others_go_on(plant: Run, odd: Any) -> None:
    made = odd(TWO, for_ever)
    stuck = machines.STUCK._value.get()
    async with plant() as here:
        await until(lambda: len(made) >= 3)
        assert machines.STUCK._value.get() - stuck >= 2
        await until(lambda: (here.report(TWO).error or "").endswith("begun again"))
        assert all(driver.closed for driver in made[:-1])
        assert here.set.healthy() is None
        assert len(here.recorder.of(ONE)) >= 5
        assert contiguous(here.recorder.counters(ONE))


@pytest.mark.usefixtures("impatient")
async def test_nothing_but_stuck_pollers_is_what_a_restart_may_help_with(plant: Run, odd: Any) -> None:
    odd(ONE, for_ever)
    async with plant(1) as here:
        await until(lambda: here.set.healthy(), 5)
        assert "no machine's task made progress" in (here.set.healthy() or "")
        here.set.apply({})
        await until(lambda: here.set.healthy() is None, 2)


async def unreachable() -> Reading:
    raise UnreachableError("nobody there")


async def broken() -> Reading:
    raise RuntimeError("a fault of ours")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("read", [unreachable, broken])
async def test_what_fails_is_alive(plant: Run, odd: Any, read: Any) -> None:
    odd(ONE, read)
    async with plant(1) as here:
        await asyncio.sleep(1.2)
        assert here.set.healthy() is None


@pytest.mark.usefixtures("impatient")
async def test_a_fault_of_ours_takes_no_other_machine_along_and_is_tried_again(plant: Run, odd: Any) -> None:
    made = odd(TWO, broken)
    restarts = machines.RESTARTS._value.get()
    async with plant() as here:
        await until(lambda: len(made) >= 3)
        assert machines.RESTARTS._value.get() - restarts >= 2
        assert here.report(TWO).state == "connecting"
        assert contiguous(here.recorder.counters(ONE))


@pytest.mark.usefixtures("impatient")
async def test_a_driver_that_can_not_even_be_made(plant: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = drivers.make

    def make(machine: Machine) -> Driver:
        if machine.metadata.name == TWO:
            raise ValueError("no driver")
        return real(machine)

    monkeypatch.setattr(drivers, "make", make)
    async with plant() as here:
        await here.all_read(ONE, THREE)
        assert here.report(TWO).error == machines.INTERNAL
        monkeypatch.setattr(drivers, "make", real)
        await here.all_read(TWO)


async def test_a_new_document_does_not_wait_for_the_pause_after_a_fault(
    plant: Run, odd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "RESTART_S", 3600)
    made = odd(ONE, broken)
    async with plant(1) as here:
        await until(lambda: here.report(ONE).error == machines.INTERNAL)
        here.set.apply({ONE: with_connection(here.known[ONE], timeout_ms=700)})
        await until(lambda: len(made) >= 2, 1)


@pytest.mark.usefixtures("impatient")
async def test_a_task_that_does_not_end_is_left_behind_and_told(plant: Run, odd: Any) -> None:
    free = asyncio.Event()

    async def deaf() -> Reading:
        while not free.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await free.wait()
        raise asyncio.CancelledError

    made = odd(TWO, deaf)
    async with plant() as here:
        await until(lambda: here.set.healthy(), 5)
        assert "do not end" in (here.set.healthy() or "")
        assert len(made) >= 2
        assert contiguous(here.recorder.counters(ONE))
        free.set()
        await until(lambda: here.set.healthy() is None, 5)


@pytest.mark.usefixtures("impatient")
async def test_a_process_that_stood_still_blames_nobody(plant: Run) -> None:
    stuck = machines.STUCK._value.get()
    async with plant() as here:
        await here.all_read()
        time.sleep(0.8)
        await asyncio.sleep(0.2)
        assert machines.STUCK._value.get() == stuck
        assert here.set.healthy() is None


def test_how_long_a_poll_may_take(machine_of, settings_of) -> None:
    from cncmon_core.machine import Signal

    signals = [Signal(name=f"s{n}", register=n) for n in range(4)]
    assert machines.stuck_after_s(machine_of(signals, poll_interval_ms=100, timeout_ms=100)) == machines.STUCK_S_MIN
    assert machines.stuck_after_s(machine_of(signals, poll_interval_ms=5000, timeout_ms=1000)) == 20
    assert machines.stuck_after_s(machine_of(signals, poll_interval_ms=1000, timeout_ms=60_000)) == 303
