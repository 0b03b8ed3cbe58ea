"""The order of the tests: as they are written, or shuffled by CNCMON_TEST_SEED=n (`random` draws one, and prints it).

Modules are shuffled, and the tests within each; those marked in_order, which tell one story, keep theirs.
"""

import os
import random
from collections.abc import Sequence

import pytest

VARIABLE = "CNCMON_TEST_SEED"


def drawn_seed() -> int | None:
    """Return the seed, drawn where `random` is wanted; in the environment, so that all processes have it."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "random":
        wanted = os.environ[VARIABLE] = str(random.SystemRandom().randrange(10**6))
    return int(wanted) if wanted else None


def shuffled(items: Sequence[pytest.Item], seed: int) -> list[pytest.Item]:
    """Return the tests in another order, the same for the same seed whatever else is run."""
    modules: dict[str, list[pytest.Item]] = {}
    for item in items:
        modules.setdefault(item.nodeid.split("::", 1)[0], []).append(item)
    for tests in modules.values():
        if tests[0].get_closest_marker("in_order") is None:
            tests.sort(key=lambda item: random.Random(f"{seed}/{item.nodeid}").random())
    places = sorted(modules, key=lambda name: random.Random(f"{seed}/{name}").random())
    return [item for name in places for item in modules[name]]
