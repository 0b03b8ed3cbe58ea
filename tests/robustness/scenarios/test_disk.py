"""FAULT 5: the edge's disk is full."""

from typing import Any

import msgspec
import pytest

from cncmon_agent import storage, without_time
from cncmon_agent.buffer.spool_settings import SpoolSettings
from robustness.faults.small_disk import free_bytes, small_disk
from robustness.scenarios.plant import Plant
from robustness.scenarios.size import LONG

SEGMENT_BYTES = 4 << 20 if LONG else 64 << 10
DISK_BYTES = 16 * SEGMENT_BYTES
OUTAGE_S_MAX = DISK_BYTES // 200
"""A sample a second, each in a batch of its own that takes over 200 bytes: so many the disk can't hold."""

DROPPED_MIN = DISK_BYTES // 1024
"""The outage goes on until so many batches had to make room for newer ones."""

PART_S = 125

SETTINGS = {"spool_free_bytes_min": 0, "sync_interval_ms": 20, "linger_ms": 250}
"""Few batches of the real machines: it is the generated ones that are to take the time."""

REASONS = {"dropped"}


@pytest.mark.needs("root")
async def test_disk_full(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is dropped, counted and declared; what is newer arrives, and nobody crashes."""
    _cut_segments(monkeypatch)
    with small_disk(plant.folder / "disk", DISK_BYTES) as disk:
        settings = {"data_dir": str(disk / "agent"), **SETTINGS}
        async with plant.running(edges=1, agents=False, machines=2):
            edge = plant.local_agent(
                "e1", seed=plant.seed, generated=1, outage_s=OUTAGE_S_MAX, machines=plant.machines[0], **settings
            )
            async with edge as agent:
                await plant.flow()
                plant.note_fault(f"disk of {DISK_BYTES >> 20} MiB full")
                await plant.proxy.refuse()
                buffer = agent.agent.storage.buffer
                _, cut = buffer.range()
                # Until what is dropped was nowhere else. How long that takes is a matter of how well it compresses.
                for _ in range(OUTAGE_S_MAX // PART_S):
                    await agent.live_through(PART_S, linger_s=1.0)
                    if buffer.range()[0] >= cut + DROPPED_MIN:
                        break
                plant.notes["free of the disk in KiB"] = str(free_bytes(disk) >> 10)
                assert buffer.range()[0] >= cut + DROPPED_MIN, "more came than the disk holds, and nothing was dropped"
                # A segment has just been dropped, and the next one is not made yet.
                assert free_bytes(disk) < 2 * SEGMENT_BYTES, "the disk was never full"
                await plant.proxy.open()
                await plant.recovered()
    finding = await plant.holds(gaps=True)
    assert finding.excuses.reasons == REASONS
    assert DROPPED_MIN <= finding.verdict.gaps < finding.sent
    assert all(gap.samples is not None for gap in finding.excuses.gaps), "it is known how many were dropped"


def _cut_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk hold as many segments in a short round as in a long one."""
    original = storage.spool_settings

    def cut(*arguments: Any, **options: Any) -> SpoolSettings:
        return msgspec.structs.replace(original(*arguments, **options), segment_bytes=SEGMENT_BYTES)

    for module in (storage, without_time):
        monkeypatch.setattr(module, "spool_settings", cut)
