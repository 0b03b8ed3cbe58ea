"""Rules A1, A4, A6 and A7 where another agent has this one's memory, or a document says what can't be; no servers."""

import asyncio
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from cncmon_agent.batch import make
from cncmon_agent.batcher import Batcher
from cncmon_agent.beats import KEPT, Beats, Mark
from cncmon_agent.buffer import Buffer
from cncmon_agent.buffer.emptied import Emptied
from cncmon_agent.buffer.hot import HotRing
from cncmon_agent.closings import Closings
from cncmon_agent.deliveries import IMPOSSIBLE, OLD_NEWS_S, Deliveries
from cncmon_agent.epochs import FILE, Epoch, Epochs, EpochsFile
from cncmon_agent.settings import AgentSettings
from cncmon_agent.storage import Storage
from cncmon_core import frames
from cncmon_core.events import EPOCH_CLOSED, GAP, decode_event
from cncmon_core.watermark import Watermark
from testkit import agent as agents
from testkit.recorder import until

EPOCH = 77
ABSURD = 10**15
WAIT_S = 120.0


class Here:
    """A buffer and its deliveries; `sent` batches are published and taken by the stream at their own numbers."""

    def __init__(self, sent: int = 0, epoch: Epoch | None = None) -> None:
        self.buffer = HotRing(1 << 20, 4096)
        self.epoch = epoch or Epoch(EPOCH)
        self.all = Deliveries(self.buffer, self.epoch, 120.0)
        self.delivery = self.all.current
        self.append(sent)
        self.publish()
        self.ack(*range(1, sent + 1))

    def append(self, count: int) -> None:
        _, end = self.buffer.range()
        for seq in range(end, end + count):
            assert self.buffer.append(make(EPOCH, seq, seq - 1, "samples", [b"{}"], 1, 0))

    def publish(self) -> list[int]:
        seqs = []
        while (found := self.all.next_backlog()) is not None:
            seqs.append(found[1])
        while (seq := self.all.current.next_live()) is not None:
            seqs.append(seq)
        return seqs

    def ack(self, *seqs: int, at: int = 0, duplicate: bool = False) -> None:
        for offset, seq in enumerate(seqs):
            self.all.taken(self.delivery, seq, at + offset if at else seq, 0.0, duplicate=duplicate)

    def tell(
        self, seq: int, floor: int = 0, *, generation: int = 1, created: str = "first", now_s: float = 0.0
    ) -> None:
        self.all.told(Watermark(generation, created, floor, {EPOCH: seq}), now_s)

    def is_forked(self, seq: int = 0, floor: int = 0) -> None:
        self.all.told(Watermark(1, "first", floor, {EPOCH: seq}, [EPOCH]))

    @property
    def held(self) -> list[int]:
        return [batch.identity.seq for batch in self.buffer]


# --- A7: a watermark that can't be true ---------------------------------------------------------------------------


def test_delivery_a7_a_watermark_above_the_last_appended_frees_nothing() -> None:
    here = Here(4)
    here.tell(1)
    alarms = IMPOSSIBLE._value.get()
    here.tell(ABSURD, floor=4)
    assert here.held == [2, 3, 4]
    assert IMPOSSIBLE._value.get() == alarms + 1
    assert not here.epoch.forked
    [said] = here.all.problems()
    assert str(ABSURD) in said
    # One above is as wrong as 10¹⁵.
    here.tell(5, floor=4)
    assert here.held == [2, 3, 4]
    # The same doubt goes on: one alarm.
    assert IMPOSSIBLE._value.get() == alarms + 1


def test_delivery_a7_the_truth_is_listened_to_after_an_absurd_watermark() -> None:
    here = Here(4)
    here.tell(1)
    here.tell(ABSURD)
    here.tell(3)
    assert here.delivery.watermark == 3
    assert here.held == [4]
    assert here.all.problems() == []
    here.append(2)
    here.publish()
    here.ack(5, 6)
    here.tell(6)
    assert here.held == []


def test_delivery_a7_what_the_database_had_before_it_was_appended_is_not_freed() -> None:
    """A machine that was reverted: what it appends now are other batches than those that the database has."""
    here = Here(4)
    here.tell(10)
    here.append(8)
    here.publish()
    here.ack(*range(5, 13))
    here.tell(10, floor=100)
    here.tell(12, floor=100)
    assert here.held == list(range(1, 13))
    # What it had by then may be true.
    here.tell(4, floor=100)
    assert here.held == list(range(5, 13))


