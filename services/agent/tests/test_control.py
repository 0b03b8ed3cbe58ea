import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cncmon_agent.compression import LEVELS
from cncmon_agent.control import QUEUE_MAX, Controller, ControlSettings, Decision, Observation

SETTINGS = ControlSettings()
GB = 1e9


def observed(now_s: float = 0.0, **changes: Any) -> Observation:
    values: dict[str, Any] = {
        "dt_s": 0.1,
        "online": True,
        "inflow_bytes_s": 6250.0,
        "backlog_bytes": 540e6,
        "unacked_bytes": 540e6,
        "warm_bytes": 540e6,
        "cold_bytes": 0.0,
        "capacity_warm_bytes": 400 * GB,
        "committed_bytes_s": 5e6,
        "ack_latency_s": 0.004,
    }
    return Observation(now_s=now_s, **(values | changes))


def controller(**changes: Any) -> Controller:
    return Controller(ControlSettings(**changes), random.Random(1))


def run(control: Controller, seconds: float, start_s: float = 0.0, **changes: Any) -> Decision:
    """Run slots of one kind, and return the last decision."""
    dt_s = changes.get("dt_s", 0.1)
    decisions = [control.step(observed(start_s + n * dt_s, **changes)) for n in range(max(1, round(seconds / dt_s)))]
    return decisions[-1]


def test_a_day_of_backlog_is_replayed_at_4_mb_a_second_within_two() -> None:
    assert run(controller(), 2.0).replay_bytes_per_s >= 4e6


def test_offline_nothing_is_replayed_and_a_connection_begins_anew() -> None:
    control = controller()
    fast = run(control, 5.0).replay_bytes_per_s
    assert run(control, 1.0, 5.0, online=False, ack_latency_s=None).replay_bytes_per_s == 0
    first = next(
        d.replay_bytes_per_s for n in range(20) if (d := control.step(observed(6 + n / 10))).replay_bytes_per_s
    )
    assert first < fast / 50


def test_edges_that_return_together_begin_at_different_times_and_rates() -> None:
    starts = set()
    for seed in range(50):
        control = Controller(SETTINGS, random.Random(seed))
        for slot in range(20):
            rate = control.step(observed(slot * 0.1, ack_latency_s=None)).replay_bytes_per_s
            if rate:
                assert slot * 0.1 <= SETTINGS.hold_s_max + 0.1
                starts.add((slot, round(rate)))
                break
    assert len(starts) == 50
    assert len({slot for slot, _ in starts}) >= 5


def test_without_an_answer_the_rate_does_not_grow() -> None:
    control = controller()
    assert run(control, 10.0, ack_latency_s=None).replay_bytes_per_s <= 1.5 * SETTINGS.replay_bytes_per_s_start


@pytest.mark.parametrize("signal", ["ack_latency_s", "commit_lag_s"])
def test_the_rate_falls_when_latency_rises_and_comes_back(signal: str) -> None:
    control = controller()
    fast = run(control, 3.0, **{signal: 0.05}).replay_bytes_per_s
    assert control.step(observed(3.0, **{signal: 0.35})).replay_bytes_per_s < fast / 2
    slow = run(control, 3.0, 3.1, **{signal: 2.0}).replay_bytes_per_s
    # Of the database's lag each fall waits for news of what went out after the one before.
    assert slow == SETTINGS.replay_bytes_per_s_min if signal == "ack_latency_s" else slow < fast / 8
    assert run(control, 12.0, 6.1, **{signal: 0.05}).replay_bytes_per_s > fast / 2


def test_a_long_way_is_no_queue() -> None:
    """By satellite each answer takes 600 ms; only what is over that is a queue."""
    assert run(controller(), 3.0, ack_latency_s=0.6).replay_bytes_per_s >= 4e6


def test_a_queue_that_lasts_is_not_taken_for_the_way() -> None:
    control = controller()
    run(control, 1.0, ack_latency_s=0.004)
    # For ten minutes the lowest latency lately is that of the queue.
    last = run(control, 600.0, 1.0, ack_latency_s=0.3, ack_latency_floor_s=0.3)
    assert last.replay_bytes_per_s == SETTINGS.replay_bytes_per_s_min


def test_the_share_does_not_grow_beyond_what_is_used() -> None:
    control = controller()
    used = 1e6
    assert run(control, 10.0, replayed_bytes_s=used).replay_bytes_per_s <= 2 * used


