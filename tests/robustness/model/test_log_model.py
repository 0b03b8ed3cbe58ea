"""The log against its model, in random walks that hypothesis shortens when they fail."""

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from robustness.model.world import ERRORS, World

LONG = os.environ.get("CNCMON_ROBUSTNESS") == "long"


class LogMachine(RuleBasedStateMachine):
    """Everything that can happen to a log, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(1)

    @rule(sizes=st.lists(st.integers(1, 6000), min_size=1, max_size=12))
    def append(self, sizes: list[int]) -> None:
        for size in sizes:
            self.world.append(size)

    @rule()
    def append_too_much(self) -> None:
        assert not self.world.append(20_000)

    @rule()
    def begin_sync(self) -> None:
        self.world.begin_sync()

    @rule()
    def end_sync(self) -> None:
        self.world.end_sync()

    @rule()
    def sync(self) -> None:
        self.world.sync_all()

    @rule()
    def begin_move(self) -> None:
        self.world.begin_move()

    @rule()
    def end_move(self) -> None:
        self.world.end_move()

    @rule(data=st.data(), back=st.integers(-2, 30))
    def free(self, data: st.DataObject, back: int) -> None:
        epoch = data.draw(st.sampled_from(sorted(self.world.logs())))
        self.world.free(epoch, self.world.logs()[epoch].range()[1] - back)

    @rule(data=st.data(), seq=st.integers(0, 60))
    def read(self, data: st.DataObject, seq: int) -> None:
        epoch = data.draw(st.sampled_from(sorted(self.world.logs())))
        self.world.read(epoch, self.world.logs()[epoch].range()[0] - 1 + seq)

    @rule()
    def read_all(self) -> None:
        self.world.read_all()

    @rule(pieces=st.integers(1, 20))
    def recover(self, pieces: int) -> None:
        self.world.recover(pieces)

    @rule()
    def shed(self) -> None:
        self.world.spool.shed()
        self.world.check()

    @rule(call=st.sampled_from(sorted(ERRORS)), times=st.integers(1, 4))
    def fail(self, call: str, times: int) -> None:
        self.world.fail[call] = ERRORS[call], times

    @rule()
    def fill_disk(self) -> None:
        self.world.disk.capacity = self.world.disk.used + self.world.random.randrange(40_000)

    @rule()
    def empty_disk(self) -> None:
        self.world.disk.capacity = 1 << 30

    @rule(keep=st.sampled_from((0.0, 0.3, 0.9, 1.0)))
    def cut_power(self, keep: float) -> None:
        self.world.restart(power=True, keep=keep)

    @rule(size=st.integers(1, 6000), after=st.integers(0, 9000))
    def kill_while_appending(self, size: int, after: int) -> None:
        self.world.append_killed(size, after)

    @rule()
    def break_page(self) -> None:
        self.world.break_page()

    @rule()
    def kill(self) -> None:
        self.world.restart(power=False)

    @rule()
    def forget(self) -> None:
        for epoch, log in list(self.world.spool.earlier.items()):
            if not self.world.held(log):
                self.world.spool.forget(epoch)

    def teardown(self) -> None:
        self.world.restart(power=True)
        self.world.recover()
        self.world.read_all()


@pytest.mark.timeout(3600)
def test_the_log_is_as_its_model() -> None:
    run_state_machine_as_test(
        LogMachine,
        settings=settings(
            max_examples=4000 if LONG else 120,
            stateful_step_count=60 if LONG else 40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