def test_delivery_a7_a_doubt_outlasts_a_restart(tmp_path: Path) -> None:
    first = Epochs(tmp_path)
    here = Here(4, first.current)
    here.all.told(Watermark(1, "first", 0, {first.current.epoch: 10}))
    first.save()
    [old] = Epochs(tmp_path).open
    assert old.doubted_from == 5
    left = HotRing(1 << 20)
    for seq in range(1, 13):
        left.append(make(old.epoch, seq, seq - 1, "samples", [b"{}"], 1, 0))
    again = Deliveries(HotRing(1 << 20), Epoch(1), 120.0)
    delivery = again.add_earlier(left, old)
    while (found := again.next_backlog()) is not None:
        again.taken(delivery, found[1], found[1], 0.0, duplicate=False)
    again.told(Watermark(1, "first", 12, {old.epoch: 10}))
    assert len(list(left)) == 12
    again.told(Watermark(1, "first", 12, {old.epoch: 10}, [old.epoch]))
    assert [batch.identity.seq for batch in left] == [11, 12]


def test_delivery_a7_of_an_earlier_epoch_the_database_may_have_more_than_the_disk() -> None:
    """A power cut took the end of it; the consumers have to have passed what is left here, all the same."""
    old = Epoch(5)
    left = HotRing(1 << 20)
    for seq in range(1, 4):
        left.append(make(5, seq, seq - 1, "samples", [b"{}"], 1, 0))
    here = Here()
    delivery = here.all.add_earlier(left, old)
    assert here.publish() == [1, 2, 3]
    for seq in range(1, 4):
        here.all.taken(delivery, seq, 10 + seq, 0.0, duplicate=False)
    here.all.told(Watermark(1, "first", 12, {5: 9}))
    assert here.all.problems() == []
    assert [batch.identity.seq for batch in left] == [3]
    here.all.told(Watermark(1, "first", 13, {5: 9}))
    assert list(left) == []


@pytest.mark.parametrize("generation", [1, (1 << 63) - 1])
def test_delivery_a7_what_is_told_for_long_is_believed_whatever_was_told_before(generation: int) -> None:
    here = Here(4)
    here.tell(3 if generation == 1 else 1, generation=generation)
    before = here.held
    here.tell(2, now_s=1.0)
    here.tell(2, now_s=OLD_NEWS_S)
    assert here.held == before
    assert here.delivery.watermark == (3 if generation == 1 else 1)
    here.tell(2, now_s=1.0 + OLD_NEWS_S)
    assert here.delivery.watermark == 2
    here.tell(4, now_s=1.0 + OLD_NEWS_S)
    assert here.held == []


# --- A4, A5: of a forked epoch the watermark speaks of either agent's batch -----------------------------------------


def test_delivery_a4_of_a_forked_epoch_what_the_consumers_passed_is_freed() -> None:
    here = Here(4)
    here.is_forked(4, floor=2)
    assert here.held == [3, 4]
    here.is_forked(9, floor=2)
    assert here.held == [3, 4]
    here.is_forked(9, floor=3)
    assert here.held == [4]
    here.is_forked(3, floor=4)
    here.is_forked(9, floor=4)
    assert here.held == []


def test_delivery_a4_what_the_stream_takes_anew_under_the_watermark_waits_for_the_consumers() -> None:
    """Before it is known that there is a twin: the watermark speaks of the twin's batch, ours is not committed yet."""
    here = Here()
    here.append(3)
    here.publish()
    here.tell(3, floor=3)
    here.ack(1, 2, at=7)
    assert here.held == [1, 2, 3]
    here.tell(3, floor=7)
    assert here.held == [2, 3]
    here.tell(3, floor=8)
    assert here.held == [3]


def test_delivery_a5_what_the_stream_lost_of_a_forked_epoch_is_sent_again_under_the_watermark_too() -> None:
    here = Here(4)
    here.is_forked(4, floor=2)
    here.all.stream_seen("first", 2)
    assert here.publish() == [3, 4]
    here.is_forked(4, floor=9)
    assert here.held == [3, 4]
    here.ack(3, 4, at=8)
    assert here.held == []


# --- A1: a new epoch while running ----------------------------------------------------------------------------------


