from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from cncmon_api.fleet import Fleet
from cncmon_api.models import Sample
from cncmon_core.sample import CORE_FIELDS

START = datetime(2026, 1, 1, tzinfo=UTC)


def sample(at_s: float) -> Sample:
    timestamp = START + timedelta(seconds=at_s)
    return msgspec.convert(
        {
            **dict.fromkeys(CORE_FIELDS),
            "machine_id": "m",
            "timestamp": timestamp,
            "machine_state": "running",
            "state": "running",
        },
        Sample,
    )


@pytest.mark.parametrize(
    ("sampled_at_s", "asked_at_s", "stale"),
    [
        ([0, 0.1, 0.2], 14, False),
        ([0, 0.1, 0.2], 16, True),
        ([0, 60, 120], 120 + 100, False),
        ([0, 60, 120], 120 + 181, True),
        ([0, 0.1, 7200], 7200 + 16, True),  # an outage of two hours is no polling interval
        ([0], 16, True),
    ],
)
def test_stale_follows_the_distance_of_the_samples(sampled_at_s: list[float], asked_at_s: float, stale: bool) -> None:
    fleet = Fleet(timedelta(seconds=15))
    fleet.set_machines([("m", "hall", "e1")])
    for at_s in sampled_at_s:
        fleet.add("m", [sample(at_s)], cut=False)
    (info,) = fleet.infos(START + timedelta(seconds=asked_at_s))
    assert (info.stale, info.state) == (stale, "no_data" if stale else "running")
