"""The log against its model in long seeded walks, weighted towards what leaves the log full and half synced.

Hypothesis shortens what it finds; these find more: faults whose parts lie dozens of steps apart.
"""

import os
from collections.abc import Callable
from random import Random

import pytest

from robustness.model.world import ERRORS, World

LONG = os.environ.get("CNCMON_ROBUSTNESS") == "long"
SEED = int(os.environ.get("CNCMON_ROBUSTNESS_SEED", "1"))
WALKS = 6_000 if LONG else 600
STEPS = 60
FOUND_BEFORE = [129140683000074]
"""Walks with bad pages that found something once."""
Step = Callable[[World, Random], object]


def append(world: World, random: Random) -> None:
    for _ in range(random.randint(1, 12)):
        world.append(random.randint(1, 6000))


def free(world: World, random: Random) -> None:
    epoch = random.choice(sorted(world.logs()))
    world.free(epoch, world.logs()[epoch].range()[1] - random.randint(-2, 30))


def read(world: World, random: Random) -> None:
    epoch = random.choice(sorted(world.logs()))
    world.read(epoch, world.logs()[epoch].range()[0] - 1 + random.randint(0, 60))


def shed(world: World, _random: Random) -> None:
    world.spool.shed()
    world.check()


def fail(world: World, random: Random) -> None:
    call = random.choice(sorted(ERRORS))
    world.fail[call] = ERRORS[call], random.randint(1, 4)


def fill_disk(world: World, random: Random) -> None:
    world.disk.capacity = world.disk.used + random.randrange(40_000)


def empty_disk(world: World, _random: Random) -> None:
    world.disk.capacity = 1 << 30


def forget(world: World, _random: Random) -> None:
    for epoch, log in list(world.spool.earlier.items()):
        if not world.held(log):
            world.spool.forget(epoch)


WEIGHTS: list[tuple[int, Step]] = [
    (30, append),
    (6, lambda world, _random: world.begin_sync()),
    (6, lambda world, _random: world.end_sync()),
    (8, lambda world, _random: world.sync_all()),
    (4, lambda world, _random: world.begin_move()),
    (4, lambda world, _random: world.end_move()),
    (8, free),
    (4, read),
    (3, lambda world, _random: world.read_all()),
    (7, lambda world, random: world.recover(random.randint(1, 20))),
    (2, shed),
    (6, fail),
    (1, fill_disk),
    (2, empty_disk),
    (4, lambda world, random: world.restart(power=True, keep=random.choice((0.0, 0.3, 0.9, 1.0)))),
    (2, lambda world, _random: world.restart(power=False)),
    (1, lambda world, random: world.append_killed(random.randint(1, 6000), random.randint(0, 9000))),
    (1, forget),
]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("bad_pages", [False, True])
def test_the_log_is_as_its_model_on_a_long_walk(bad_pages: bool) -> None:
    weights = [*WEIGHTS, (1, lambda world, _random: world.break_page())] if bad_pages else WEIGHTS
    steps = [step for _, step in weights]
    fresh = range(SEED * 1_000_000, SEED * 1_000_000 + WALKS // 2)
    for walk in [*(FOUND_BEFORE if bad_pages else ()), *fresh]:
        print(f"walk {walk}")
        random, world = Random(walk), World(walk)
        for step in random.choices(steps, [weight for weight, _ in weights], k=STEPS):
            step(world, random)
        world.restart(power=True)
        world.recover()
        world.read_all()
