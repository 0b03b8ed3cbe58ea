"""Sequences that once lost, doubled, blocked or flooded something at the edge, or would have; without servers.

Long, because a fault found adds its sequence here, beside its like.
"""

import asyncio
import errno
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from cncmon_agent import agent as agent_module
from cncmon_agent import gaps as gaps_module
from cncmon_agent.agent import Agent
from cncmon_agent.batch import Batch, Source, make
from cncmon_agent.batcher import Batcher
from cncmon_agent.buffer.disk import Disk
from cncmon_agent.buffer.emptied import Emptied
from cncmon_agent.buffer.hot import HotRing
from cncmon_agent.buffer.log import SegmentLog
from cncmon_agent.buffer.spool import Spool
from cncmon_agent.buffer.store import SpoolSettings
from cncmon_agent.closings import Closings
from cncmon_agent.deliveries import Deliveries
from cncmon_agent.delivery import Delivery
from cncmon_agent.epochs import FILE, Epoch, Epochs, EpochsFile
from cncmon_agent.gaps import GAPS_MAX, GapTeller, gaps_of
from cncmon_agent.mover import Mover
from cncmon_agent.settings import AgentSettings
from cncmon_agent.spool_care import SpoolCare
from cncmon_agent.unstamped import LogMeta
from cncmon_agent.ways import CHUNK, Ways
from cncmon_core import frames
from cncmon_core.nats_link import NatsLink, NatsSettings
from cncmon_core.watermark import Watermark
from testkit.waiting import WAIT_S_MAX
from testkit.work import counting

OLD = 5
HOUR_S = 3600.0
WINDOW_S = 120.0


def now() -> datetime:
    return datetime(2026, 11, 24, tzinfo=UTC)


def batch(seq: int, epoch: int = OLD, size: int = 2) -> Batch:
    """Return a batch of two samples."""
    return make(epoch, seq, 2 * (seq - 1), "samples", [b"{}", b"{" + b"x" * (size - 2) + b"}"], 1, 0)


class Holed(HotRing):
    """A ring with batches that are damaged (`bad`), or that can't be read just now (`away`)."""

    def __init__(self, last: int, epoch: int = OLD, first: int = 1) -> None:
        super().__init__(1 << 22, first_seq=first)
        self.bad: list[tuple[int, int]] = []
        self.away: set[int] = set()
        self.reads = 0
        for seq in range(first, last + 1):
            self.append(batch(seq, epoch))

    def get(self, seq: int) -> Batch | None:
        self.reads += 1
        if seq in self.away or any(low <= seq <= high for low, high in self.bad):
            return None
        return super().get(seq)

    def holes(self) -> list[tuple[int, int]]:
        return list(self.bad)


class Dropping(HotRing):
    """A ring that drops its oldest batches at a cap, as a log on disk does."""

    def drop(self, up_to: int) -> None:
        self.free(up_to)


def sent(deliveries: Deliveries) -> list[int]:
    """Return what is published until there is nothing more: the backlog, then live."""
    seqs = []
    while (found := deliveries.next_backlog()) is not None:
        seqs.append(found[1])
    while (seq := deliveries.current.next_live()) is not None:
        seqs.append(seq)
    return seqs


def events_of(buffer: HotRing, kind: str) -> list[dict[str, Any]]:
    """Return the data of all events of a kind that are held."""
    found = []
    for held in buffer:
        for part in frames.split(frames.decompress(held.data))[0]:
            event = msgspec.json.decode(part)
            if event.get("type") == kind:
                found.append(event["data"])
    return found


class Edge:
    """An agent's parts without its I/O."""

    def __init__(self, folder: Path) -> None:
        self.epochs = Epochs(folder)
        self.buffer = Dropping(1 << 20)
        self.deliveries = Deliveries(self.buffer, self.epochs.current, WINDOW_S)
        self.batcher = Batcher(AgentSettings(), self.epochs.current.epoch, self.buffer, None, now)
        self.teller = GapTeller(self.deliveries, self.batcher, None, now)
        self.closings = Closings(self.epochs, self.deliveries, self.batcher, now)

    def tell(self, seq: int, **others: int) -> None:
        """Say how far the database has the current epoch, and others."""
        known = {int(name.removeprefix("e")): value for name, value in others.items()}
        self.deliveries.told(Watermark(1, "made", 0, {self.epochs.current.epoch: seq} | known))


