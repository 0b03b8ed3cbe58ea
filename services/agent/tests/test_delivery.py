"""The delivery rules of the edge without I/O: A4 (when a batch is freed), A5 (sent again), A7 (unknown is not zero)."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from cncmon_agent.batch import make
from cncmon_agent.buffer.hot import HotRing
from cncmon_agent.deliveries import Deliveries
from cncmon_agent.delivery import MARGIN_S
from cncmon_agent.epochs import Epoch
from cncmon_core.watermark import Watermark

EPOCH = 77
WINDOW_S = 120.0
HOUR_S = 3600.0


class Way:
    """A buffer, an epoch and the delivery over them; publishes and acknowledges on demand."""

    def __init__(self, batches: int) -> None:
        self.buffer = HotRing(1 << 20, 4096)
        self.epoch = Epoch(EPOCH)
        self.all = Deliveries(self.buffer, self.epoch, WINDOW_S)
        self.delivery = self.all.current
        for seq in range(1, batches + 1):
            self.buffer.append(make(EPOCH, seq, seq - 1, "samples", [b"{}"], 1, 0))

    def publish(self) -> list[int]:
        """Return what is published until there is nothing more to publish."""
        seqs = []
        while (seq := self.next_to_publish()) is not None:
            seqs.append(seq)
        return seqs

    def next_to_publish(self) -> int | None:
        """Return the next of either lane, the backlog's first."""
        found = self.all.next_backlog()
        return found[1] if found else self.delivery.next_live()

    def ack(self, *seqs: int, at: int = 0, now_s: float = 0.0, duplicate: bool = False) -> None:
        """Acknowledge seqs one after another, the first at stream sequence `at` (its own number where 0)."""
        for offset, seq in enumerate(seqs):
            self.all.taken(self.delivery, seq, at + offset if at else seq, now_s, duplicate=duplicate)

    def tell(
        self, seq: int | None, floor: int = 0, *, generation: int = 1, created: str = "first", others: Any = None
    ) -> None:
        epochs = ({} if seq is None else {EPOCH: seq}) | (others or {})
        self.all.told(Watermark(generation, created, floor, epochs))

    def books(self) -> tuple[int, int]:
        """Return how far the stream has everything, in batches and in samples, as it would be saved."""
        self.delivery.settle()
        return self.epoch.acked_seq, self.epoch.acked_samples

    @property
    def held(self) -> list[int]:
        return [batch.identity.seq for batch in self.buffer]


@pytest.fixture
def way() -> Callable[[int], Way]:
    return Way


def test_batches_are_published_in_order_and_once(way) -> None:
    here = way(3)
    assert here.publish() == [1, 2, 3]
    assert here.publish() == []
    assert here.delivery.unacknowledged() == 3
    here.buffer.append(make(EPOCH, 4, 3, "samples", [b"{}"], 1, 0))
    assert here.delivery.unacknowledged() == 4
    assert here.publish() == [4]


def test_delivery_a4_the_watermark_alone_frees_nothing(way) -> None:
    here = way(3)
    here.publish()
    here.tell(3, floor=3)
    assert here.held == [1, 2, 3]
    here.ack(1)
    assert here.held == [2, 3]


def test_delivery_a4_the_puback_alone_frees_nothing(way) -> None:
    here = way(3)
    here.publish()
    here.ack(1, 2, 3)
    assert here.held == [1, 2, 3]
    assert here.delivery.unacknowledged() == 0
    here.tell(2)
    assert here.held == [3]


def test_delivery_a4_an_acknowledged_batch_behind_an_unacknowledged_one_is_not_freed(way) -> None:
    here = way(3)
    here.publish()
    here.ack(1, 3)
    here.tell(3, floor=3)
    assert here.held == [2, 3]
    here.ack(2, at=4, duplicate=True)
    assert here.held == []


def test_delivery_a4_what_is_sent_again_needs_a_puback_anew(way) -> None:
    here = way(3)
    here.publish()
    here.ack(1, 2, 3)
    here.tell(0, floor=0)
    here.tell(0, floor=0, created="second")
    assert here.publish() == [1, 2, 3]
    here.tell(3, floor=3, created="second")
    assert here.held == [1, 2, 3]
    here.ack(1, 2)
    assert here.held == [3]


