"""What batches are kept in: the disk or memory alone, what is said of it, and the move to the cold tier."""

import asyncio
import contextlib
import random
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from cncmon_agent.batch import make
from cncmon_agent.buffer.errors import SpoolError, SpoolLockedError
from cncmon_agent.settings import AgentSettings
from cncmon_agent.storage import Storage, no_room, spool_settings
from testkit.buffers import content
from testkit.recorder import until
from testkit.waiting import WAIT_S_MAX

EPOCH = 77
MakeSettings = Callable[..., AgentSettings]


def tier_bytes(tier: str) -> float:
    value = REGISTRY.get_sample_value("cncmon_edge_buffer_bytes", {"tier": tier})
    assert value is not None
    return value


def metric(name: str) -> float:
    value = REGISTRY.get_sample_value(name)
    assert value is not None
    return value


def gain_of(storage: Storage) -> float | None:
    return storage.recompress_gain


def fill(storage: Storage, batches: int, epoch: int = EPOCH) -> int:
    """Append batches of some 40 KiB that a higher level makes smaller; return the next seq.

    What is not synced must fit into the ring, so each is synced.
    """
    assert storage.spool is not None
    rng = random.Random(7)
    words = [rng.randbytes(12).hex().encode() for _ in range(4000)]
    _, seq = storage.buffer.range()
    for number in range(seq, seq + batches):
        frames = [b" ".join(rng.choices(words, k=80)) for _ in range(50)]
        assert storage.buffer.append(make(epoch, number, (number - 1) * 50, "samples", frames, 1, number * 1000))
        if number % 20 == 0 and (work := storage.spool.sync_work()) is not None:
            work.run()
            storage.spool.synced(work)
    return seq + batches