def with_an_earlier_epoch(folder: Path) -> tuple[Edge, int]:
    first = Edge(folder)
    first.epochs.current.last_seq, first.epochs.current.last_samples = 3, 6
    first.epochs.save()
    edge = Edge(folder)
    [old] = edge.epochs.open
    edge.deliveries.add_earlier(Holed(3, old.epoch), old)
    return edge, old.epoch


# --- A4, A7: what can't be read just now ---------------------------------------------------------------------------


def test_a_batch_that_can_not_be_read_just_now_is_published_later() -> None:
    """Too many open files: no batch, no hole. It was forgotten, and its epoch stood still until the next start."""
    buffer = Holed(3)
    buffer.away = {2}
    deliveries = Deliveries(HotRing(1 << 16), Epoch(77), WINDOW_S)
    delivery = deliveries.add_earlier(buffer, Epoch(OLD))
    for seq in sent(deliveries):
        if buffer.get(seq) is None:
            delivery.gone(seq)
        else:
            delivery.taken(seq, seq, 0.0)
    assert delivery.missing() == []
    assert delivery.unacknowledged() == 1
    buffer.away = set()
    deliveries.resume()
    assert sent(deliveries) == [2]
    delivery.taken(2, 4, 0.0)
    delivery.told(3)
    assert buffer.range() == (4, 4)


def test_a_batch_that_is_damaged_is_not_waited_for() -> None:
    buffer = Holed(3)
    delivery = Delivery(buffer, Epoch(OLD), WINDOW_S)
    delivery.go_live()
    assert [delivery.next_backlog() for _ in range(3)] == [1, 2, 3]
    buffer.bad = [(2, 2)]
    delivery.gone(2)
    delivery.taken(1, 1, 0.0)
    delivery.taken(3, 2, 0.0)
    assert (delivery.epoch.acked_seq, delivery.unacknowledged()) == (3, 0)
    assert delivery.missing() == [(2, 2)]


def test_the_counts_go_on_over_a_damaged_batch_at_the_watermark() -> None:
    """They stood at the batch before it, so that the next gap's samples were too many by those of the damaged one."""
    buffer = Holed(6)
    buffer.bad = [(3, 3), (5, 5)]
    epoch = Epoch(OLD, last_seq=6, last_samples=12)
    delivery = Delivery(buffer, epoch, WINDOW_S)
    delivery.go_live()
    for seq in (1, 2, 4, 6):
        delivery.taken(seq, seq, 0.0)
    delivery.told(3)
    assert (epoch.freed_seq, epoch.freed_samples) == (3, 6)
    assert gaps_of(delivery) == [(OLD, 5, 5, 2, "damaged", 8, 10)]


def test_a_day_that_the_stream_has_and_the_database_has_not_is_taken_up_at_once() -> None:
    """A million batches were looked at one by one while the event loop stood, at the start and when the stream went."""

    class Day:
        def range(self) -> tuple[int, int]:
            return 1, 1_000_001

        def holes(self) -> list[tuple[int, int]]:
            return []

    day: Any = Day()
    with counting() as work:
        delivery = Delivery(day, Epoch(OLD, acked_seq=1_000_000, acked_stream_seq=5_000_000), WINDOW_S)
        delivery.lost_from(5_000_001)
        assert delivery.resent == 0
        delivery.lost_from(0)
    assert work.steps < 2 * 1_000_000, "a step or two per batch"
    assert delivery.backlog() == delivery.resent == 1_000_000
    assert [delivery.next_backlog() for _ in range(2)] == [1, 2]
    assert (delivery.epoch.acked_seq, delivery.epoch.acked_stream_seq) == (0, 0)


def test_holes_are_not_counted_out_at_every_acknowledgement() -> None:
    """A log with a thousand damaged records takes a tenth of a second for it: no lane moves then."""
    looks = 0

    class Damaged(Holed):
        def holes(self) -> list[tuple[int, int]]:
            nonlocal looks
            looks += 1
            return super().holes()

    delivery = Delivery(Damaged(100), Epoch(OLD), WINDOW_S)
    delivery.go_live()
    seqs = [delivery.next_backlog() for _ in range(100)]
    looks = 0
    for seq in seqs:
        assert seq is not None
        delivery.taken(seq, seq, 0.0)
    assert looks == 0


def test_what_went_back_is_not_said_to_lie_above_the_stream_s_end() -> None:
    delivery = Delivery(Holed(4), epoch := Epoch(OLD), WINDOW_S)
    delivery.go_live()
    for seq in (1, 2, 3, 4):
        delivery.taken(seq, 1000 + seq, 0.0)
    delivery.lost_from(1003)
    assert (epoch.acked_seq, epoch.acked_stream_seq) == (2, 1002)