def test_a_closed_loop_keeps_a_server_busy_and_live_latency_low() -> None:
    """A server of 2 MB/s: its queue delays answers, as in bench.control with everything else left out."""
    control, queue, server = controller(), 0.0, 2e6
    rate, served, delays = 0.0, 0.0, []
    for slot in range(600):
        queue += rate * 0.1
        out = min(queue, server * 0.1)
        queue, served = queue - out, served + out
        delays.append(queue / server)
        rate = control.step(observed(slot * 0.1, ack_latency_s=0.004 + queue / server)).replay_bytes_per_s
    assert served > 0.9 * server * 60
    assert sorted(delays)[int(0.99 * len(delays))] < 0.3
    assert max(delays[300:]) < 0.1


def test_cold_begins_on_the_forecast_before_the_limit_and_not_before_it_is_in_sight() -> None:
    def at(fill: float) -> Decision:
        held = fill * GB
        return run(
            controller(), 60, online=False, ack_latency_s=None, inflow_bytes_s=20_000.0,
            warm_bytes=held, unacked_bytes=held, capacity_warm_bytes=GB, dt_s=1.0,
        )  # fmt: skip

    # 1 GB is 14 hours, and the horizon is a day.
    assert not at(0.02).to_cold
    assert at(0.5).to_cold
    roomy = run(controller(), 60, online=False, ack_latency_s=None, dt_s=1.0)
    assert not roomy.to_cold


def test_a_backlog_that_is_going_away_is_not_moved() -> None:
    full: dict[str, Any] = {
        "inflow_bytes_s": 20_000.0,
        "warm_bytes": 0.9 * GB,
        "unacked_bytes": 0.9 * GB,
        "capacity_warm_bytes": GB,
    }
    control = controller()
    assert run(control, 30, online=False, ack_latency_s=None, **full).to_cold
    assert not run(control, 3, 30.0, **full).to_cold


def test_another_disk_is_worth_a_plain_copy_and_a_full_one_is_not() -> None:
    full: dict[str, Any] = {"online": False, "ack_latency_s": None, "inflow_bytes_s": 20_000.0, "dt_s": 1.0}
    room: dict[str, Any] = {"warm_bytes": 0.2 * GB, "unacked_bytes": 0.2 * GB, "capacity_warm_bytes": GB}
    other = run(controller(), 60, **full, **room, capacity_cold_bytes=10 * GB)
    assert other.to_cold
    assert other.compression_level == 1
    assert not run(controller(), 60, **full, **room, capacity_cold_bytes=GB, cold_bytes=GB).to_cold


def test_levels_rise_with_shortage_and_fall_with_the_processor() -> None:
    def level(control: Controller, fill: float, cpu_share: float) -> int:
        held = fill * GB
        return run(
            control, 600, online=False, ack_latency_s=None, inflow_bytes_s=20_000.0, dt_s=1.0,
            warm_bytes=held, unacked_bytes=held, capacity_warm_bytes=GB, cpu_share=cpu_share,
        ).compression_level  # fmt: skip

    control = controller()
    low, high = level(control, 0.35, 0.1), level(control, 0.95, 0.1)
    assert low < high == 19
    busy = level(control, 0.95, 1.0)
    assert busy < high
    assert level(control, 0.95, 0.1) == high


def test_recompression_that_saves_nothing_is_given_up() -> None:
    full: dict[str, Any] = {"online": False, "ack_latency_s": None, "inflow_bytes_s": 20_000.0, "dt_s": 1.0}
    full |= {"warm_bytes": 0.9 * GB, "unacked_bytes": 0.9 * GB, "capacity_warm_bytes": GB}
    control = controller()
    assert run(control, 60, **full).to_cold
    assert not run(control, 1, 60.0, **full, recompress_gain=0.0, recompress_level=15).to_cold


def test_what_the_stream_has_is_shed_first_until_the_stream_loses_something() -> None:
    control = controller()
    half: dict[str, Any] = {"unacked_bytes": 270e6, "dt_s": 10.0}
    assert run(control, 10, **half).shed == "taken_first"
    assert run(control, 10, **half, stream_lost=True).shed == "oldest"
    assert run(control, 60, **half).shed == "oldest"
    assert run(control, 3600 * 3, **half).shed == "taken_first"


@pytest.mark.parametrize("unacked", [0.0, 540e6, 600e6])
def test_with_nothing_to_choose_the_oldest_goes(unacked: float) -> None:
    assert run(controller(), 1, unacked_bytes=unacked).shed == "oldest"


