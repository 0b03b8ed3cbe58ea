"""How large a round is: short in `make faults`, long in `make robustness`."""

import os
import secrets
from dataclasses import dataclass
from typing import Final

LONG: Final = os.environ.get("CNCMON_ROBUSTNESS") == "long"

SEED: Final = int(os.environ.setdefault("CNCMON_ROBUSTNESS_SEED", str(secrets.randbelow(10**9))))
"""Decides stories, dice and the moments of faults; a new one each run, and named in everything that is printed. In the
environment, so that the processes of a parallel run have the same where they are told of it.
"""

LONG_SAMPLES: Final = 3_000_000
"""What the long round checks at least."""


@dataclass(frozen=True)
class Size:
    """What depends on the round.

    rounds, kills, freezes: how often a fault is injected; freezes: one that takes long. calm_s, fault_s: how long
    traffic flows before a fault, and how long that lasts. machines, poll_interval_ms: of each edge. edges,
    backlog_batches: where all come back at once. soak_machines, soak_interval_s: what is sampled for a week;
    soak_faults: a day. timeout_s: of a test, whose reason the waits give before.
    recover_s_max: without any progress, until recovery is given up.
    """

    rounds: int
    kills: int
    freezes: int
    calm_s: float
    fault_s: float
    machines: int
    poll_interval_ms: int
    edges: int
    backlog_batches: int
    soak_machines: int
    soak_interval_s: float
    soak_faults: int
    timeout_s: float
    recover_s_max: float


SHORT_ROUND: Final = Size(
    rounds=2,
    kills=3,
    freezes=1,
    calm_s=1.0,
    fault_s=1.0,
    machines=8,
    poll_interval_ms=50,
    edges=60,
    backlog_batches=20,
    soak_machines=4,
    soak_interval_s=60.0,
    soak_faults=1,
    timeout_s=900,
    recover_s_max=240,
)
LONG_ROUND: Final = Size(
    rounds=20,
    kills=50,
    freezes=8,
    calm_s=3.0,
    fault_s=4.0,
    machines=40,
    poll_interval_ms=50,
    edges=500,
    backlog_batches=60,
    soak_machines=5,
    soak_interval_s=1.0,
    soak_faults=4,
    timeout_s=3600,
    recover_s_max=240,
)

SIZE: Final = LONG_ROUND if LONG else SHORT_ROUND