# --- A5: evidence ----------------------------------------------------------------------------------------------------


def test_a_document_of_another_stream_is_no_evidence_against_the_one_the_server_has() -> None:
    """The stream was made anew while ingest is down: the document in the bucket is of the one before it.

    Its floor was taken for this stream's, and everything sent again every two minutes for as long as ingest was down.
    """
    buffer = HotRing(1 << 16)
    for seq in (1, 2, 3):
        buffer.append(batch(seq, 77))
    deliveries = Deliveries(buffer, Epoch(77), WINDOW_S)
    deliveries.stream_seen("2026-11-24T10:00:00+00:00", 0)
    for seq in sent(deliveries):
        deliveries.taken(deliveries.current, seq, seq, 0.0, duplicate=False)
    old = Watermark(1, "2026-11-01T00:00:00+00:00", 10_000_000, {4: 9})
    for hour in range(24):
        deliveries.told(old)
        deliveries.look_for_lost(hour * HOUR_S)
        assert sent(deliveries) == []
    assert deliveries.unsure
    deliveries.stream_seen("2026-11-24T10:00:00+00:00")
    assert not deliveries.unsure
    deliveries.told(Watermark(1, "2026-11-24T10:00:00+00:00", 2, {77: 0}))
    assert deliveries.floor == 2
    deliveries.look_for_lost(25 * HOUR_S)
    assert sent(deliveries) == [1, 2]


def test_a_stream_made_anew_during_a_connection_is_believed_once_the_server_says_so() -> None:
    buffer = HotRing(1 << 16)
    buffer.append(batch(1, 77))
    deliveries = Deliveries(buffer, Epoch(77), WINDOW_S)
    deliveries.stream_seen("first", 0)
    assert sent(deliveries) == [1]
    deliveries.taken(deliveries.current, 1, 100, 0.0, duplicate=False)
    deliveries.told(Watermark(1, "second", 7, {}))
    assert deliveries.unsure
    assert sent(deliveries) == []
    deliveries.stream_seen("second")
    assert sent(deliveries) == [1]
    assert deliveries.floor == 7


def test_a_backup_s_stream_that_is_back_is_believed() -> None:
    """It was among those that are gone, and no evidence counted any more until the next start."""
    buffer = HotRing(1 << 16)
    buffer.append(batch(1, 77))
    deliveries = Deliveries(buffer, Epoch(77), WINDOW_S)
    deliveries.stream_seen("first", 0)
    deliveries.stream_seen("second", 0)
    assert sent(deliveries) == [1]
    deliveries.taken(deliveries.current, 1, 1, 0.0, duplicate=False)
    deliveries.stream_seen("first", 0)
    assert sent(deliveries) == [1]
    deliveries.told(Watermark(1, "first", 3, {77: 0}))
    assert deliveries.floor == 3


def test_an_epoch_read_after_the_stream_was_found_to_be_another_is_sent_again() -> None:
    """The disk takes longer than the connection: what the old stream had taken counted as taken by the new one."""
    deliveries = Deliveries(HotRing(1 << 16), Epoch(77), WINDOW_S, stream_created="first")
    deliveries.stream_seen("second", 20)
    deliveries.add_earlier(Holed(3), Epoch(OLD, acked_seq=3, acked_stream_seq=10, last_seq=3))
    assert sent(deliveries) == [1, 2, 3]


def test_a_duplicate_window_is_kept_to_within_a_chunk_of_a_slow_edge() -> None:
    """A batch every five minutes: what was taken 20 hours after its chunk's first counted as taken at 18 hours."""
    ways = Ways()
    ways.take(1, 1, 0.0)
    ways.take(2, 2, 15 * HOUR_S)
    ways.take(200, 3, 20 * HOUR_S)
    assert ways.get(200) == (3, 20 * HOUR_S)
    assert ways.get(2) == (2, 15 * HOUR_S)
    found = ways.get(1)
    assert found is not None
    assert 0 <= found[1] <= 2 * HOUR_S


def test_ways_that_are_taken_or_lost_by_the_range_are_those_taken_one_by_one() -> None:
    for first, last in ((1, 3), (1, CHUNK - 1), (7, 3 * CHUNK + 9), (CHUNK, 2 * CHUNK - 1), (5, 4), (300, 1000)):
        one, other = Ways(), Ways()
        one.take_all(first, last, 9_000, 5.0)
        for seq in range(first, last + 1):
            other.take(seq, 9_000, 5.0)
        seqs = range(last + 2)
        assert [one.get(seq) for seq in seqs] == [other.get(seq) for seq in seqs]
        one.take(first + 1, 9_500, 6.0)
        lost = one.lose(9_000, first + 1)
        assert lost == ([(first + 2, last + 1)] if last > first + 1 else [])
        assert one.get(first + 1) == (9_500, 6.0)
        assert one.get(last) is None or last <= first + 1