def test_delivery_a1_a_document_names_the_forked_epochs_however_old_it_is() -> None:
    here = Here(4)
    here.tell(3)
    here.all.told(Watermark(0, "first", 0, {EPOCH: 1}, [EPOCH, 5]))
    assert here.epoch.forked
    assert here.delivery.watermark == 3
    [said] = here.all.problems()
    assert f"epoch {EPOCH} is forked" in said
    # Also where its log was read after that.
    here.all.told(Watermark(1, "first", 0, {EPOCH: 3}, [EPOCH, 5]))
    old = Epoch(5)
    here.all.add_earlier(Emptied(1), old)
    assert old.forked


def test_delivery_a1_what_was_appended_goes_on_under_the_forked_epoch() -> None:
    here = Here(2)
    here.append(2)
    assert here.all.current.next_live() == 3
    here.is_forked(2)
    fresh = HotRing(1 << 20)
    here.all.begin(fresh, Epoch(78))
    fresh.append(make(78, 1, 0, "samples", [b"{}"], 1, 0))
    # Seq 3 is on its way, 4 waits in the old epoch's backlog, and what comes now is live.
    found = here.all.next_backlog()
    assert found is not None
    assert (found[0].epoch.epoch, found[1]) == (EPOCH, 4)
    assert here.all.next_backlog() is None
    assert here.all.current.next_live() == 1
    here.ack(3, 4)
    here.is_forked(4, floor=4)
    assert here.held == []
    assert here.delivery.done()


def test_delivery_a1_a_prepared_epoch_is_on_disk_before_it_begins(tmp_path: Path) -> None:
    """Killed after each step, a start knows both epochs."""
    epochs = Epochs(tmp_path)
    epochs.current.forked = True
    old = epochs.current.epoch
    epochs.prepare()
    epochs.save()
    killed = Epochs(shutil.copytree(tmp_path, tmp_path / "killed", ignore=shutil.ignore_patterns("killed")))
    assert [(epoch.epoch, epoch.forked) for epoch in killed.open] == [(old, True), (killed.open[1].epoch, False)]
    epochs.save()
    fresh = epochs.begin()
    assert fresh.epoch == killed.open[1].epoch
    assert epochs.current is fresh
    epochs.save()
    assert [epoch.epoch for epoch in Epochs(tmp_path).open] == [old, fresh.epoch]


def test_delivery_a1_two_clones_draw_different_epochs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Even where the kernels' generators still give both the same."""
    monkeypatch.setattr("cncmon_agent.epochs.secrets.token_bytes", lambda count: bytes(count))
    assert Epochs(tmp_path / "one").current.epoch != Epochs(tmp_path / "other").current.epoch


# --- A6: marks of heartbeats ----------------------------------------------------------------------------------------


@pytest.fixture
def beats() -> Beats:
    return Beats("hall", "e1")


def test_delivery_a6_our_own_heartbeats_are_no_twin_s(beats: Beats) -> None:
    marks = [beats.next() for _ in range(KEPT + 10)]
    # The last ones, those that came late, and those of a bucket that was restored.
    assert not any(beats.is_twins(mark) for mark in marks)


@pytest.mark.parametrize(
    ("change", "is_twins"),
    [
        (lambda last: last, False),
        (lambda last: Mark(last.boot_id, last.beat, "other"), True),
        (lambda last: Mark(last.boot_id, last.beat - 1, last.nonce), True),
        (lambda last: Mark(last.boot_id, last.beat + 1, "other"), True),
        (lambda last: Mark("restarted", last.beat + 1, "other"), False),
    ],
)
def test_delivery_a6_a_mark_that_was_never_written_is_a_twin_s(
    beats: Beats, change: Callable[[Mark], Mark], is_twins: bool
) -> None:
    for _ in range(5):
        last = beats.next()
    assert beats.is_twins(change(last)) == is_twins


def test_delivery_a6_under_a_new_boot_id_nothing_before_counts(beats: Beats) -> None:
    last = beats.next()
    beats.renew()
    assert beats.boot_id != last.boot_id
    assert not beats.is_twins(Mark(last.boot_id, last.beat + 5, "other"))


# --- parts of an agent, on a disk -----------------------------------------------------------------------------------


