from itertools import pairwise
from math import cos, hypot, pi, sin
from statistics import fmean, pstdev

from cncmon_simulator.reference import Reference


def series(seed: int = 1, machine: str = "cnc-001", seconds: int = 240, per_s: int = 20) -> list[tuple[float, dict]]:
    behaviour = Reference(seed, machine)
    return [(i / per_s, behaviour.at(i / per_s)) for i in range(seconds * per_s)]


def test_same_seed_same_values_whenever_they_are_asked_for() -> None:
    dense = dict(series())
    sparse = Reference(1, "cnc-001")
    for t in (0.0, 7.5, 100.05, 239.95):
        assert sparse.at(t) == dense[t]


def test_another_seed_or_machine_has_other_noise_and_the_same_states() -> None:
    for other in (series(seed=2, seconds=10), series(machine="cnc-002", seconds=10)):
        pairs = list(zip(series(seconds=10), other, strict=True))
        assert sum(a["temperature"] == b["temperature"] for (_, a), (_, b) in pairs) < len(pairs) / 100
        assert all(a["machine_state"] == b["machine_state"] for (_, a), (_, b) in pairs)


def test_temperature_is_25_and_15_at_a_tenth_of_a_hertz_with_noise_of_2() -> None:
    noise = [v["temperature"] - 25 - 15 * sin(2 * pi * 0.1 * t) for t, v in series()]
    assert abs(fmean(noise)) < 0.1
    assert 1.9 < pstdev(noise) < 2.1
    # White: a moment says nothing about the next.
    assert abs(fmean(a * b for a, b in pairwise(noise))) < 0.2


def test_spindle_is_2500_and_500_at_a_twentieth_of_a_hertz_with_noise_of_100() -> None:
    noise = [v["spindle_speed"] - 2500 - 500 * sin(2 * pi * 0.05 * t) for t, v in series()]
    assert abs(fmean(noise)) < 5
    assert 95 < pstdev(noise) < 105


def test_path_is_a_circle_and_the_feed_is_its_speed() -> None:
    values = series(seconds=20)
    assert {round(max(v[axis] for _, v in values)) for axis in ("x_pos_mm", "y_pos_mm")} == {150}
    assert {round(min(v[axis] for _, v in values)) for axis in ("x_pos_mm", "y_pos_mm")} == {50}
    assert round(max(v["z_pos_mm"] for _, v in values)) == 15
    assert round(min(v["z_pos_mm"] for _, v in values)) == 5
    for t, v in values:
        assert abs(hypot(v["x_pos_mm"] - 100, v["y_pos_mm"] - 100) - 50) < 1e-9
        speed = hypot(50, 5 * cos(2 * pi * 0.1 * t)) * 2 * pi * 0.1
        assert abs(v["feed_rate_actual"] / 60 - speed) < 1e-6


def test_states_take_turns_of_30_s() -> None:
    behaviour = Reference(1, "cnc-001")
    for start, state in ((0, "running"), (30, "idle"), (60, "alarm"), (90, "hold"), (120, "running")):
        for t in (start, start + 29.99):
            values = behaviour.at(t)
            assert values["machine_state"] == state
            assert bool(values["alarm_code"]) == (state == "alarm")


def test_parts_and_lines_advance() -> None:
    values = [v for _, v in series(seconds=130)]
    assert [values[0]["part_count"], values[-1]["part_count"]] == [0, 1]
    lines = [v["active_program_line"] for v in values[: 119 * 20]]
    assert lines == sorted(lines)
    assert lines[-1] > 200