# --- A1, A7: what is said must be heard -----------------------------------------------------------------------------


def test_delivery_a1_a_closing_that_was_dropped_at_the_cap_is_said_again(tmp_path: Path) -> None:
    """Said at the start of an outage, dropped at its end, passed by the watermark as a gap: it counted as heard."""
    edge, old = with_an_earlier_epoch(tmp_path)
    edge.closings.say()
    for seq in range(2, 10):
        edge.buffer.append(batch(seq, edge.epochs.current.epoch))
    edge.buffer.drop(4)
    edge.teller.go(online=True)
    edge.tell(0)
    edge.teller.step()
    assert edge.closings.step() == []
    assert [one["epoch"] for one in events_of(edge.buffer, "epoch_closed")] == [old]
    [said] = [gap for gap in events_of(edge.buffer, "gap") if gap["epoch"] != old]
    assert (said["seq_from"], said["seq_to"]) == (1, 4)
    edge.tell(10)
    edge.closings.step()
    assert not edge.epochs.open[0].closed
    edge.tell(edge.buffer.range()[1] - 1)
    edge.closings.step()
    assert edge.epochs.open[0].closed


def test_delivery_a1_a_closing_that_the_buffer_had_no_room_for_is_said_later(tmp_path: Path) -> None:
    edge, old = with_an_earlier_epoch(tmp_path)
    append = edge.buffer.append
    edge.buffer.append = lambda one: False  # type: ignore[method-assign]
    edge.closings.say()
    edge.buffer.append = append  # type: ignore[method-assign]
    for _ in range(3):
        edge.closings.step()
    assert [one["epoch"] for one in events_of(edge.buffer, "epoch_closed")] == [old]


def test_delivery_a1_nothing_is_closed_or_forgotten_before_the_disk_is_read(tmp_path: Path) -> None:
    edge, _ = with_an_earlier_epoch(tmp_path)
    edge.epochs.open[0].closed = True
    edge.deliveries.forget(edge.epochs.open[0].epoch)
    assert edge.closings.step() == []
    assert len(edge.epochs.open) == 1


def test_delivery_a7_a_gap_said_in_a_batch_that_was_dropped_is_said_again(tmp_path: Path) -> None:
    edge, old = with_an_earlier_epoch(tmp_path)
    [delivery] = edge.deliveries.earlier.values()
    delivery.buffer.bad = [(2, 2)]  # type: ignore[attr-defined]
    edge.teller.go(online=True)
    edge.tell(0, **{f"e{old}": 0})
    edge.teller.step()
    edge.teller.step()
    assert len(events_of(edge.buffer, "gap")) == 1
    edge.buffer.append(batch(2, edge.epochs.current.epoch))
    edge.buffer.drop(1)
    edge.teller.step()
    assert [(gap["epoch"] == old, gap["seq_from"]) for gap in events_of(edge.buffer, "gap")] == [(True, 2), (False, 1)]


def test_delivery_a7_many_gaps_are_said_in_turn_and_read_from_the_disk_once(tmp_path: Path) -> None:
    """Each second the disk was read around every one of them, also around those said long ago."""
    edge, old = with_an_earlier_epoch(tmp_path)
    [delivery] = edge.deliveries.earlier.values()
    number = 2 * GAPS_MAX + 10
    holed = Holed(2 * number + 1, old)
    holed.bad = [(seq, seq) for seq in range(2, 2 * number + 1, 2)]
    delivery.buffer = holed
    edge.teller.go(online=True)
    edge.tell(0, **{f"e{old}": 0})
    for _ in range(3):
        edge.teller.step()
    said = [gap["seq_from"] for gap in events_of(edge.buffer, "gap")]
    assert said == [low for low, _ in holed.bad]
    holed.reads = 0
    edge.teller.step()
    assert holed.reads == 0


# --- the epochs file ------------------------------------------------------------------------------------------------


def test_a_bad_sector_under_the_epochs_file_keeps_no_edge_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Epochs(tmp_path)

    def read_bytes(self: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_bytes)
        epochs = Epochs(tmp_path)
    assert epochs.unreadable
    assert epochs.open == []
    assert [one.epoch for one in Epochs(tmp_path).open] == [epochs.current.epoch]