def test_delivery_a1_a_forked_epoch_is_not_closed_and_forgotten_once_it_is_delivered(tmp_path: Path) -> None:
    for _ in range(2):
        epochs = Epochs(tmp_path)
        epochs.current.last_seq = 3
        epochs.save()
    one, forked = epochs.open[0], epochs.current
    forked.forked = True
    epochs.save()
    epochs = Epochs(tmp_path)
    buffer = HotRing(1 << 20)
    deliveries = Deliveries(buffer, epochs.current, 120.0)
    for epoch in epochs.open:
        deliveries.add_earlier(Emptied(4), epoch)
    batcher = Batcher(AgentSettings(), epochs.current.epoch, buffer, None, lambda: datetime(2026, 11, 1, tzinfo=UTC))
    closings = Closings(epochs, deliveries, batcher, lambda: datetime(2026, 11, 1, tzinfo=UTC))
    closings.say()
    [batch] = buffer
    said = [decode_event(part).data["epoch"] for part in frames.split(frames.decompress(batch.data))[0]]
    assert said == [one.epoch]
    assert closings.step() == []
    deliveries.told(Watermark(1, "first", 9, {one.epoch: 3, forked.epoch: 2}))
    assert closings.step() == []
    # The other agent's batches count as well: nothing of ours is left, and nothing of it is missing.
    deliveries.told(Watermark(1, "first", 9, {one.epoch: 3, forked.epoch: 30}))
    assert closings.step() == [forked.epoch]


async def test_delivery_a1_an_epoch_that_could_not_be_written_down_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = agents.make_agent("nats://127.0.0.1:9", agents.settings_for(tmp_path))
    before = agent.epochs.current
    before.forked = True

    def fail(content: bytes) -> None:
        raise OSError(5, "no disk")

    with monkeypatch.context() as patch:
        patch.setattr(agent.epochs, "write", fail)
        await agent.fork.step()
    assert agent.epochs.current is before
    await agent.fork.step()
    assert agent.epochs.current is not before
    assert agent.epochs.open == [before]
    agent.storage.close()


async def test_delivery_a1_what_was_declared_under_a_forked_epoch_is_declared_again(tmp_path: Path) -> None:
    """The twin's batch may stand where the declaration stood."""
    (tmp_path / "agent").mkdir()
    old = Epoch(5, last_seq=9, last_samples=90, freed_seq=7)
    (tmp_path / "agent" / FILE).write_bytes(msgspec.json.encode(EpochsFile(old)))
    agent = agents.make_agent("nats://127.0.0.1:9", agents.settings_for(tmp_path))
    agent.gaps.go(online=True)
    async with agents.running(agent):
        agent.deliveries.told(Watermark(1, "made", 0, {old.epoch: 7}))
        first = agent.storage.buffer
        await until(lambda: types_in(first) == {GAP, EPOCH_CLOSED}, WAIT_S)
        agent.epochs.current.forked = True
        await until(lambda: agent.storage.buffer is not first, WAIT_S)
        # Gaps are looked for first, in every round.
        await until(lambda: EPOCH_CLOSED in types_in(agent.storage.buffer), WAIT_S)
        assert types_in(agent.storage.buffer) == {GAP, EPOCH_CLOSED}


def types_in(buffer: Buffer) -> set[str]:
    """Return the types of the events that a buffer holds."""
    parts = [part for batch in buffer for part in frames.split(frames.decompress(batch.data))[0]]
    return {decode_event(part).type for part in parts}


async def test_the_log_of_an_ended_epoch_is_synced_to_its_end_and_leaves_memory(tmp_path: Path) -> None:
    storage = Storage(agents.settings_for(tmp_path), 5, tmp_path, None)
    assert storage.care is not None
    assert storage.spool is not None
    running = asyncio.create_task(storage.run())
    await storage.wait_recovered()
    ended, accepted = storage.buffer, 0
    for seq in range(1, 4):
        assert ended.append(make(5, seq, seq - 1, "samples", [b"{}"], 1, 0))
    # Also where all of it was synced, and only the end of its file is not.
    await storage.synced(3)
    accepted = storage.accepted_bytes
    buffer = storage.begin(6)
    assert storage.accepted_bytes == accepted
    assert buffer.append(make(6, 1, 0, "samples", [b"{}"], 1, 0))
    await storage.synced(1)
    await storage.synced(3, 5)
    log = storage.spool.current[5]
    # A turn may have begun before; the one after it takes what is left.
    for _ in range(2):
        await storage.care.turn()
    assert [(segment.fd, segment.sealed) for segment in log.segments] == [(None, True)]
    await until(lambda: not storage._ended, WAIT_S)
    assert [batch.identity.seq for batch in ended] == [1, 2, 3]
    with pytest.raises(ValueError, match="only drains"):
        log.append(make(5, 4, 3, "samples", [b"{}"], 1, 0))
    assert storage.held().batches == 4
    storage.spool.forget(5)
    assert list(storage.spool.current) == [6]
    assert storage.held().batches == 1
    running.cancel()
    await asyncio.wait([running])
    storage.close()
