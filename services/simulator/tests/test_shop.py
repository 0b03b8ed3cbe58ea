from itertools import pairwise
from math import dist
from statistics import fmean

import pytest

from cncmon_simulator.shop import Shop
from cncmon_simulator.shop.alarms import ALARMS

DAY_S = 86_400
NAMES = ("mill-01", "lathe-02", "center-03", "grinder-04", "drill-05")


@pytest.fixture(scope="module")
def days() -> list[list[dict]]:
    """One day of five machines, a row a second."""
    return [[machine.at(t) for t in range(DAY_S)] for machine in (Shop(1, n, i) for i, n in enumerate(NAMES))]


def changes(day: list[dict], field: str) -> list[tuple[dict, dict]]:
    return [(a, b) for a, b in pairwise(day) if a[field] != b[field]]


def test_same_seed_same_story_however_often_it_is_asked(days: list[list[dict]]) -> None:
    for index, name in enumerate(NAMES):
        seldom = Shop(1, name, index)
        for t in (0, 1234, 40_000, 86_399):
            assert seldom.at(t) == pytest.approx(days[index][t])


def test_another_seed_tells_another_story(days: list[list[dict]]) -> None:
    other = Shop(2, NAMES[0], 0)
    states = [other.at(t)["machine_state"] for t in range(3600)]
    assert states != [row["machine_state"] for row in days[0][:3600]]


def test_several_states_are_seen_in_the_first_minute(days: list[list[dict]]) -> None:
    assert len({row["machine_state"] for day in days for row in day[:10]}) == 4
    for seed in range(20):
        machines = [Shop(seed, name, index) for index, name in enumerate(NAMES)]
        assert len({machine.at(t)["machine_state"] for t in range(60) for machine in machines}) == 4


def test_a_day_has_every_state_and_parts(days: list[list[dict]]) -> None:
    for day in days:
        share = {s: sum(row["machine_state"] == s for row in day) / DAY_S for s in ("running", "idle", "hold", "alarm")}
        assert 0.35 < share["running"] < 0.65, share
        assert 0.3 < share["idle"] < 0.6, share
        assert 0.005 < share["hold"] < 0.08, share
        assert 0.01 < share["alarm"] < 0.12, share
        made = [b["part_count"] - a["part_count"] for a, b in changes(day, "part_count")]
        assert 150 < made.count(1) < 1000
        assert all(step == 1 or step < 0 for step in made)
        assert all(row["part_count"] <= row["parts_planned"] for row in day)


def test_parts_take_their_ideal_time_or_longer(days: list[list[dict]]) -> None:
    for index, day in enumerate(days):
        running_s = sum(row["machine_state"] == "running" for row in day)
        parts = sum(b["part_count"] > a["part_count"] for a, b in changes(day, "part_count"))
        ideal = Shop(1, NAMES[index], index).ideal_cycle_time_s
        assert 0.6 * ideal < running_s / parts < 1.4 * ideal


def test_a_new_job_starts_at_nothing_with_its_own_plan(days: list[list[dict]]) -> None:
    for day in days:
        resets = [(a, b) for a, b in changes(day, "part_count") if b["part_count"] < a["part_count"]]
        assert len(resets) > 5
        assert all(a["part_count"] == a["parts_planned"] and b["part_count"] == 0 for a, b in resets)
        assert all(b["mode"] == "MANUAL" and b["door_open"] for _, b in resets)


def test_alarms_have_codes_of_the_table_and_nothing_else_has(days: list[list[dict]]) -> None:
    known = {alarm.code for alarm in ALARMS}
    codes = set()
    for day in days:
        for row in day:
            if row["machine_state"] == "alarm":
                codes.add(row["alarm_code"])
                assert row["alarm_code"] in known
            else:
                assert row["alarm_code"] == 0
    assert len(codes) >= 5


def test_nobody_works_at_night_and_breaks_are_idle(days: list[list[dict]]) -> None:
    for day in days:
        # Met between 6:30 and 8:55: the night of all of them lies between 15.5 and 21 hours later.
        assert all(row["machine_state"] == "idle" for row in day[56_000:75_600])
        assert {row["machine_state"] for row in day[79_200:]} >= {"running", "idle"}


