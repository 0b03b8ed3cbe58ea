"""The values of a shop machine at a moment: its plan's segment, and the physics that carry over to the next."""

import random
from collections.abc import Iterator
from math import exp, pi, sin
from typing import Final

from cncmon_simulator.noise import Noise, normal
from cncmon_simulator.register_map import Value
from cncmon_simulator.shop.kinds import kind_of
from cncmon_simulator.shop.plan import Plan, Segment

WEAR_LOAD: Final = 0.4
"""A worn-out tool takes 40 % more load than a new one."""
SPIN_LOAD_PERCENT: Final = 4.0
"""Load of a spindle that turns without cutting."""
EFFICIENCY: Final = 0.85
AXES_KW: Final = 1.2
"""What the axis drives take at rapid speed; less in proportion to the speed."""
HALL_C: Final = 21.0
WEAR_MAX_PERCENT: Final = 150.0
OPENINGS: Final = 5


class Shop:
    """One machine of the shop: a function of (seed, name, index) and of the story's time.

    * spindle speed and temperature follow their targets with first-order lag, in closed form, so that the moments at
      which they are asked for don't matter: v(t) = target + (v0 - target) exp(-(t - t0) / tau)
    * target temperature = hall + heat_c * load of the segment
    * spindle_load_percent = load with a new tool * (1 + 0.4 * wear), with a slow ripple of 3 % and noise of 1.5 %
    * total_power_kw = idle + rated * load / 0.85 + axes
    * positions follow the path at exactly feed_rate_actual
    """

    def __init__(self, seed: int, machine: str, index: int) -> None:
        rng = random.Random(f"{seed}/{machine}/plan")  # noqa: S311 a story, no secret
        self.kind = kind_of(index)
        self.display_name = f"{self.kind.title} {index + 1}"
        self._noise = Noise(seed, machine)
        plan = Plan(self.kind, rng, index % OPENINGS)
        self.ideal_cycle_time_s = round(sum(p.ideal_s for p in plan.programs) / len(plan.programs), 1)
        self._hall_c = HALL_C + rng.uniform(-1.5, 1.5)
        # Met in the middle of the day, the spindle is warm.
        self._temperature = self._hall_c + rng.uniform(0.3, 0.6) * self.kind.heat_c
        self._segments: Iterator[Segment] = plan.segments()
        self._segment = next(self._segments)
        self._rpm = self._segment.rpm

    def at(self, t_s: float) -> dict[str, Value]:
        """Return the values at `t_s` seconds of the story; a time before the current segment counts as its start."""
        segment = self._segment
        while t_s >= segment.end_s:
            segment = self._next()
        into_s = max(0.0, t_s - segment.start_s)
        bits = self._noise.at(t_s)
        wear = segment.wear_percent + segment.wear_per_s * into_s
        rpm = self._rpm_after(into_s)
        load = self._load(segment, wear, rpm)
        if load > 1:
            load *= 1 + 0.03 * sin(2 * pi * t_s / 7) + 0.015 * normal(bits, 0)
        x, y, z = segment.path.at(segment.s_mm + segment.feed_mm_min / 60 * into_s)
        kind = self.kind
        power = (
            kind.idle_kw + kind.rated_kw * load / 100 / EFFICIENCY + AXES_KW * segment.feed_mm_min / kind.rapid_mm_min
        )
        return {
            "machine_state": segment.state,
            "mode": segment.mode,
            "alarm_code": segment.alarm_code,
            "door_open": segment.door_open,
            "temperature": self._temperature_after(into_s) + 0.06 * normal(bits, 1),
            "spindle_speed": max(0.0, rpm * (1 + 0.002 * normal(bits, 2))),
            "x_pos_mm": x,
            "y_pos_mm": y,
            "z_pos_mm": z,
            "feed_rate_actual": segment.feed_mm_min,
            "spindle_load_percent": load,
            "total_power_kw": power * (1 + 0.005 * normal(bits, 3)),
            "active_program_line": int(segment.line + segment.lines_per_s * into_s),
            "part_count": segment.part_count,
            "parts_planned": segment.parts_planned,
            "tool_number": segment.tool,
            "tool_wear_percent": min(wear, WEAR_MAX_PERCENT),
            "feed_override_percent": segment.override_percent,
            "program": segment.program,
        }

    def _next(self) -> Segment:
        segment = self._segment
        length_s = segment.end_s - segment.start_s
        self._rpm, self._temperature = self._rpm_after(length_s), self._temperature_after(length_s)
        self._segment = next(self._segments)
        return self._segment

    def _load(self, segment: Segment, wear_percent: float, rpm: float) -> float:
        if segment.load_percent:
            return segment.load_percent * (1 + WEAR_LOAD * wear_percent / 100)
        return SPIN_LOAD_PERCENT if segment.rpm or rpm > 50 else 0.0

    def _rpm_after(self, seconds: float) -> float:
        target = self._segment.rpm
        rpm = target + (self._rpm - target) * exp(-seconds / self.kind.spin_s)
        return rpm if rpm > 1 else 0.0

    def _temperature_after(self, seconds: float) -> float:
        segment = self._segment
        target = self._hall_c + self.kind.heat_c * self._load(segment, segment.wear_percent, segment.rpm) / 100
        return target + (self._temperature - target) * exp(-seconds / self.kind.thermal_s)