def test_delivery_a4_how_far_it_is_freed_and_taken_is_written_down(way) -> None:
    here = way(4)
    here.publish()
    here.ack(1, 2, 4)
    assert (*here.books(), here.epoch.freed_seq) == (2, 2, 0)
    here.tell(1)
    assert (*here.books(), here.epoch.freed_seq) == (2, 2, 1)
    here.ack(3, at=5)
    assert (*here.books(), here.epoch.freed_seq) == (4, 4, 1)


def test_delivery_a4_events_count_as_batches_and_not_as_samples() -> None:
    here = Way(0)
    here.buffer.append(make(EPOCH, 1, 0, "events", [b"{}"], 1, 0))
    here.publish()
    here.ack(1)
    assert here.books() == (1, 0)


def test_delivery_a5_a_watermark_that_stands_for_hours_causes_no_resend(way) -> None:
    here = way(3)
    here.publish()
    here.ack(1, 2, 3)
    here.tell(0, floor=0)
    for now_s in range(0, int(24 * HOUR_S), 60):
        here.tell(0, floor=0)
        here.all.look_for_lost(float(now_s))
        assert here.publish() == []
    assert here.delivery.resent == 0
    assert here.held == [1, 2, 3]


def test_delivery_a5_what_the_floor_has_passed_without_storing_it_is_sent_again_after_the_window(way) -> None:
    here = way(3)
    here.publish()
    here.ack(1, 2, 3, now_s=1000.0)
    here.tell(1, floor=3)
    for now_s in (1000.0, 1000.0 + WINDOW_S, 1000.0 + WINDOW_S + MARGIN_S):
        here.all.look_for_lost(now_s)
        assert here.publish() == []
    here.all.look_for_lost(1000.0 + WINDOW_S + MARGIN_S + 0.1)
    assert here.publish() == [2, 3]
    assert here.delivery.resent == 2
    assert here.held == [2, 3]
    # Sent and acknowledged anew, each waits for its own evidence again.
    here.ack(2, 3, at=4, now_s=1200.0)
    here.all.look_for_lost(1200.0 + HOUR_S)
    assert here.publish() == []
    here.tell(3, floor=5)
    assert here.held == []


def test_delivery_a5_what_the_floor_has_not_passed_is_not_sent_again(way) -> None:
    here = way(3)
    here.publish()
    here.ack(1, 2, 3)
    here.tell(0, floor=2)
    here.all.look_for_lost(HOUR_S)
    assert here.publish() == [1, 2]


def test_delivery_a5_what_is_stored_is_not_sent_again_though_an_earlier_one_was_lost(way) -> None:
    here = way(3)
    here.publish()
    here.ack(1, 2, 3)
    here.tell(2, floor=3)
    here.all.look_for_lost(HOUR_S)
    assert here.publish() == [3]


def test_delivery_a5_a_stream_made_anew_gets_everything_that_is_not_freed(way) -> None:
    here = way(4)
    here.publish()
    here.ack(1, 2, 3)
    here.tell(1, floor=1)
    here.tell(1, floor=0, created="second")
    assert here.publish() == [2, 3]
    here.ack(2, 3, at=1)
    here.ack(4, at=3)
    here.tell(4, floor=3, created="second")
    assert here.held == []


def test_delivery_a5_the_same_stream_told_again_sends_nothing(way) -> None:
    here = way(2)
    here.publish()
    here.ack(1, 2)
    for _ in range(3):
        here.tell(0, floor=0)
    assert here.publish() == []


def test_delivery_a5_a_last_sequence_that_went_back_means_the_tail_is_lost(way) -> None:
    here = way(5)
    here.publish()
    here.ack(1, 2, 3, 4, at=100)
    # The stream lost 102 and 103, and gives 102 out again.
    here.ack(5, at=102)
    assert here.publish() == [3, 4]
    assert here.delivery.resent == 2
    here.ack(3, 4, at=103)
    assert here.publish() == []
    here.tell(5, floor=104)
    assert here.held == []


def test_delivery_a5_what_lies_above_the_stream_s_last_sequence_is_sent_again(way) -> None:
    """Asked at a new connection: nothing fresh has to be acknowledged first."""
    here = way(4)
    here.publish()
    here.ack(1, 2, 3, 4, at=10)
    here.all.stream_seen("first", 13)
    assert here.publish() == []
    here.all.stream_seen("first", 12)
    assert here.publish() == [4]
    here.all.stream_seen("first", 10)
    assert here.publish() == [2, 3]