def test_wear_rises_while_cutting_and_a_worn_out_tool_is_replaced(days: list[list[dict]]) -> None:
    for day in days:
        replaced = 0
        for a, b in pairwise(day):
            if a["tool_number"] != b["tool_number"]:
                continue
            step = b["tool_wear_percent"] - a["tool_wear_percent"]
            if step < 0:
                replaced += 1
                assert a["tool_wear_percent"] >= 100
                assert b["tool_wear_percent"] < 1
            elif step > 0:
                assert step < 0.3
        assert replaced >= 5
        assert max(row["tool_wear_percent"] for row in day) < 115


def test_load_follows_wear(days: list[list[dict]]) -> None:
    for day in days:
        cuts: dict[tuple, dict[bool, list[float]]] = {}
        for row in day:
            cutting = row["machine_state"] == "running" and row["spindle_load_percent"] > 10
            wear = row["tool_wear_percent"]
            if cutting and (wear < 25 or wear > 75):
                key = (row["program"], row["tool_number"], row["feed_override_percent"])
                cuts.setdefault(key, {True: [], False: []})[wear > 75].append(row["spindle_load_percent"])
        ratios = [fmean(c[True]) / fmean(c[False]) for c in cuts.values() if min(map(len, c.values())) > 20]
        assert ratios
        # (1 + 0.4 * 0.88) / (1 + 0.4 * 0.12) and thereabouts, by where in these ranges the wear was.
        assert 1.15 < fmean(ratios) < 1.4


def test_temperature_has_inertia(days: list[list[dict]]) -> None:
    for day in days:
        temperatures = [row["temperature"] for row in day]
        # Noise of 0.06 a reading; the spindle itself moves by less than 0.25 a second.
        assert max(abs(b - a) for a, b in pairwise(temperatures)) < 0.9
        assert max(temperatures) - min(temperatures) > 6
        night = temperatures[72_000:75_600]
        assert abs(fmean(night) - 21) < 2


def test_positions_move_as_the_feed_says() -> None:
    for index, name in enumerate(NAMES):
        machine = Shop(1, name, index)
        checked = 0
        for second in range(1200):
            a, b = machine.at(second), machine.at(second + 0.01)
            way = dist(*[[v[axis] for axis in ("x_pos_mm", "y_pos_mm", "z_pos_mm")] for v in (a, b)])
            if a["feed_rate_actual"] == b["feed_rate_actual"]:
                # Less where the path turns a corner within these 10 ms.
                assert way <= a["feed_rate_actual"] / 60 * 0.01 + 1e-6
                checked += abs(way - a["feed_rate_actual"] / 60 * 0.01) < 1e-6
            if a["machine_state"] != "running":
                assert a["feed_rate_actual"] == 0
        assert checked > 900


def test_a_cut_goes_on_where_a_hold_stopped_it(days: list[list[dict]]) -> None:
    axes = ("x_pos_mm", "y_pos_mm", "z_pos_mm")
    seen = 0
    for day in days:
        for a, b in pairwise(day):
            if (a["machine_state"], b["machine_state"]) == ("hold", "running") and b["spindle_load_percent"] > 10:
                assert dist([a[axis] for axis in axes], [b[axis] for axis in axes]) <= b["feed_rate_actual"] / 60 + 1e-6
                assert 0 <= b["active_program_line"] - a["active_program_line"] <= 20
                seen += 1
    assert seen > 100


def test_program_lines_advance_within_a_part(days: list[list[dict]]) -> None:
    for day in days:
        for a, b in pairwise(day[:7200]):
            if a["part_count"] == b["part_count"] and a["active_program_line"] > b["active_program_line"]:
                assert b["active_program_line"] <= 1 or b["mode"] != "AUTOMATIC"


def test_power_follows_load(days: list[list[dict]]) -> None:
    for day in days:
        idle = fmean(row["total_power_kw"] for row in day if row["machine_state"] == "idle")
        cut = fmean(row["total_power_kw"] for row in day if row["spindle_load_percent"] > 30)
        assert cut > 2 * idle > 0
