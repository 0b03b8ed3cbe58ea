import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cncmon_agent.forecast import BUCKET_S, RateMeter, hours_left


def test_nothing_is_told_before_a_bucket_is_full() -> None:
    meter = RateMeter()
    meter.observe(5000, BUCKET_S / 2)
    assert meter.bytes_per_s is None
    meter.observe(5000, BUCKET_S / 2)
    assert meter.bytes_per_s == pytest.approx(5000)


def test_batches_seconds_apart_are_no_low_rate() -> None:
    """Offline a batch is cut every 2 s: most slots of 0.1 s see nothing, and one sees twenty times the rate."""
    meter = RateMeter()
    for slot in range(6000):
        meter.observe(125_000 if slot % 20 == 0 else 0, 0.1)
    assert meter.bytes_per_s == pytest.approx(6250, rel=0.01)


def test_a_burst_is_no_trend_and_a_lasting_change_is() -> None:
    meter = RateMeter()
    for _ in range(60):
        meter.observe(1000, 10)
    meter.observe(10_000_000, 10)
    burst = meter.bytes_per_s
    assert burst is not None
    assert burst < 1100
    for _ in range(180):
        meter.observe(3000, 10)
    assert meter.bytes_per_s == pytest.approx(3000, rel=0.1)


def test_zero_inflow_is_zero_and_what_follows_is_believed() -> None:
    meter = RateMeter()
    for _ in range(10):
        meter.observe(0, 10)
    assert meter.bytes_per_s == 0
    assert hours_left(1e9, 1e6, meter.bytes_per_s) is None
    for _ in range(200):
        meter.observe(500, 10)
    assert meter.bytes_per_s == pytest.approx(500, rel=0.1)


@pytest.mark.parametrize(("rate", "dt_s"), [(math.nan, 1), (math.inf, 1), (-5, 1), (5, 0), (5, -1), (5, math.inf)])
def test_impossible_slots_are_ignored(rate: float, dt_s: float) -> None:
    meter = RateMeter()
    meter.observe(100, BUCKET_S)
    meter.observe(rate, dt_s)
    assert meter.bytes_per_s == pytest.approx(100)


@pytest.mark.parametrize(
    ("capacity", "held", "inflow", "expected"),
    [
        (3.6e9, 0, 1000, 1000.0),
        (3.6e6, 1.8e6, 1000, 0.5),
        (16 << 20, 16 << 20, 1000, 0.0),
        (1e6, 2e6, 1000, 0.0),
        (0, 0, 1000, 0.0),
        (1e9, 0, None, None),
        (1e9, 0, 0.0, None),
        (1e12, 0, 1e-3, None),
    ],
)
def test_hours_left(capacity: float, held: float, inflow: float | None, expected: float | None) -> None:
    assert hours_left(capacity, held, inflow) == (expected if expected is None else pytest.approx(expected))


def test_recompression_counts_only_when_measured() -> None:
    plain = hours_left(1e9, 5e8, 6250)
    assert hours_left(1e9, 5e8, 6250, recompressible_bytes=5e8) == plain
    # 0.5 GB free and 0.1 GB to be won; and each byte to come takes 0.8.
    better = hours_left(1e9, 5e8, 6250, recompressible_bytes=5e8, gain=0.2)
    assert better == pytest.approx(6e8 / (6250 * 0.8) / 3600)


@given(
    capacity=st.floats(0, 1e12),
    held=st.floats(0, 1e12),
    more=st.floats(0, 1e12),
    inflow=st.floats(1, 1e7),
    gain=st.none() | st.floats(-1, 2),
)
def test_more_held_never_means_more_hours(
    capacity: float, held: float, more: float, inflow: float, gain: float | None
) -> None:
    less, full = hours_left(capacity, held, inflow, gain=gain), hours_left(capacity, held + more, inflow, gain=gain)
    assert full is None or full >= 0
    assert less is None or (full is not None and full <= less)