def test_an_epochs_file_that_can_not_be_read_just_now_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Epochs(tmp_path)

    def read_bytes(self: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_bytes)
        with pytest.raises(OSError, match="open files"):
            Epochs(tmp_path)
    assert [one.epoch for one in Epochs(tmp_path).open] == [first.current.epoch]


def test_the_epochs_file_is_never_written_by_two_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop leaves the write in its thread behind, and writes the file itself."""
    epochs = Epochs(tmp_path)
    write = epochs._file.write if epochs._file else None
    assert write is not None
    inside = 0
    most = 0

    def slow(content: bytes) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.05)
        write(content)
        inside -= 1

    monkeypatch.setattr(epochs._file, "write", slow)
    threads = [threading.Thread(target=epochs.write, args=(epochs.changes() or b"{}",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


# --- the agent ------------------------------------------------------------------------------------------------------


def spool_at(folder: Path, **changes: Any) -> Spool:
    bounds: dict[str, Any] = {"segment_bytes": 16 << 10, "spool_bytes_max": 128 << 10, "reserve_bytes": 0}
    return Spool(folder, SpoolSettings(**(bounds | changes)))


def sync(spool: Spool) -> None:
    while (work := spool.sync_work()) is not None and work.parts:
        work.run()
        spool.synced(work)


def agent_on(settings: AgentSettings) -> Agent:
    return Agent(settings, NatsLink(NatsSettings(servers=("nats://127.0.0.1:9",)), "agent"))


async def test_delivery_a7_what_a_disk_holds_that_can_not_be_read_is_no_gap(
    tmp_path: Path, settings_of: Callable[..., Any]
) -> None:
    """The log's folder fails, the epochs file beside it doesn't, and the agent goes on in memory.

    All of the earlier epoch looked lost then; it was declared as a gap, and its closing forgotten once that was heard.
    """
    settings = settings_of(spool="preferred")
    data = Path(settings.data_dir)
    data.mkdir()
    old = Epoch(OLD, last_seq=9, last_samples=18, freed_seq=2, freed_samples=4, closed=True)
    (data / FILE).write_bytes(msgspec.json.encode(EpochsFile(old)))
    (data / "spool").touch()
    agent = agent_on(settings)
    agent.gaps.go(online=True)
    recovering = asyncio.create_task(agent._recover())
    keeping = asyncio.create_task(agent._keep())
    await asyncio.wait_for(recovering, WAIT_S_MAX)
    agent.deliveries.told(Watermark(1, "made", 0, {OLD: 2}))
    await asyncio.sleep(1.3)
    keeping.cancel()
    assert list(agent.storage.buffer) == []
    assert [epoch.epoch for epoch in agent.epochs.open] == [OLD]
    # Still said to be there, or the cloud side would take it for abandoned.
    first = agent.heartbeat().epochs[0]
    assert (first.epoch, first.last_seq) == (OLD, 9)


async def test_delivery_a7_a_lost_epochs_file_hides_no_gap(tmp_path: Path, settings_of: Callable[..., Any]) -> None:
    """The cap dropped the oldest, then the epochs file was lost: that they are gone was never said.

    The watermark stood in front of them, and everything of the epoch stayed on the disk for ever.
    """
    settings = settings_of()
    folder = Path(settings.data_dir) / "spool"
    spool = spool_at(folder)
    log = spool.begin(OLD)
    noise = random.Random(5)
    for seq in range(1, 60):
        parts = [b"{}", noise.randbytes(4000)]
        assert log.append(make(OLD, seq, 2 * (seq - 1), "samples", parts, 1, 0))
        sync(spool)
    spool.close()
    agent = agent_on(settings)
    task = asyncio.create_task(agent.storage.run())
    try:
        recovering = asyncio.create_task(agent._recover())
        await asyncio.wait_for(agent.storage.wait_recovered(), WAIT_S_MAX)
        await asyncio.sleep(0.1)
        recovering.cancel()
    finally:
        task.cancel()
    [delivery] = agent.deliveries.earlier.values()
    first, _ = delivery.buffer.range()
    assert first > 1
    agent.deliveries.told(Watermark(1, "made", 0, {OLD: 0}))
    assert delivery.missing() == [(1, first - 1)]
    agent.storage.close()


# --- the spool's care -----------------------------------------------------------------------------------------------


async def test_a_stop_in_the_midst_of_a_sync_syncs_what_came_after_it(tmp_path: Path) -> None:
    """The spool waited for the end of that sync, which nobody brought: the last half second was left unsynced."""
    slow = threading.Event()

    class Slow(Disk):
        def fdatasync(self, fd: int) -> None:
            slow.wait(5)
            super().fdatasync(fd)

    spool = Spool(tmp_path, SpoolSettings(segment_bytes=16 << 10, spool_bytes_max=128 << 10, reserve_bytes=0), Slow())
    log = spool.begin(OLD)
    care = SpoolCare("test", spool, 10)
    task = asyncio.create_task(care.run())
    log.append(batch(1))
    await asyncio.sleep(0.1)
    log.append(batch(2))
    task.cancel()
    await asyncio.wait([task])
    closing = asyncio.create_task(asyncio.to_thread(care.close))
    await asyncio.sleep(0.05)
    slow.set()
    await closing
    assert log.synced_seq == 2


async def test_a_stop_before_a_sync_began_does_not_take_it_for_done(tmp_path: Path) -> None:
    spool = spool_at(tmp_path)
    log = spool.begin(OLD)
    care = SpoolCare("test", spool, 10)
    log.append(batch(1))
    synced: list[int] = []
    real = spool._disk.fdatasync
    spool._disk.fdatasync = lambda fd: (synced.append(fd), real(fd))[1]  # type: ignore[method-assign]
    care._under_way = spool.sync_work()
    care.close()
    assert synced
    assert log.synced_seq == 1


async def test_a_long_interval_between_syncs_costs_no_samples(tmp_path: Path) -> None:
    """A minute, and more in it than the memory for it takes: what came after that was refused."""
    spool = spool_at(tmp_path, segment_bytes=1 << 20, spool_bytes_max=16 << 20, unsynced_bytes_max=1 << 16)
    log = spool.begin(OLD)
    care = SpoolCare("test", spool, 60_000)
    task = asyncio.create_task(care.run())
    seq = 0
    for _ in range(3):
        while log.appender.unsynced_bytes < 40_000:
            seq += 1
            assert log.append(batch(seq))
        await asyncio.wait_for(care.turn(), WAIT_S_MAX)
    task.cancel()
    await asyncio.wait([task])
    care.close()


async def test_the_source_of_a_batch_that_can_not_be_read_just_now_is_not_overlooked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its samples were moved a second time, under another identity, and stored twice."""
    buffer = Holed(2)
    buffer.append(make(OLD, 3, 4, "samples", [b"{}"], 1, 0, Source(9, 1, 1)))
    buffer.append(make(OLD, 4, 5, "samples", [b"{}"], 1, 0, Source(9, 2, 2)))
    buffer.away, buffer.bad = {3}, [(2, 2)]
    monkeypatch.setattr(agent_module, "UPKEEP_S", 0.01)
    finding = asyncio.create_task(agent_module._sources([buffer]))
    await asyncio.sleep(0.05)
    assert not finding.done()
    buffer.away = set()
    assert await asyncio.wait_for(finding, WAIT_S_MAX) == [Source(9, 1, 1), Source(9, 2, 2)]