@contextlib.asynccontextmanager
async def running(storage: Storage) -> AsyncIterator[None]:
    task = asyncio.create_task(storage.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        storage.close()


def test_with_a_disk_it_is_not_memory_only(settings_of: MakeSettings, tmp_path: Path) -> None:
    storage = Storage(settings_of(), EPOCH, tmp_path, None)
    assert storage.memory_only is None
    assert storage.spool is not None
    assert not storage.recovered
    assert metric("cncmon_edge_buffer_memory_only") == 0
    assert storage.held().capacity_warm_bytes == 2 << 30
    storage.close()


@pytest.mark.parametrize("spool", ["preferred", "off"])
async def test_without_a_disk_memory_is_all_the_room_there_is(settings_of: MakeSettings, spool: str) -> None:
    storage = Storage(settings_of(spool=spool, hot_bytes_max=1 << 20), EPOCH, None, None, "data folder x: broken")
    said = "data folder x: broken" if spool == "preferred" else "in memory alone, as configured"
    assert storage.memory_only is not None
    assert said in storage.memory_only
    assert storage.recovered
    assert metric("cncmon_edge_buffer_memory_only") == 1
    frames = [random.Random(1).randbytes(1000)]
    taken = 0
    while storage.buffer.append(make(EPOCH, taken + 1, taken, "samples", frames, 1, 0)):
        taken += 1
    held = storage.held()
    assert held.batches == taken > 500
    assert (held.capacity_warm_bytes, held.capacity_cold_bytes) == (1 << 20, 0)
    assert held.warm_bytes == held.bytes > 0.9 * (1 << 20)
    assert storage.synced_seq == taken, "more than in memory it will never be"
    await storage.run()
    await storage.synced(taken)
    await storage.wait_recovered()
    assert storage.sync_overdue_s(1e9) == 0
    storage.close()


def test_required_without_a_disk_is_refused_with_the_reason(settings_of: MakeSettings) -> None:
    with pytest.raises(SpoolError, match=r"^data folder x: broken$"):
        Storage(settings_of(spool="required"), EPOCH, None, None, "data folder x: broken")


@pytest.mark.parametrize("spool", ["preferred", "required"])
def test_a_second_agent_is_refused_however_it_is_set(settings_of: MakeSettings, tmp_path: Path, spool: str) -> None:
    first = Storage(settings_of(), EPOCH, tmp_path, None)
    with pytest.raises(SpoolLockedError):
        Storage(settings_of(spool=spool), EPOCH + 1, tmp_path, None)
    first.close()


def test_a_disk_without_room_is_no_disk(settings_of: MakeSettings, tmp_path: Path) -> None:
    everything = 1 << 60
    with pytest.raises(SpoolError, match=r"^data folder .*: no room for batches on the disk: [1-9]\d* MiB are free"):
        Storage(settings_of(spool_free_bytes_min=everything), EPOCH, tmp_path, None)
    storage = Storage(settings_of(spool_free_bytes_min=everything, spool="preferred"), EPOCH, tmp_path, None)
    assert "CNCMON_AGENT_SPOOL_FREE_BYTES_MIN" in (storage.memory_only or "")
    # Its lock was given back.
    Storage(settings_of(), EPOCH, tmp_path, None).close()


def test_what_is_on_a_full_disk_is_not_left_there(settings_of: MakeSettings, tmp_path: Path) -> None:
    first = Storage(settings_of(), EPOCH, tmp_path, None)
    fill(first, 20)
    first.close()
    storage = Storage(settings_of(spool_free_bytes_min=1 << 60), EPOCH + 1, tmp_path, None)
    assert storage.spool is not None
    assert no_room(storage.spool) is None
    storage.close()


def test_the_figures_are_those_of_all_epochs(settings_of: MakeSettings, tmp_path: Path) -> None:
    first = Storage(settings_of(), EPOCH, tmp_path, None)
    fill(first, 20)
    first.close()
    storage = Storage(settings_of(), EPOCH + 1, tmp_path, None)
    assert storage.spool is not None
    for piece in storage.spool.recover_steps():
        piece.run()
        piece.install()
    storage.buffer.append(make(EPOCH + 1, 1, 0, "samples", [b"x" * 100] * 3, 1, 99_000))
    held = storage.held()
    assert (held.batches, held.samples) == (21, 20 * 50 + 3)
    assert held.oldest_created_ms == 1000
    assert held.warm_bytes == 2 * (4 << 20)
    storage.tell(held)
    assert tier_bytes("warm") == held.warm_bytes
    assert tier_bytes("hot") == held.hot_bytes > 0
    assert metric("cncmon_edge_buffer_batches") == 21
    assert metric("cncmon_edge_spool_segments") == 2
    storage.close()


async def test_nothing_moves_to_the_cold_tier_until_it_is_wanted(settings_of: MakeSettings, tmp_path: Path) -> None:
    storage = Storage(settings_of(sync_interval_ms=20), EPOCH, tmp_path, None)
    end = fill(storage, 300)
    before = {seq: content(storage.buffer.get(seq)) for seq in range(1, end)}
    sizes = {seq: len(batch.data) for seq in range(1, end) if (batch := storage.buffer.get(seq))}
    async with running(storage):
        await asyncio.sleep(1.3)
        assert storage.held().cold_bytes == 0
        assert gain_of(storage) is None
        spool = storage.spool
        assert spool is not None
        segments = spool.segments()
        assert len(segments) >= 3
        storage.cold_level = 9
        await until(lambda: sum(one.tier == "cold" for one in spool.segments()) == len(segments) - 1)
        held = storage.held()
        assert 0 < held.cold_bytes < (len(segments) - 1) * (4 << 20)
        assert held.warm_bytes == 4 << 20, "the space of what moved is given back, or spare"
        assert 0.02 < (gain_of(storage) or 0) < 0.9
        assert storage.recompress_level == 9
        assert {seq: content(storage.buffer.get(seq)) for seq in range(1, end)} == before, "byte for byte"
        assert sum(len(batch.data) < sizes[batch.identity.seq] for batch in storage.buffer) > 100
        storage.cold_level = None
    assert len(list((tmp_path / "spool" / "cold").iterdir())) == len(segments) - 1


async def test_the_cold_tier_may_be_on_another_disk(settings_of: MakeSettings, tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    storage = Storage(settings_of(sync_interval_ms=20, cold_dir=str(stick)), EPOCH, tmp_path / "data", None)
    assert storage.cold_missing is None
    fill(storage, 200)
    storage.cold_level = 1
    async with running(storage):
        await until(lambda: storage.held().cold_bytes > 0)
        assert storage.held().capacity_cold_bytes == 8 << 30
        assert storage.recompress_gain is None, "a plain copy tells nothing of what recompressing would save"
    assert len(list(stick.glob("*"))) >= 1


async def test_a_cold_disk_that_fails_is_counted_and_nothing_is_lost(settings_of: MakeSettings, tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    storage = Storage(settings_of(sync_interval_ms=20, cold_dir=str(stick)), EPOCH, tmp_path / "data", None)
    end = fill(storage, 200)
    shutil.rmtree(stick)
    storage.cold_level = 9
    async with running(storage):
        await asyncio.sleep(1.5)
        storage.tell(storage.held())
        assert metric("cncmon_edge_spool_cold_errors") >= 1
        assert storage.held().cold_bytes == 0
        assert [batch.identity.seq for batch in storage.buffer] == list(range(1, end))


def test_a_cold_folder_that_cant_be_used_is_said(settings_of: MakeSettings, tmp_path: Path) -> None:
    (tmp_path / "stick").touch()
    storage = Storage(settings_of(cold_dir=str(tmp_path / "stick")), EPOCH, tmp_path / "data", None)
    assert storage.cold_missing is not None
    assert str(tmp_path / "stick") in storage.cold_missing
    storage.close()


async def move_to_cold(storage: Storage, batches: int, epoch: int = EPOCH) -> int:
    """Append batches and have all but the last segment moved to the cold tier; return the next seq."""
    end = fill(storage, batches, epoch)
    spool = storage.spool
    assert spool is not None
    storage.cold_level = 3
    async with running(storage):
        await until(lambda: [one.tier for one in spool.segments()].count("warm") == 1)
    return end


async def recovered(storage: Storage) -> list[int]:
    """Return the seqs that an earlier start left."""
    async with running(storage):
        await storage.wait_recovered()
        assert storage.spool is not None
        return [batch.identity.seq for log in storage.spool.earlier.values() for batch in log]


async def test_a_stick_that_is_not_mounted_is_waited_for(settings_of: MakeSettings, tmp_path: Path) -> None:
    stick, away = tmp_path / "stick", tmp_path / "away"
    settings = settings_of(sync_interval_ms=20, cold_dir=str(stick))
    end = await move_to_cold(Storage(settings, EPOCH, tmp_path, None), 300)
    stick.rename(away)
    stick.mkdir()

    without = Storage(settings, EPOCH + 1, tmp_path, None)
    assert without.cold_missing is not None
    assert "not mounted" in without.cold_missing
    assert str(tmp_path / "cold.json") in without.cold_missing
    assert metric("cncmon_edge_cold_tier_missing") == 1
    assert not without.cold_is_back
    warm = await move_to_cold(without, 300, EPOCH + 1)
    assert list(stick.iterdir()) == [], "what is meant for the stick does not fill the card under it"
    stick.rmdir()
    away.rename(stick)
    assert without.cold_is_back

    again = Storage(settings, EPOCH + 2, tmp_path, None)
    assert (again.cold_missing, again.cold_is_back) == (None, False)
    assert metric("cncmon_edge_cold_tier_missing") == 0
    assert await recovered(again) == [*range(1, end), *range(1, warm)]


async def test_a_cold_tier_that_gets_a_disk_of_its_own_keeps_what_it_had(
    settings_of: MakeSettings, tmp_path: Path
) -> None:
    end = await move_to_cold(Storage(settings_of(sync_interval_ms=20), EPOCH, tmp_path, None), 300)
    storage = Storage(settings_of(sync_interval_ms=20, cold_dir=str(tmp_path / "stick")), EPOCH + 1, tmp_path, None)
    storage.cold_level = 3
    async with running(storage):
        await storage.wait_recovered()
        assert storage.spool is not None
        (log,) = storage.spool.earlier.values()
        assert [batch.identity.seq for batch in log] == list(range(1, end))
        assert storage.held().warm_bytes > 0
        await until(lambda: storage.held().warm_bytes == 0)
        assert [batch.identity.seq for batch in log] == list(range(1, end))
        storage.spool.forget(EPOCH)
        assert storage.held().cold_bytes == 0
    assert list((tmp_path / "spool" / "cold").iterdir()) == []


def test_another_stick_of_the_same_name_is_not_taken_for_it(settings_of: MakeSettings, tmp_path: Path) -> None:
    stick, settings = tmp_path / "stick", settings_of(cold_dir=str(tmp_path / "stick"))
    Storage(settings, EPOCH, tmp_path / "data", None).close()
    shutil.rmtree(stick)
    Storage(settings, EPOCH, tmp_path / "other", None).close()
    swapped = Storage(settings, EPOCH + 1, tmp_path / "data", None)
    assert swapped.cold_missing is not None
    swapped.close()
    (tmp_path / "data" / "cold.json").unlink()
    taken = Storage(settings, EPOCH + 2, tmp_path / "data", None)
    assert taken.cold_missing is None
    taken.close()


async def test_synced_means_what_it_says(settings_of: MakeSettings, tmp_path: Path) -> None:
    storage = Storage(settings_of(sync_interval_ms=50), EPOCH, tmp_path, None)
    async with running(storage):
        storage.buffer.append(make(EPOCH, 1, 0, "samples", [b"x"], 1, 0))
        assert storage.synced_seq == 0
        await asyncio.wait_for(storage.synced(1), WAIT_S_MAX)
        assert storage.synced_seq == 1


async def test_a_sync_that_does_not_end_is_overdue(settings_of: MakeSettings, tmp_path: Path) -> None:
    storage = Storage(settings_of(sync_interval_ms=1000), EPOCH, tmp_path, None)
    assert storage.care is not None
    assert storage.sync_overdue_s(storage.care.turned_s + 0.9) == 0
    assert storage.sync_overdue_s(storage.care.turned_s + 61) == 60
    storage.close()


def test_the_unstamped_spool_has_no_cold_folder_of_its_own(settings_of: MakeSettings) -> None:
    settings = settings_of(cold_dir="/mnt/stick", spool_free_bytes_min=5)
    assert spool_settings(settings).cold_dir == "/mnt/stick"
    assert spool_settings(settings, cold=False).cold_dir == ""
    assert spool_settings(settings).reserve_bytes == 5


async def test_what_is_freed_before_it_is_synced_is_waited_for_no_longer(
    settings_of: MakeSettings, tmp_path: Path
) -> None:
    """Delivered sooner than synced, it needs no sync, and none would come: whoever waited for one waited for ever."""
    storage = Storage(settings_of(sync_interval_ms=100), EPOCH, tmp_path, None)
    async with running(storage):
        assert storage.buffer.append(make(EPOCH, 1, 0, "samples", [b"{}"], 1, 0))
        storage.buffer.free(1)
        await asyncio.wait_for(storage.synced(1), WAIT_S_MAX)
        assert storage.synced_seq == 0
        assert storage.buffer.append(make(EPOCH, 2, 1, "samples", [b"{}"], 1, 0))
        await asyncio.wait_for(storage.synced(2), WAIT_S_MAX)
        assert storage.synced_seq == 2