def test_delivery_a5_a_sequence_that_is_given_out_twice_means_that_the_stream_went_back(way) -> None:
    here = way(3)
    here.publish()
    here.ack(1, at=5)
    here.ack(2, at=5)
    assert here.publish() == [1]
    assert here.delivery.resent == 1


def test_delivery_a5_nothing_at_or_under_the_watermark_is_sent_again(way) -> None:
    """It is held since what it was moved from is not noted yet, not because the database lacks it."""
    here = way(3)
    here.delivery.pinned_from = lambda: 1
    here.publish()
    here.ack(1, 2, 3)
    here.tell(2, floor=3)
    assert here.held == [1, 2, 3]
    here.all.look_for_lost(HOUR_S)
    assert here.publish() == [3]


def test_delivery_a4_what_is_pinned_is_kept(way) -> None:
    here = way(4)
    here.delivery.pinned_from = lambda: 3
    here.publish()
    here.ack(1, 2, 3, 4)
    here.tell(4, floor=4)
    assert here.held == [3, 4]


def test_delivery_a4_what_a_power_cut_brought_back_is_freed_at_the_start(way) -> None:
    here = way(0)
    left = HotRing(1 << 20)
    for seq in range(1, 5):
        left.append(make(5, seq, seq - 1, "samples", [b"{}"], 1, 0))
    here.all.add_earlier(left, Epoch(5, freed_seq=3))
    assert here.publish() == [4]
    assert [batch.identity.seq for batch in left] == [4]


def test_delivery_a5_a_duplicate_s_old_sequence_is_no_sign_of_loss(way) -> None:
    here = way(3)
    here.publish()
    here.ack(1, 2, at=100)
    here.delivery.failed(3)
    assert here.publish() == [3]
    # Sent twice: the server has the first one, and says where.
    here.ack(3, at=102)
    here.ack(2, at=101, duplicate=True)
    assert here.publish() == []
    assert here.delivery.resent == 0


def test_delivery_a5_a_lost_connection_sends_again_only_what_was_in_flight(way) -> None:
    here = way(5)
    here.publish()
    here.ack(1, 4)
    here.all.connection_lost()
    assert here.publish() == [2, 3, 5]
    assert here.delivery.resent == 0
    assert here.delivery.unacknowledged() == 3


def test_what_failed_goes_before_what_is_new(way) -> None:
    here = way(5)
    assert [here.next_to_publish() for _ in range(3)] == [1, 2, 3]
    here.delivery.failed(2)
    here.delivery.failed(1)
    assert here.publish() == [1, 2, 4, 5]


def test_a_failure_after_the_acknowledgement_is_no_failure(way) -> None:
    here = way(2)
    here.publish()
    here.ack(1)
    here.delivery.failed(1)
    here.delivery.failed(99)
    assert here.publish() == []


def test_an_acknowledgement_of_what_is_freed_changes_nothing(way) -> None:
    here = way(2)
    here.publish()
    here.ack(1, 2)
    here.tell(1)
    here.ack(1, at=1, duplicate=True)
    assert here.held == [2]
    assert here.delivery.unacknowledged() == 0


def test_delivery_a7_a_missing_watermark_is_unknown_not_zero(way) -> None:
    here = way(2)
    here.publish()
    here.ack(1, 2)
    assert here.delivery.watermark is None
    here.tell(None, others={5: 9})
    assert here.delivery.watermark is None
    here.tell(0)
    assert here.delivery.watermark == 0
    assert here.held == [1, 2]


def test_delivery_a7_without_any_document_nothing_is_taken_for_lost(way) -> None:
    here = way(2)
    here.publish()
    here.ack(1, 2)
    here.all.look_for_lost(1000 * HOUR_S)
    assert here.publish() == []


def test_delivery_a7_an_epoch_that_is_listed_no_more_keeps_its_watermark(way) -> None:
    here = way(3)
    here.publish()
    here.ack(1, 2, 3)
    here.tell(2, floor=3)
    here.tell(None, floor=3)
    assert here.delivery.watermark == 2
    here.all.look_for_lost(HOUR_S)
    assert here.publish() == [3]