async def test_a_batch_without_time_that_can_not_be_read_just_now_is_moved_later(tmp_path: Path) -> None:
    """It was skipped, said to be lost, and let go of."""
    clock: Any = SimpleNamespace(boot_id="here", settled=True, known=True, floor=SimpleNamespace())
    unstamped: Any = SimpleNamespace(clock=clock)
    main: Any = SimpleNamespace(batch_bytes_max=1 << 16)
    mover = Mover(unstamped, main, 77)
    moved: list[int] = []

    async def move_batch(meta: LogMeta, one: Batch) -> None:
        del meta
        moved.append(one.identity.seq)

    mover._move_batch = move_batch  # type: ignore[method-assign]
    buffer = Holed(3)
    buffer.away = {2}
    moving = asyncio.create_task(mover._move(LogMeta(OLD, "there", 0), buffer))
    await asyncio.sleep(0.05)
    buffer.away = set()
    await asyncio.wait_for(moving, WAIT_S_MAX)
    assert moved == [1, 2, 3]


# --- the log on disk ------------------------------------------------------------------------------------------------


def test_a_spare_that_somebody_removed_stops_nothing(tmp_path: Path) -> None:
    """A full disk, and a person who removes `*.spare`: every append failed until the next start."""
    spool = spool_at(tmp_path, segment_bytes=64 << 10, spool_bytes_max=1 << 20)
    log: SegmentLog = spool.begin(OLD)
    seq = 0
    while not list(tmp_path.glob("*.spare")):
        seq += 1
        assert seq < 1000
        assert log.append(batch(seq, size=100))
        sync(spool)
    for path in tmp_path.glob("*.spare"):
        path.unlink()
    for more in range(seq + 1, seq + 200):
        assert log.append(batch(more, size=100)), f"seq {more} refused"


