"""The conformance suite of buffers: every tier passes all of it. A new tier adds one entry to FACTORIES."""

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from cncmon_agent.batch import Batch, make
from cncmon_agent.buffer import Buffer
from cncmon_agent.buffer.hot import HotBuffer

Factory = Callable[[int, int], Buffer]
"""Takes the most batches and the most bytes that it may hold; its first seq is 1."""

FACTORIES: dict[str, Factory] = {"hot": HotBuffer}
MIB = 1 << 20


@pytest.fixture(params=FACTORIES.values(), ids=FACTORIES.keys())
def factory(request: pytest.FixtureRequest) -> Factory:
    made: Factory = request.param
    return made


def test_it_begins_empty(factory: Factory) -> None:
    buffer = factory(4, MIB)
    assert buffer.range() == (1, 1)
    assert list(buffer) == []
    assert buffer.get(1) is None
    assert buffer.free(100) == 0
    stats = buffer.stats()
    assert (stats.batches, stats.samples, stats.bytes, stats.oldest_created_s) == (0, 0, 0, None)
    assert stats.capacity_bytes == MIB


def test_what_is_appended_is_held_in_order(factory: Factory, batch_of) -> None:
    buffer = factory(4, MIB)
    batches = [batch_of(seq, created_s=seq * 1.5) for seq in (1, 2, 3)]
    assert all(buffer.append(batch) for batch in batches)
    assert buffer.range() == (1, 4)
    assert list(buffer) == batches
    assert [buffer.get(seq) for seq in range(5)] == [None, *batches, None]
    stats = buffer.stats()
    assert (stats.batches, stats.samples, stats.oldest_created_s) == (3, 3, 1.5)
    assert stats.bytes == sum(batch.bytes for batch in batches)


def test_events_count_as_no_samples(factory: Factory, batch_of) -> None:
    buffer = factory(4, MIB)
    assert buffer.append(batch_of(1, kind="events"))
    assert (buffer.stats().batches, buffer.stats().samples) == (1, 0)


@pytest.mark.parametrize("seq", [0, 2, 3, -1, 1 << 40])
def test_a_seq_that_is_not_the_next_is_a_fault_of_the_caller(factory: Factory, batch_of, seq: int) -> None:
    buffer = factory(4, MIB)
    with pytest.raises(ValueError, match="1 is next"):
        buffer.append(batch_of(seq))
    assert buffer.range() == (1, 1)


def test_freeing_gives_up_the_oldest_and_no_other(factory: Factory, batch_of) -> None:
    buffer = factory(8, MIB)
    batches = [batch_of(seq, created_s=float(seq)) for seq in range(1, 6)]
    for batch in batches:
        buffer.append(batch)
    assert buffer.free(2) == 2
    assert buffer.range() == (3, 6)
    assert list(buffer) == batches[2:]
    assert buffer.get(2) is None
    assert buffer.get(3) == batches[2]
    assert buffer.stats().oldest_created_s == 3.0
    assert buffer.free(2) == 0
    assert buffer.free(0) == 0
    assert buffer.free(99) == 3
    assert buffer.range() == (6, 6)
    assert buffer.stats().bytes == 0
    assert buffer.append(batch_of(6))


@pytest.mark.parametrize("batches_max", [1, 2, 3, 5, 8, 1000, 1024])
def test_full_by_count_it_refuses_and_overwrites_nothing(factory: Factory, batch_of, batches_max: int) -> None:
    buffer = factory(batches_max, 64 * MIB)
    for seq in range(1, batches_max + 1):
        assert buffer.append(batch_of(seq))
    before = list(buffer)
    stats = buffer.stats()
    for _ in range(3):
        assert not buffer.append(batch_of(batches_max + 1))
    assert list(buffer) == before
    assert buffer.stats() == stats
    assert buffer.range() == (1, batches_max + 1)
    buffer.free(1)
    assert buffer.append(batch_of(batches_max + 1))
    assert not buffer.append(batch_of(batches_max + 2))