def test_delivery_a7_a_lower_watermark_of_the_same_generation_is_old_news(way) -> None:
    here = way(3)
    here.publish()
    here.ack(1, 2, 3)
    here.tell(2, floor=2)
    here.tell(1, floor=3, created="never")
    assert here.delivery.watermark == 2
    here.all.look_for_lost(HOUR_S)
    assert here.publish() == []
    here.tell(1, generation=0)
    assert here.delivery.watermark == 2


def test_delivery_a7_a_new_generation_may_be_lower(way) -> None:
    here = way(3)
    here.publish()
    here.ack(1, 2, 3)
    here.tell(1, floor=3)
    here.tell(0, floor=0, generation=2)
    assert here.delivery.watermark == 0
    # What was freed is freed; it is not in the buffer to be sent again.
    assert here.held == [2, 3]
    here.tell(1, generation=1)
    assert here.delivery.watermark == 0
    here.tell(3, floor=3, generation=2)
    assert here.held == []


class World(RuleBasedStateMachine):
    """An agent's delivery in front of a stream and a ledger, which lose and delay whatever they can.

    A message is a seq of our epoch, or None for another edge's. The stream keeps (message, time it was stored) by
    sequence; `stream[0]` is sequence `base + 1`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.here = Way(0)
        self.now_s = 0.0
        self.created = 1
        self.stream: list[tuple[int | None, float]] = []
        self.floor = 0
        self.ledger: set[int] = set()
        self.wire: list[int] = []
        self.acks: list[tuple[int, int, bool]] = []
        self.acked: set[int] = set()
        self.evidence: set[int] = set()
        self.documents: list[Watermark] = []
        self.told_created: str | None = None

    # What the agent does.

    @rule(count=st.integers(1, 3))
    def append(self, count: int) -> None:
        for _ in range(count):
            _, seq = self.here.buffer.range()
            self.here.buffer.append(make(EPOCH, seq, seq - 1, "samples", [b"{}"], 1, int(self.now_s)))

    @rule()
    def deliver(self) -> None:
        """Everything as it should be."""
        self.append(2)
        self.publish(5)
        if self.wire:
            self.stream_stores(5)
        if self.acks:
            self.acks_arrive(5)

    @rule(count=st.integers(1, 5))
    def publish(self, count: int) -> None:
        for _ in range(count):
            seq = self.here.next_to_publish()
            if seq is None:
                return
            assert seq not in self.wire
            # Acknowledged, and published again: only on evidence that the agent has seen.
            assert seq not in self.acked or seq in self.evidence
            self.acked.discard(seq)
            self.wire.append(seq)

    @precondition(lambda self: self.wire)
    @rule(data=st.data())
    def times_out(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(self.wire))
        if data.draw(st.booleans()):
            self._store(seq)
        self.wire.remove(seq)
        self.acks = [ack for ack in self.acks if ack[0] != seq]
        self.here.delivery.failed(seq)

    @rule(stored=st.integers(0, 3))
    def connection_lost(self, stored: int) -> None:
        for seq in self.wire[:stored]:
            if not any(ack[0] == seq for ack in self.acks):
                self._store(seq)
        self.wire, self.acks = [], []
        self.here.all.connection_lost()

    @rule()
    def look_for_lost(self) -> None:
        ways = self.here.delivery._ways
        first, end = self.here.buffer.range()
        taken = {seq: way for seq in range(first, end) if (way := ways.get(seq)) is not None}
        passed = {
            seq
            for seq, (stream_seq, taken_s) in taken.items()
            if stream_seq <= self.here.all.floor and self.now_s - taken_s > WINDOW_S
        }
        self.here.all.look_for_lost(self.now_s)
        assert {seq for seq in taken if seq not in ways} <= passed
        self.evidence |= passed

    # What the stream does.

    def _store(self, seq: int) -> tuple[int, bool]:
        for index, (stored, at_s) in enumerate(self.stream):
            if stored == seq and self.now_s - at_s <= WINDOW_S:
                return index + 1, True
        self.stream.append((seq, self.now_s))
        return len(self.stream), False

    @precondition(lambda self: self.wire)
    @rule(count=st.integers(1, 5))
    def stream_stores(self, count: int) -> None:
        answered = {ack[0] for ack in self.acks}
        for seq in [seq for seq in self.wire if seq not in answered][:count]:
            self.acks.append((seq, *self._store(seq)))

    @rule(count=st.integers(1, 3))
    def another_edge_publishes(self, count: int) -> None:
        self.stream += [(None, self.now_s)] * count

    @precondition(lambda self: self.acks)
    @rule(count=st.integers(1, 5))
    def acks_arrive(self, count: int) -> None:
        for _ in range(min(count, len(self.acks))):
            self._ack_arrives()

    def _ack_arrives(self) -> None:
        seq, stream_seq, duplicate = self.acks.pop(0)
        self.wire.remove(seq)
        self.evidence.discard(seq)
        self.acked.add(seq)
        if not duplicate and stream_seq <= self.here.all._highest_taken:
            self._all_suspect()
        with self._freeing():
            self.here.all.taken(self.here.delivery, seq, stream_seq, self.now_s, duplicate=duplicate)

    @contextlib.contextmanager
    def _freeing(self) -> Iterator[None]:
        """Whatever is freed within this block is stored, and acknowledged since it was last published."""
        before, _ = self.here.buffer.range()
        yield
        after, _ = self.here.buffer.range()
        assert set(range(before, after)) <= self.acked & self.ledger

    @rule(count=st.integers(1, 4))
    def stream_loses_its_tail(self, count: int) -> None:
        self.stream = self.stream[:-count]
        self.floor = min(self.floor, len(self.stream))

    @rule(count=st.integers(1, 4))
    def stream_gives_its_tail_s_numbers_to_another(self, count: int) -> None:
        self.stream_loses_its_tail(count)
        self.another_edge_publishes(count)

    @rule()
    def stream_is_made_anew(self) -> None:
        self.stream, self.floor = [], 0
        self.created += 1

    # What ingest does.

    @precondition(lambda self: self.floor < len(self.stream))
    @rule(count=st.integers(1, 5))
    def ingest_stores(self, count: int) -> None:
        for seq, _ in self.stream[self.floor : self.floor + count]:
            if seq is not None:
                self.ledger.add(seq)
        self.floor = min(self.floor + count, len(self.stream))

    @rule(lists_us=st.booleans())
    def leader_writes(self, lists_us: bool) -> None:
        watermark = 0
        while watermark + 1 in self.ledger:
            watermark += 1
        epochs = {EPOCH: watermark} if lists_us or watermark else {}
        self.documents.append(Watermark(1, f"{self.created:06}", self.floor, epochs))

    @rule(count=st.integers(0, 5))
    def ingest_stores_and_the_edge_is_told(self, count: int) -> None:
        if self.floor < len(self.stream):
            self.ingest_stores(count)
        self.leader_writes(lists_us=True)
        self.document_arrives(1)

    @precondition(lambda self: self.documents)
    @rule(back=st.integers(1, 3))
    def document_arrives(self, back: int) -> None:
        """The newest, or one that was overtaken on its way."""
        document = self.documents[-min(back, len(self.documents))]
        if document.stream_created != self.here.all.stream_created:
            self._all_suspect()
        with self._freeing():
            self.here.all.told(document)

    @rule(seconds=st.sampled_from((0.5, 60.0, 200.0, 4000.0)))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    def _all_suspect(self) -> None:
        """A stream that went back takes with it what it gave out since: more than was lost may be sent again."""
        self.evidence |= set(range(*self.here.buffer.range()))

    @invariant()
    def nothing_is_freed_that_is_not_stored(self) -> None:
        first, end = self.here.buffer.range()
        assert all(seq in self.ledger for seq in range(1, first))
        assert self.here.epoch.freed_seq == first - 1
        assert 0 <= self.here.delivery.unacknowledged() <= end - first

    def teardown(self) -> None:
        """With everything working again, everything is stored and freed within a few rounds."""
        self.connection_lost(0)
        for _ in range(8):
            # There is always a next sample; what the stream lost last is noticed by it.
            self.append(1)
            self.publish(200)
            while self.wire:
                self.stream_stores(100)
                self.acks_arrive(100)
            while self.floor < len(self.stream):
                self.ingest_stores(100)
            self.leader_writes(lists_us=True)
            self.document_arrives(1)
            self.time_passes(WINDOW_S + MARGIN_S + 1)
            self.look_for_lost()
        first, end = self.here.buffer.range()
        assert first == end
        assert self.ledger == set(range(1, end))


def test_delivery_whatever_is_lost_nothing_is_freed_unstored_and_all_is_stored_in_the_end() -> None:
    run_state_machine_as_test(World, settings=settings(max_examples=200, stateful_step_count=50))
