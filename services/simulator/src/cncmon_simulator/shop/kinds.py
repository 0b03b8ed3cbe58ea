"""What kinds of machine the shop has, and what each is like. Figures are of ordinary machines of that kind, rounded."""

from typing import Final, Literal, NamedTuple

from cncmon_simulator.shop.paths import Point

Cut = Literal["face", "pocket", "drill", "turn", "grind"]


class Kind(NamedTuple):
    """A kind of machine.

    rated_kw: spindle power at 100 % load. idle_kw: drives, hydraulics and control with the spindle at rest.
    heat_c: how much warmer than the hall the spindle gets at a lasting 100 % load. thermal_s, spin_s: time constants
    (first order) of that warming and of the spindle's speed. change_s: a tool change, tool to tool. load_s: a part out
    and the next in. rpm, feed_mm_min, load_percent: ranges that programs are drawn from. home: where tools are changed.
    """

    name: str
    title: str
    cuts: tuple[Cut, ...]
    rated_kw: float
    idle_kw: float
    heat_c: float
    thermal_s: float
    spin_s: float
    rapid_mm_min: float
    change_s: float
    load_s: tuple[float, float]
    rpm: tuple[float, float]
    feed_mm_min: tuple[float, float]
    load_percent: tuple[float, float]
    home: Point


KINDS: Final = (
    Kind(
        "mill", "Vertical mill", ("face", "pocket", "drill"), 15, 1.8, 26, 240, 0.9, 24_000, 4.0, (10, 25),
        (1500, 9000), (400, 2400), (30, 70), (0, 250, 300),
    ),
    Kind(
        "lathe", "Turning centre", ("turn", "turn", "drill"), 18, 2.2, 30, 300, 1.4, 20_000, 1.5, (6, 14),
        (600, 3200), (80, 450), (35, 75), (220, 0, 180),
    ),
    Kind(
        "center", "5-axis machining centre", ("face", "pocket", "pocket", "drill"), 25, 3.1, 34, 360, 1.1, 40_000, 3.0,
        (8, 16), (3000, 14_000), (800, 5200), (25, 65), (300, 300, 400),
    ),
    Kind(
        "grinder", "Cylindrical grinder", ("grind",), 11, 2.6, 18, 420, 2.5, 10_000, 6.0, (12, 30),
        (1200, 2200), (60, 300), (20, 45), (150, 0, 200),
    ),
    Kind(
        "drill", "Drill and tap centre", ("drill", "drill", "pocket"), 7.5, 1.1, 20, 180, 0.5, 48_000, 1.2, (5, 12),
        (2500, 12_000), (600, 3000), (20, 55), (0, 200, 250),
    ),
)  # fmt: skip


def kind_of(index: int) -> Kind:
    """Return the kind of the machine with an index from 0: they take turns."""
    return KINDS[index % len(KINDS)]
