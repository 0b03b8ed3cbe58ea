"""FAULT 5: the edge's disk is full."""

import pytest

from robustness.faults.small_disk import free_bytes, small_disk
from robustness.scenarios.plant import Plant
from robustness.scenarios.size import LONG

DISK_BYTES = (64 if LONG else 16) << 20
OUTAGE_S = 200_000 if LONG else 30_000
"""A sample a second, each in a batch of its own of some 500 bytes: more than the disk holds."""

REASONS = {"dropped"}


@pytest.mark.needs("root")
async def test_disk_full(plant: Plant) -> None:
    """The oldest is dropped, counted and declared; what is newer arrives, and nobody crashes."""
    with small_disk(plant.folder / "disk", DISK_BYTES) as disk:
        settings = {"data_dir": str(disk / "agent"), "spool_free_bytes_min": 0, "sync_interval_ms": 20}
        async with plant.running(edges=1, agents=False, machines=2):
            edge = plant.local_agent(
                "e1", seed=plant.seed, generated=1, outage_s=OUTAGE_S, machines=plant.machines[0], **settings
            )
            async with edge as agent:
                await plant.flow()
                plant.note_fault(f"disk of {DISK_BYTES >> 20} MiB full")
                await plant.proxy.refuse()
                await agent.live_through(OUTAGE_S, linger_s=1.0)
                plant.notes["free of the disk in KiB"] = str(free_bytes(disk) >> 10)
                assert free_bytes(disk) < 4 << 20, "the disk was never full"
                await plant.proxy.open()
                await plant.recovered()
    finding = await plant.holds(gaps=True)
    assert finding.excuses.reasons == REASONS
    assert 0 < finding.verdict.gaps < finding.sent
    assert all(gap.samples is not None for gap in finding.excuses.gaps), "it is known how many were dropped"
