"""The behaviour `reference`: fixed formulas of time, the same for all machines but for their noise."""

from math import cos, floor, hypot, pi, sin
from typing import Final

from cncmon_simulator.noise import Noise, normal
from cncmon_simulator.register_map import Value

STATES: Final = ("running", "idle", "alarm", "hold")
STATE_S: Final = 30.0
PATH_HZ: Final = 0.1
"""One turn of the circular tool path takes 10 s."""
PART_S: Final = 4 * STATE_S
"""One part each turn of the four states."""
LINES: Final = 240
ALARM_CODE: Final = 2045
PARTS_PLANNED: Final = 500
TOOLS: Final = 4
TOOL_LIFE_S: Final = 600.0
_TURN: Final = 2 * pi


class Reference:
    """The reference formulas, t in seconds since start, N(sigma) normal noise of a 10 ms step.

    * temperature = 25 + 15 sin(2 pi 0.1 t) + N(2) °C
    * spindle_speed = 2500 + 500 sin(2 pi 0.05 t) + N(100) rpm
    * x = 100 + 50 cos(a), y = 100 + 50 sin(a), z = 10 + 5 sin(a) mm, a = 2 pi 0.1 t
    * machine_state: running, idle, alarm, hold, 30 s each, from running at t = 0; alarm_code 2045 while in alarm
    * feed_rate_actual: the speed of that path, 60 * 2 pi 0.1 * hypot(50, 5 cos a) mm/min
    * spindle_load_percent = 45 + 15 sin(2 pi 0.05 t) + N(1.5); total_power_kw = 1.5 + 0.12 * spindle_load_percent
    * active_program_line = 1 + 240 * (share of the 120 s of a part); part_count = whole parts
    * tool_wear_percent rises to 100 in 600 s, then the next of 4 tools is used; the door is open while idle

    As in the original system the sines don't stop for the states.
    """

    display_name = "Reference machine"
    ideal_cycle_time_s = PART_S

    def __init__(self, seed: int, machine: str) -> None:
        self._noise = Noise(seed, machine)

    def at(self, t_s: float) -> dict[str, Value]:
        """Return the values at `t_s` seconds since start."""
        bits = self._noise.at(t_s)
        angle = _TURN * PATH_HZ * t_s
        slow = sin(_TURN * 0.05 * t_s)
        state = STATES[int(t_s / STATE_S) % 4]
        load = 45 + 15 * slow + 1.5 * normal(bits, 2)
        lives = t_s / TOOL_LIFE_S
        sine = sin(angle)
        return {
            "machine_state": state,
            "mode": "AUTOMATIC",
            "alarm_code": ALARM_CODE if state == "alarm" else 0,
            "door_open": state == "idle",
            "temperature": 25 + 15 * sin(_TURN * 0.1 * t_s) + 2 * normal(bits, 0),
            "spindle_speed": 2500 + 500 * slow + 100 * normal(bits, 1),
            "x_pos_mm": 100 + 50 * cos(angle),
            "y_pos_mm": 100 + 50 * sine,
            "z_pos_mm": 10 + 5 * sine,
            "feed_rate_actual": 60 * _TURN * PATH_HZ * hypot(50, 5 * cos(angle)),
            "spindle_load_percent": load,
            "total_power_kw": 1.5 + 0.12 * load,
            "active_program_line": 1 + floor(LINES * (t_s / PART_S % 1)),
            "part_count": floor(t_s / PART_S),
            "parts_planned": PARTS_PLANNED,
            "tool_number": 1 + floor(lives) % TOOLS,
            "tool_wear_percent": 100 * (lives % 1),
            "feed_override_percent": 100,
            "program": "O0001",
        }