def test_holes_of_a_log_with_many_damaged_records_are_found_quickly(tmp_path: Path) -> None:
    spool = spool_at(tmp_path)
    log: Any = spool.begin(OLD)
    first = SimpleNamespace(first=1, last=20_000, bad=[(seq, seq) for seq in range(2, 10_000, 2)])
    log.segments.append(first)
    log.appender.next = 20_001
    with counting() as work:
        assert len(log.holes()) == len(first.bad)
    assert work.steps < 20 * len(first.bad)


# --- many lives of one edge -----------------------------------------------------------------------------------------


class Disked(HotRing):
    """A log as it outlives its process: batches are dropped at the cap and damaged, and its head moves over them."""

    def __init__(self) -> None:
        super().__init__(1 << 20, 4096)
        self.bad: set[int] = set()

    def get(self, seq: int) -> Batch | None:
        return None if seq in self.bad else super().get(seq)

    def free(self, up_to_seq: int) -> int:
        freed = super().free(up_to_seq)
        while self.range()[0] in self.bad:
            super().free(self.range()[0])
        return freed

    def damage(self, seq: int) -> None:
        self.bad.add(seq)
        self.free(self.range()[0] - 1)

    def holes(self) -> list[tuple[int, int]]:
        first, end = self.range()
        return [(seq, seq) for seq in sorted(self.bad) if first <= seq < end]


