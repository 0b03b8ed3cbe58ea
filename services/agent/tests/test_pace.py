"""The backlog's pace: bytes by time, and what is learned from acknowledgements."""

import asyncio
import time

import pytest

from cncmon_agent.pace import QUIET_S, CommitLag, Latency, Pace

pytestmark = pytest.mark.virtual_time


async def test_so_many_bytes_take_so_long() -> None:
    pace = Pace(1_000_000)
    began_s = time.monotonic()
    for _ in range(30):
        await pace.ready()
        pace.spend(10_000)
    # 300 kB at 1 MB/s, less a burst of 50 kB and the debt of the last.
    assert 0.2 < time.monotonic() - began_s < 0.6
    assert pace.spent_bytes == 300_000


async def test_a_rate_of_zero_holds_until_it_is_raised() -> None:
    pace = Pace(0)
    spending = asyncio.create_task(pace.ready())
    await asyncio.sleep(0.05)
    assert not spending.done()
    pace.bytes_per_s = 1000
    await asyncio.wait_for(spending, 1)


async def test_one_batch_larger_than_the_burst_goes_and_the_next_waits() -> None:
    pace = Pace(100_000)
    await asyncio.sleep(0.06)
    await asyncio.wait_for(pace.ready(), 0.1)
    pace.spend(50_000)
    began_s = time.monotonic()
    await pace.ready()
    assert time.monotonic() - began_s > 0.3


async def test_a_slow_rate_that_is_raised_lets_the_waiting_go() -> None:
    pace = Pace(1)
    await pace.ready()
    pace.spend(1000)
    spending = asyncio.create_task(pace.ready())
    await asyncio.sleep(0.02)
    pace.bytes_per_s = 1_000_000
    await asyncio.wait_for(spending, 1)


def test_the_mean_is_of_those_since_last_asked() -> None:
    latency = Latency()
    assert latency.take() is None
    latency.observe(0.1)
    latency.observe(0.3)
    assert latency.take() == pytest.approx(0.2)
    assert latency.take() is None
    assert latency.recent_s == pytest.approx(0.14)
    latency.begin()
    assert latency.recent_s == 0.0


def test_the_lag_is_that_of_the_newest_that_got_there() -> None:
    lag = CommitLag()
    for stream_seq, at_s in ((5, 1.0), (7, 2.0), (9, 3.0)):
        lag.taken(stream_seq, at_s)
    assert lag.take(3.1) is None
    lag.told(8, 3.2)
    # 7 took 1.2 s; 9 has waited 0.2 s.
    assert lag.take(3.2) == pytest.approx(1.2)
    assert lag.take(3.3) is None
    # Nothing gets there any more: the age of what waits tells.
    assert lag.take(3.0 + QUIET_S + 0.5) == pytest.approx(QUIET_S + 0.5)
    lag.begin()
    assert lag.take(100.0) is None


def test_a_stream_made_anew_is_not_taken_for_a_database_that_is_away() -> None:
    lag = CommitLag()
    lag.taken(5000, 1.0)
    lag.told(4999, 1.1)
    lag.taken(5001, 1.2)
    lag.told(5000, 1.3)
    assert lag.take(1.3) == pytest.approx(0.3)
    lag.taken(1, 2.0)
    lag.told(1, 2.1)
    assert lag.take(60.0) == pytest.approx(0.1)
    assert lag.take(61.0) is None


def test_without_a_word_of_the_database_nothing_is_known_of_it() -> None:
    lag = CommitLag()
    for number in range(10_000):
        lag.taken(number, 0.0)
    assert lag.take(1000.0) is None
    assert len(lag._waiting) <= 4096


async def test_what_is_on_its_way_is_bounded_and_what_came_twice_is_not_on_its_way() -> None:
    pace = Pace(1e9)
    pace.bound(1000)
    pace.spend(600)
    await asyncio.wait_for(pace.ready(), 1)
    pace.spend(600)
    waiting = asyncio.create_task(pace.ready())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    # A duplicate: the database has it by another message, and no floor will tell of this one.
    pace.refund(600)
    await asyncio.wait_for(waiting, 1)
    pace.spend(600)
    waiting = asyncio.create_task(pace.ready())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    pace.committed(1200)
    await asyncio.wait_for(waiting, 1)
    pace.spend(5000)
    pace.begin()
    await asyncio.wait_for(pace.ready(), 1)
