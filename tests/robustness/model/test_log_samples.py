"""Every byte at which a kill can cut an append, every bit that can flip in a sealed segment: seeded samples of both."""

import os
from pathlib import Path
from random import Random

import pytest

from cncmon_agent.batch import Batch, make
from cncmon_agent.buffer.spool import Spool, SpoolSettings
from robustness.model.disk import KilledError, SimulatedDisk

CASES = 100_000 if os.environ.get("CNCMON_ROBUSTNESS") == "long" else 2_000
SEED = int(os.environ.get("CNCMON_ROBUSTNESS_SEED", "1"))
FOLDER = Path("/spool")
SETTINGS = SpoolSettings(segment_bytes=16 << 10, spool_bytes_max=1 << 20, reserve_bytes=0)
SIZES = (300, 1, 2200, 700, 4096, 90, 3000, 1500, 2500, 600)


def batches_of(epoch: int, salt: int) -> list[Batch]:
    random = Random(salt)
    return [
        make(epoch, seq, seq - 1, "samples", [random.randbytes(size)], 1, seq)
        for seq, size in enumerate(SIZES, start=1)
    ]


def sync(spool: Spool) -> None:
    work = spool.sync_work()
    if work is not None:
        work.run()
        spool.synced(work)


def recovered(disk: SimulatedDisk) -> Spool:
    """Return a spool that has scanned all there is."""
    spool = Spool(FOLDER, SETTINGS, disk)
    for piece in spool.recover_steps():
        piece.run()
        piece.install()
    return spool


def used_disk() -> SimulatedDisk:
    """Return a disk whose spare files are full of what an earlier start wrote at the very places of the next one."""
    disk = SimulatedDisk()
    spool = Spool(FOLDER, SETTINGS, disk)
    log = spool.begin(7)
    for batch in batches_of(7, 1):
        assert log.append(batch)
    sync(spool)
    log.free(99)
    spool = recovered(disk.copy())
    spool.forget(7)
    assert spool.stats().spares == 2
    return disk_of(spool)


def disk_of(spool: Spool) -> SimulatedDisk:
    disk = spool._disk
    assert isinstance(disk, SimulatedDisk)
    return disk.copy()


@pytest.mark.timeout(3600)
def test_a_kill_at_any_byte_of_an_append_leaves_a_prefix_of_whole_records() -> None:
    random = Random(SEED)
    used = used_disk()
    batches = batches_of(7, 2)
    for case in range(CASES):
        disk = used.copy()
        spool = Spool(FOLDER, SETTINGS, disk)
        log = spool.begin(7)
        last = random.randrange(len(batches))
        for batch in batches[:last]:
            assert log.append(batch)
            if random.random() < 0.2:
                sync(spool)
        disk.kill_after = at = random.randrange(1 + len(batches[last].data) + 5000)
        whole = last
        try:
            assert log.append(batches[last])
            whole += 1
        except KilledError:
            pass
        disk.end_process()
        again = recovered(disk)
        held = list(again.earlier[7]) if 7 in again.earlier else []
        what = f"case {case} of seed {SEED}: killed {at} bytes into record {last + 1}"
        # All of a record may be there and only its page's zeros be missing: it is whole, whoever wrote them.
        assert held in (batches[:whole], batches[: last + 1]), what
        if 7 in again.earlier:
            assert again.earlier[7].holes() == [], what
        assert again.stats().quarantined_records == 0, what


@pytest.mark.timeout(3600)
def test_a_flipped_bit_of_a_sealed_segment_costs_the_record_it_hits_and_no_other() -> None:
    random = Random(SEED)
    disk = used_disk()
    spool = Spool(FOLDER, SETTINGS, disk)
    log = spool.begin(7)
    batches = batches_of(7, 2)
    for batch in batches:
        assert log.append(batch)
        sync(spool)
    sealed = log.segments[0]
    assert sealed.sealed
    assert sealed.index is not None
    places = [(entry >> 40 << 3, batch) for entry, batch in zip(sealed.index, batches, strict=False)]
    disk = disk.copy()
    content = disk.names[sealed.path].cache
    lost_ever: set[int] = set()
    for case in range(CASES):
        byte, bit = random.randrange(len(content)), random.randrange(8)
        content[byte] ^= 1 << bit
        spool = recovered(disk)
        log = spool.earlier[7]
        held = list(log)
        gone = [batch for batch in batches if batch not in held]
        what = f"case {case} of seed {SEED}: bit {bit} of byte {byte}"
        assert held == [batch for batch in batches if batch not in gone], what
        assert len(gone) <= 1, what
        for at, batch in places:
            if batch in gone:
                assert at <= byte < at + 120 + len(batch.data), what
                seq = batch.identity.seq
                assert log.holes() == ([(seq, seq)] if seq > 1 else []), what
                assert log.range() == (1 if seq > 1 else 2, len(batches) + 1), what
                lost_ever.add(seq)
        assert spool.stats().quarantined_records == len(gone), what
        content[byte] ^= 1 << bit
        spool.close()
        disk.names = {path: file for path, file in disk.names.items() if path.parent == FOLDER}
    assert lost_ever == {batch.identity.seq for _, batch in places}