def test_hours_left_is_told_once_the_rate_is_known() -> None:
    control = controller()
    room: dict[str, Any] = {"warm_bytes": 0.0, "capacity_warm_bytes": 6250 * 3600 * 48.0}
    assert run(control, 5, **room).hours_left is None
    assert run(control, 10, **room).hours_left == pytest.approx(48)
    assert run(control, 7200, dt_s=10.0, inflow_bytes_s=0.0, **room).hours_left is None


def test_a_larger_v_spends_less() -> None:
    room: dict[str, Any] = {"online": False, "ack_latency_s": None, "inflow_bytes_s": 20_000.0, "dt_s": 1.0}
    room |= {"warm_bytes": 0.6 * GB, "unacked_bytes": 0.6 * GB, "capacity_warm_bytes": GB}
    assert run(controller(), 60, **room).to_cold
    assert not run(controller(v=100.0), 60, **room).to_cold


latencies = st.none() | st.floats(0.0, 20.0)
sizes = st.floats(0, 1e12)
observations = st.builds(
    Observation,
    now_s=st.floats(0, 1e9),
    dt_s=st.floats(0, 30),
    online=st.booleans(),
    inflow_bytes_s=st.floats(0, 1e8),
    backlog_bytes=sizes,
    unacked_bytes=sizes,
    warm_bytes=sizes,
    cold_bytes=sizes,
    capacity_warm_bytes=sizes,
    capacity_cold_bytes=st.just(0.0) | sizes,
    ack_latency_s=latencies,
    ack_latency_floor_s=latencies,
    commit_lag_s=latencies,
    replayed_bytes_s=st.none() | st.floats(0, 1e9),
    cpu_share=st.floats(0, 8),
    written_bytes_s=st.floats(0, 1e9),
    recompress_gain=st.none() | st.floats(-1, 1),
    recompress_level=st.sampled_from([1, 6, 9, 12, 15, 19, 7]),
    stream_lost=st.booleans(),
)


@settings(max_examples=200)
@given(st.lists(observations, min_size=1, max_size=40))
def test_whatever_is_seen_decisions_and_queues_stay_in_bounds(seen: list[Observation]) -> None:
    control = controller()
    for each in seen:
        got = control.step(each)
        assert 0 <= got.replay_bytes_per_s <= SETTINGS.replay_bytes_per_s_max
        assert not got.replay_bytes_per_s or (each.online and each.backlog_bytes)
        assert got.compression_level in [level.level for level in LEVELS]
        assert got.hours_left is None or got.hours_left >= 0
        queues = control.queues
        assert all(0 <= getattr(queues, name) <= QUEUE_MAX for name in queues.__struct_fields__)
        assert queues.backlog <= 1
        assert queues.insurance <= 1


slots = st.lists(st.floats(0.001, 3.0), min_size=12, max_size=60)


@given(slots, st.floats(1, 1e9), st.floats(1, 1e9))
def test_more_backlog_is_never_replayed_slower(acks: list[float], one: float, other: float) -> None:
    small, large = controller(), controller()
    for slot, ack_s in enumerate(acks):
        slower = small.step(observed(slot * 0.1, backlog_bytes=min(one, other), ack_latency_s=ack_s))
        faster = large.step(observed(slot * 0.1, backlog_bytes=max(one, other), ack_latency_s=ack_s))
        assert slower.replay_bytes_per_s <= faster.replay_bytes_per_s * (1 + 1e-9)


@given(slots, st.floats(0.001, 3.0), st.floats(0.0, 3.0))
def test_more_latency_is_never_replayed_faster(acks: list[float], last_s: float, more_s: float) -> None:
    quick, slow = controller(), controller()
    for slot, ack_s in enumerate(acks):
        quick.step(observed(slot * 0.1, ack_latency_s=ack_s))
        slow.step(observed(slot * 0.1, ack_latency_s=ack_s))
    now_s = len(acks) * 0.1
    # The floor is known to both: a higher latency must not be lower than another's floor.
    faster = quick.step(observed(now_s, ack_latency_s=last_s, ack_latency_floor_s=0.001))
    slower = slow.step(observed(now_s, ack_latency_s=last_s + more_s, ack_latency_floor_s=0.001))
    assert slower.replay_bytes_per_s <= faster.replay_bytes_per_s * (1 + 1e-9)


@given(slots)
def test_the_same_is_decided_from_the_same(acks: list[float]) -> None:
    one, other = controller(), controller()
    for slot, ack_s in enumerate(acks):
        seen = observed(slot * 0.1, ack_latency_s=ack_s)
        assert one.step(seen) == other.step(seen)
