"""The alarms that a simulated machine raises."""

import random
from typing import Final, NamedTuple


class Alarm(NamedTuple):
    """An alarm: its code and text, how often it comes relative to the others, and how long it stops the machine."""

    code: int
    text: str
    weight: float
    least_s: float
    most_s: float


ALARMS: Final = (
    Alarm(1012, "CHIP CONVEYOR OVERLOAD", 5, 30, 120),
    Alarm(1001, "COOLANT LEVEL LOW", 4, 60, 240),
    Alarm(1005, "SAFETY DOOR INTERLOCK", 4, 10, 45),
    Alarm(1003, "LUBRICATION PRESSURE LOW", 2, 90, 300),
    Alarm(1020, "WORKPIECE CLAMPING PRESSURE LOW", 2, 45, 180),
    Alarm(2045, "SPINDLE OVERLOAD", 2, 60, 240),
    Alarm(3007, "TOOL BREAKAGE DETECTED", 2, 120, 420),
    Alarm(500, "SOFT OVERTRAVEL: +X", 1, 60, 180),
    Alarm(410, "SERVO ALARM: Z AXIS EXCESS ERROR", 1, 120, 600),
    Alarm(2101, "SPINDLE MOTOR OVERHEAT", 0.5, 300, 900),
)

BREAKAGE: Final = 3007


def draw(rng: random.Random) -> tuple[Alarm, float]:
    """Return an alarm and how long it stops the machine, in seconds."""
    alarm = rng.choices(ALARMS, [alarm.weight for alarm in ALARMS])[0]
    return alarm, rng.uniform(alarm.least_s, alarm.most_s)