class Lives(RuleBasedStateMachine):
    """One edge over many starts: an epochs file that is old or lost, drops, damage, another stream, a slow database.

    Whatever was accepted is in the database or a gap in the end, and nothing stands still or is kept for ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.disk: dict[int, Disked] = {}
        self.saves: list[bytes] = []
        self.stream: list[tuple[int, Batch]] = []
        self.created, self.floor, self.now_s = 1, 0, 0.0
        self.ledger: set[tuple[int, int]] = set()
        self.gaps: set[tuple[int, int]] = set()
        self.closed: dict[int, int] = {}
        self.unknown: set[int] = set()
        self._begin()

    def teardown(self) -> None:
        try:
            self._settle()
        finally:
            shutil.rmtree(self.folder)

    def _begin(self) -> None:
        self.epochs = Epochs(self.folder)
        current = self.epochs.current
        left = {number: log for number, log in self.disk.items() if log.range()[0] < log.range()[1]}
        self.log = self.disk[current.epoch] = Disked()
        self.all = Deliveries(self.log, current, WINDOW_S, self.epochs.stream_created)
        self.batcher = Batcher(AgentSettings(), current.epoch, self.log, None, now)
        self.teller = GapTeller(self.all, self.batcher, None, now)
        self.closings = Closings(self.epochs, self.all, self.batcher, now)
        known = {epoch.epoch for epoch in self.epochs.open}
        self.epochs.open += [Epoch(number) for number in left if number not in known]
        for epoch in self.epochs.open:
            buffer = left.get(epoch.epoch) or Emptied(max(epoch.last_seq, epoch.acked_seq) + 1)
            agent_module.note_end(epoch, buffer)
            self.all.add_earlier(buffer, epoch)
        self.closings.say()
        self.epochs.save()
        self.saves = [(self.folder / FILE).read_bytes()]
        self.teller.go(online=True)
        self.all.stream_seen(str(self.created), len(self.stream))
        self.all.connected()

    @rule(how=st.sampled_from(("saved", "old", "lost")))
    def starts_again(self, how: str) -> None:
        path = self.folder / FILE
        if how == "saved":
            self.saves_its_epochs()
        elif how == "old":
            path.write_bytes(self.saves[0])
        else:
            path.unlink()
        self._begin()
        known = {epoch.epoch for epoch in self.epochs.open}
        for epoch, log in self.disk.items():
            first, end = log.range()
            if how != "saved" and first == end and epoch not in known:
                # Neither the file nor the disk knows of it any more: the cloud side finds it abandoned (rule D4).
                self.unknown.add(epoch)

    @rule()
    def saves_its_epochs(self) -> None:
        self.epochs.stream_created = self.all.stream_created
        for delivery in self.all:
            delivery.settle()
        agent_module.note_synced(self.epochs.current, self.log, self.log.range()[1] - 1)
        self.epochs.save()
        self.saves.append((self.folder / FILE).read_bytes())

    @rule(count=st.integers(1, 4))
    def reads_machines(self, count: int) -> None:
        for _ in range(count):
            end = self.log.range()[1]
            base = self.batcher.samples
            self.batcher._base += 1
            self.log.append(make(self.epochs.current.epoch, end, base, "samples", [b"{}"], 1, 0))

    @rule(count=st.integers(1, 3))
    def cap_drops_the_oldest(self, count: int) -> None:
        for log in self.disk.values():
            first, end = log.range()
            # The file that is being written is never dropped.
            if first < end - (log is self.log):
                log.free(min(first + count, end - (log is self.log)) - 1)
                return

    @rule(data=st.data())
    def card_damages_a_batch(self, data: st.DataObject) -> None:
        # Damage to the newest records can't be told from what a power cut leaves of those that were not synced.
        first, end, log = data.draw(st.sampled_from([(*log.range(), log) for log in self.disk.values()]))
        end -= log is self.log
        if first < end:
            log.damage(data.draw(st.integers(first, end - 1)))

    @rule(count=st.integers(1, 8), answered=st.booleans())
    def publishes(self, count: int, *, answered: bool) -> None:
        for _ in range(count):
            found = self.all.next_backlog()
            if found is None:
                seq = self.all.current.next_live()
                if seq is None:
                    return
                found = self.all.current, seq
            delivery, seq = found
            one = delivery.buffer.get(seq)
            if one is None:
                delivery.gone(seq)
                continue
            self.stream.append((one.identity.epoch, one))
            if answered:
                self.all.taken(delivery, seq, len(self.stream), self.now_s, duplicate=False)
            else:
                delivery.failed(seq)
                return

    @rule()
    def stream_is_made_anew(self) -> None:
        self.stream, self.floor = [], 0
        self.created += 1

    @rule(count=st.integers(1, 10))
    def ingest_stores(self, count: int) -> None:
        for epoch, one in self.stream[self.floor : self.floor + count]:
            key = epoch, one.identity.seq
            if key[1] > self._watermark(epoch) or key in self.gaps:
                self.gaps.discard(key)
                self.ledger.add(key)
                if one.identity.kind == "events":
                    self._hears(one)
        self.floor = min(len(self.stream), self.floor + count)

    def _hears(self, one: Batch) -> None:
        for part in frames.split(frames.decompress(one.data))[0]:
            event = msgspec.json.decode(part)
            data = event["data"]
            if event["type"] == "epoch_closed":
                self.closed[data["epoch"]] = data["last_seq"]
            else:
                above = self._watermark(data["epoch"]) + 1
                missing = {(data["epoch"], seq) for seq in range(max(above, data["seq_from"]), data["seq_to"] + 1)}
                self.gaps |= missing - self.ledger

    def _watermark(self, epoch: int) -> int:
        seq = 0
        while (epoch, seq + 1) in self.ledger or (epoch, seq + 1) in self.gaps:
            seq += 1
        return seq

    @rule()
    def is_told(self) -> None:
        epochs = {epoch: self._watermark(epoch) for epoch in {key[0] for key in (*self.ledger, *self.gaps)}}
        self.all.told(Watermark(1, str(self.created), self.floor, epochs))
        if self.all.unsure:
            self.all.stream_seen(str(self.created))

    @rule()
    def looks_after_itself(self) -> None:
        self.now_s += 200
        self.all.look_for_lost(self.now_s)
        self.all.resume()
        self.teller.step()
        for epoch in self.closings.step():
            log = self.disk.get(epoch)
            assert log is None or log.range()[0] == log.range()[1]

    def _settle(self) -> None:
        """With everything working, in some rounds all is told of, and of earlier epochs nothing is left."""
        self.saves_its_epochs()
        self._begin()
        for _ in range(12):
            self.reads_machines(1)
            self.publishes(500, answered=True)
            self.ingest_stores(1000)
            self.is_told()
            self.looks_after_itself()
        self.publishes(500, answered=True)
        self.ingest_stores(1000)
        self.is_told()
        for epoch in self.disk.keys() - self.unknown:
            first, end = self.disk[epoch].range()
            assert first == end, f"epoch {epoch} is kept from {first} to {end}"
            assert {(epoch, seq) for seq in range(1, end)} <= self.ledger | self.gaps
            if epoch != self.epochs.current.epoch and end > 1:
                assert epoch in self.closed
        assert self.epochs.open == []
        assert not self.all.earlier


def test_whatever_befalls_an_edge_over_its_lives_all_is_stored_or_a_gap_and_nothing_stands_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gaps_module, "UNKNOWN_S", -1.0)
    monkeypatch.setattr(gaps_module, "REPEAT_S", -1.0)
    run_state_machine_as_test(Lives, settings=settings(max_examples=60, stateful_step_count=30))
