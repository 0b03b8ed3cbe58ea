import asyncio
import gc
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cncmon_agent import ticks

pytestmark = pytest.mark.virtual_time


@given(st.integers(10, 3_600_000), st.floats(0, 1e8))
def test_a_grid_divides_its_interval_and_is_not_coarse(interval_ms: int, moment_s: float) -> None:
    aligned_s = ticks.aligned_s(moment_s, interval_ms / 1000)
    assert aligned_s >= moment_s - 1e-6
    # Within a fifth of the interval, or the 1 ms that is the finest.
    assert aligned_s - moment_s <= max(interval_ms / 5, 1) / 1000 + 1e-6
    again_s = ticks.aligned_s(aligned_s + interval_ms / 1000 - 1e-4, interval_ms / 1000)
    assert round(again_s * 1000) == round(aligned_s * 1000) + interval_ms


@pytest.mark.parametrize(("interval_s", "moments"), [(0.1, 5), (1.0, 5), (0.05, 5), (0.01, 5), (0.033, 33)])
def test_machines_of_one_interval_share_few_moments(interval_s: float, moments: int) -> None:
    phases = [Fraction(number, 1000) * Fraction(interval_s) for number in range(1000)]
    found = {round(ticks.aligned_s(float(1000 + phase), interval_s) * 1000) for phase in phases}
    # One more: the last of them is the first of the next interval.
    assert moments <= len(found) <= moments + 1


async def test_all_who_wait_for_a_moment_are_woken_by_one_timer() -> None:
    here = ticks.of_running_loop()
    assert here is ticks.of_running_loop()
    due_s = time.monotonic() + 0.05
    waiting = [here.at(due_s) for _ in range(50)]
    later = here.at(due_s + 0.05)
    assert len(here._waiting) == 2
    waiting[7].cancel()
    await asyncio.wait(waiting)
    assert abs(time.monotonic() - due_s) < 0.03
    assert not later.done()
    await later
    assert here._waiting == {}


async def test_what_has_passed_is_due_at_once() -> None:
    started = time.monotonic()
    await ticks.of_running_loop().at(started - 10)
    assert time.monotonic() - started < 0.03


def test_a_loop_that_is_gone_is_forgotten() -> None:
    async def look() -> None:
        # Cancelled, and far off: what a poller leaves behind when it is stopped.
        ticks.of_running_loop().at(time.monotonic() + 3600).cancel()

    gc.collect()
    before = len(ticks._of_loop)
    for _ in range(3):
        asyncio.run(look())
    gc.collect()
    assert len(ticks._of_loop) <= before