def test_full_by_bytes_it_refuses_and_overwrites_nothing(factory: Factory, batch_of) -> None:
    one = batch_of(1)
    buffer = factory(1000, one.bytes * 3)
    for seq in (1, 2, 3):
        assert buffer.append(batch_of(seq))
    assert not buffer.append(batch_of(4))
    assert [batch.identity.seq for batch in buffer] == [1, 2, 3]
    buffer.free(1)
    assert buffer.append(batch_of(4))
    assert buffer.stats().bytes <= buffer.stats().capacity_bytes


def test_a_batch_larger_than_everything_is_refused(factory: Factory, batch_of) -> None:
    buffer = factory(8, batch_of(1).bytes - 1)
    assert not buffer.append(batch_of(1))
    assert buffer.range() == (1, 1)


def test_many_times_round_the_ring(factory: Factory, batch_of) -> None:
    buffer = factory(3, MIB)
    for seq in range(1, 200):
        assert buffer.append(batch_of(seq))
        if seq > 2:
            assert buffer.free(seq - 2) == 1
        assert [batch.identity.seq for batch in buffer] == list(range(max(1, seq - 1), seq + 1))


def test_freeing_and_appending_while_iterating(factory: Factory, batch_of) -> None:
    buffer = factory(8, MIB)
    for seq in range(1, 6):
        buffer.append(batch_of(seq))
    seen = []
    for batch in buffer:
        seen.append(batch.identity.seq)
        if seen == [1, 2]:
            buffer.free(3)
            buffer.append(batch_of(6))
    assert seen == [1, 2, 4, 5, 6]


@pytest.mark.parametrize(("batches_max", "slots"), [(1, 1), (2, 2), (3, 4), (1000, 1024), (1025, 2048)])
def test_the_hot_ring_has_a_power_of_two_of_slots(batches_max: int, slots: int) -> None:
    assert len(HotBuffer(batches_max, MIB)._slots) == slots


class AgainstModel(RuleBasedStateMachine):
    """A buffer beside a list that does the same by other means."""

    def __init__(self, factory: Factory) -> None:
        super().__init__()
        self.batches_max, self.bytes_max = 5, 2000
        self.buffer = factory(self.batches_max, self.bytes_max)
        self.held: list[Batch] = []
        self.next = 1

    @rule(size=st.integers(0, 900), kind=st.sampled_from(("samples", "events")))
    def append(self, size: int, kind: str) -> None:
        frame = bytes(number * 7919 % 251 for number in range(size))
        batch = make(77, self.next, 0, kind, [frame], 1, float(self.next))
        fits = (
            len(self.held) < self.batches_max and sum(held.bytes for held in self.held) + batch.bytes <= self.bytes_max
        )
        assert self.buffer.append(batch) == fits
        if fits:
            self.held.append(batch)
            self.next += 1

    @rule(back=st.integers(-3, 8))
    def free(self, back: int) -> None:
        up_to = self.next - back
        kept = [batch for batch in self.held if batch.identity.seq > up_to]
        assert self.buffer.free(up_to) == len(self.held) - len(kept)
        self.held = kept

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def get(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from(self.held))
        assert self.buffer.get(batch.identity.seq) == batch

    @rule(seq=st.integers(-5, 100))
    def get_any(self, seq: int) -> None:
        assert self.buffer.get(seq) == next((b for b in self.held if b.identity.seq == seq), None)

    @invariant()
    def the_same(self) -> None:
        assert list(self.buffer) == self.held
        assert self.buffer.range() == (self.next - len(self.held), self.next)
        stats = self.buffer.stats()
        assert stats.batches == len(self.held)
        assert stats.samples == sum(batch.samples for batch in self.held)
        assert stats.bytes == sum(batch.bytes for batch in self.held) <= self.bytes_max
        assert stats.oldest_created_s == (self.held[0].created_s if self.held else None)


def test_against_a_model(factory: Factory) -> None:
    run_state_machine_as_test(
        lambda: AgainstModel(factory), settings=settings(max_examples=100, stateful_step_count=40)
    )
