"""The programs of one machine, drawn from its kind and its seed."""

import random
from typing import NamedTuple

from cncmon_simulator.shop.kinds import Cut, Kind
from cncmon_simulator.shop.paths import Circle, Path, holes, passes, raster


class Operation(NamedTuple):
    """One cut with one tool. cut_s: its time at 100 % feed override. load_percent: with a new tool."""

    tool: int
    path: Path
    rpm: float
    feed_mm_min: float
    load_percent: float
    cut_s: float
    lines: int


class Program(NamedTuple):
    """One part program. ideal_s: the part's time with nothing in the way, from one part's start to the next's."""

    name: str
    operations: tuple[Operation, ...]
    ideal_s: float


def programs(kind: Kind, rng: random.Random) -> list[Program]:
    """Return two to four programs; the same tool number is the same tool in all of them."""
    return [_program(kind, rng, number) for number in sorted(rng.sample(range(1000, 8999), rng.randint(2, 4)))]


def _program(kind: Kind, rng: random.Random, number: int) -> Program:
    tools = sorted(rng.sample(range(1, 9), rng.randint(2, 4)))
    operations = tuple(_operation(kind, rng, tool) for tool in tools)
    rapids_s = 2.0 * len(operations)
    ideal_s = sum(o.cut_s + kind.change_s for o in operations) + rapids_s + sum(kind.load_s) / 2
    return Program(f"O{number:04d}", operations, ideal_s)


def _operation(kind: Kind, rng: random.Random, tool: int) -> Operation:
    cut = rng.choice(kind.cuts)
    feed = rng.uniform(*kind.feed_mm_min)
    return Operation(
        tool=tool,
        path=_path(cut, rng),
        rpm=round(rng.uniform(*kind.rpm), -1),
        feed_mm_min=round(feed / 2 if cut == "drill" else feed, -1),
        load_percent=rng.uniform(*kind.load_percent),
        cut_s=rng.uniform(12, 45),
        lines=rng.randint(20, 180),
    )


def _path(cut: Cut, rng: random.Random) -> Path:
    corner = (rng.uniform(20, 120), rng.uniform(20, 120), rng.uniform(-20, 20))
    match cut:
        case "face":
            return raster(corner, rng.uniform(60, 200), rng.uniform(40, 120), rng.uniform(8, 25))
        case "pocket":
            return Circle(corner, rng.uniform(10, 60))
        case "drill":
            return holes(corner, rng.uniform(10, 30), rng.randint(2, 5), rng.randint(2, 4), rng.uniform(8, 30))
        case "turn":
            return passes(rng.uniform(40, 120), rng.uniform(30, 150), rng.uniform(0.5, 2.5), rng.randint(3, 8))
        case "grind":
            return passes(rng.uniform(30, 80), rng.uniform(40, 120), 0.02, 12)
