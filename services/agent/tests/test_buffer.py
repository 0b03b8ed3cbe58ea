"""The conformance suite of buffers: every tier passes all of it. A new tier is an entry of `testkit.buffers.TIERS`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from cncmon_agent.batch import Batch, Source
from cncmon_agent.buffer import Buffer
from testkit.buffers import EPOCH, SEGMENT_BYTES, TIERS, Spools, Then, Tier, content

MIB = 1 << 20


@pytest.fixture
def spools(tmp_path: Path) -> Iterator[Spools]:
    made = Spools(tmp_path)
    yield made
    made.close()


@pytest.fixture(params=TIERS.values(), ids=TIERS.keys())
def tier(request: pytest.FixtureRequest) -> Tier:
    found: Tier = request.param
    return found


def seqs(buffer: Buffer) -> list[int]:
    return [batch.identity.seq for batch in buffer]


def test_it_begins_empty(tier: Tier, spools: Spools) -> None:
    buffer = tier.make(spools, 4, MIB)
    assert buffer.range() == (1, 1)
    assert list(buffer) == []
    assert buffer.holes() == []
    assert buffer.get(1) is None
    assert buffer.free(100) == 0
    stats = buffer.stats()
    assert (stats.batches, stats.samples, stats.bytes, stats.oldest_created_ms) == (0, 0, 0, None)
    assert stats.capacity_bytes >= MIB


def test_what_is_appended_is_held_in_order(tier: Tier, spools: Spools) -> None:
    buffer = tier.make(spools, 4, MIB)
    batches = [tier.batch(seq, created_ms=1_700_000_000_000 + seq) for seq in (1, 2, 3)]
    assert all(buffer.append(batch) for batch in batches)
    assert buffer.range() == (1, 4)
    assert buffer.holes() == []
    assert [content(batch) for batch in buffer] == [content(batch) for batch in batches]
    assert [content(buffer.get(seq)) for seq in range(5)] == [None, *map(content, batches), None]
    stats = buffer.stats()
    assert (stats.batches, stats.samples, stats.oldest_created_ms) == (3, 3, 1_700_000_000_001)
    assert stats.bytes == sum(map(tier.takes, batches))


def test_events_count_as_no_samples(tier: Tier, spools: Spools) -> None:
    buffer = tier.make(spools, 4, MIB)
    assert buffer.append(tier.batch(1, kind="events"))
    assert (buffer.stats().batches, buffer.stats().samples) == (1, 0)


def test_everything_that_a_batch_says_is_kept(tier: Tier, spools: Spools, batch_of) -> None:
    buffer = tier.make(spools, 4, MIB)
    largest = (1 << 63) - 1
    batches = [
        batch_of(1, epoch=EPOCH, frames=[b'{"a":1}', b"", bytes(range(256))], source=Source(largest, 1, largest)),
        batch_of(2, epoch=EPOCH, frames=[b"y" * 3000] * 3, kind="events", created_ms=largest),
        *(tier.batch(seq) for seq in (3, 4)),
    ]
    for batch in batches:
        assert buffer.append(batch)
    assert [content(batch) for batch in buffer] == [content(batch) for batch in batches]


@pytest.mark.parametrize("seq", [0, 2, 3, -1, 1 << 40])
def test_a_seq_that_is_not_the_next_is_a_fault_of_the_caller(tier: Tier, spools: Spools, seq: int) -> None:
    buffer = tier.make(spools, 4, MIB)
    with pytest.raises(ValueError, match="1 is next"):
        buffer.append(tier.batch(seq))
    assert buffer.range() == (1, 1)


def test_freeing_gives_up_the_oldest_and_no_other(tier: Tier, spools: Spools) -> None:
    buffer = tier.make(spools, 8, MIB)
    batches = [tier.batch(seq, created_ms=seq) for seq in range(1, 6)]
    for batch in batches:
        buffer.append(batch)
    assert buffer.free(2) == 2
    assert buffer.range() == (3, 6)
    assert [content(batch) for batch in buffer] == [content(batch) for batch in batches[2:]]
    assert buffer.get(2) is None
    assert content(buffer.get(3)) == content(batches[2])
    assert buffer.stats().oldest_created_ms == 3
    assert buffer.stats().bytes == sum(map(tier.takes, batches[2:]))
    assert buffer.free(2) == 0
    assert buffer.free(0) == 0
    assert buffer.free(99) == 3
    assert buffer.range() == (6, 6)
    assert buffer.holes() == []
    assert buffer.stats().bytes == 0
    assert buffer.stats().oldest_created_ms is None
    assert buffer.append(tier.batch(6))
    assert seqs(buffer) == [6]


@pytest.mark.parametrize("batches_max", [1, 2, 3, 5, 8, 100, 128])
def test_by_count_it_takes_what_it_says_and_overwrites_nothing(tier: Tier, spools: Spools, batches_max: int) -> None:
    buffer = tier.make(spools, batches_max, 8 * MIB)
    for seq in range(1, batches_max + 1):
        assert buffer.append(tier.batch(seq))
    before, stats = list(buffer), buffer.stats()
    for seq in range(batches_max + 1, batches_max + 4):
        assert buffer.append(tier.batch(buffer.range()[1])) is not tier.counts
        assert buffer.range() == (1, batches_max + 1 if tier.counts else seq + 1)
    assert list(buffer)[:batches_max] == before
    assert not tier.counts or buffer.stats() == stats
    assert buffer.free(1) == 1
    assert buffer.append(tier.batch(buffer.range()[1]))
    assert buffer.append(tier.batch(buffer.range()[1])) is not tier.counts


def test_full_by_bytes_it_refuses_or_drops_its_oldest_and_overwrites_nothing(tier: Tier, spools: Spools) -> None:
    buffer = tier.make(spools, 1000, 4 * SEGMENT_BYTES)
    appended: list[Batch] = []
    refused = 0
    for seq in range(1, 60):
        first, _ = buffer.range()
        batch = tier.batch(seq, 2500)
        if buffer.append(batch):
            appended.append(batch)
        else:
            refused += 1
            break
        assert buffer.range()[0] >= first
    first, end = buffer.range()
    assert end == len(appended) + 1
    assert [content(batch) for batch in buffer] == [content(batch) for batch in appended[first - 1 :]]
    assert len(appended) - first + 1 >= 4, "a quarter of the room at least is used"
    assert (refused, first > 1) == ((1, False) if tier.when_full == "refuses" else (0, True))
    dropped = sum(spool.stats().dropped_batches for spool in spools.made)
    assert dropped == first - 1
    stats = buffer.stats()
    assert stats.batches == end - first
    assert stats.bytes == sum(map(tier.takes, appended[first - 1 :])) <= stats.capacity_bytes
    # A log has room again with a whole file.
    buffer.free(end - 2)
    assert buffer.append(tier.batch(end, 2500))
    assert seqs(buffer) == [end - 1, end]


def test_a_batch_larger_than_everything_is_refused(tier: Tier, spools: Spools) -> None:
    buffer = tier.make(spools, 8, 2048)
    assert not buffer.append(tier.batch(1, 20_000))
    assert buffer.range() == (1, 1)
    assert list(buffer) == []
    assert buffer.append(tier.batch(1, 10))


def test_many_times_round(tier: Tier, spools: Spools) -> None:
    buffer = tier.make(spools, 3, 64 << 10)
    for seq in range(1, 100):
        assert buffer.append(tier.batch(seq))
        if seq > 2:
            assert buffer.free(seq - 2) == 1
        assert seqs(buffer) == list(range(max(1, seq - 1), seq + 1))
    assert sum(spool.stats().dropped_batches for spool in spools.made) == 0


def test_freeing_and_appending_while_iterating(tier: Tier, spools: Spools) -> None:
    buffer = tier.make(spools, 8, MIB)
    for seq in range(1, 6):
        buffer.append(tier.batch(seq))
    seen = []
    for batch in buffer:
        seen.append(batch.identity.seq)
        if seen == [1, 2]:
            buffer.free(3)
            buffer.append(tier.batch(6))
    assert seen == [1, 2, 4, 5, 6]


def test_the_cold_tier_is_really_one(spools: Spools) -> None:
    buffer = TIERS["cold"].make(spools, 8, MIB)
    assert isinstance(buffer, Then)
    for seq in range(1, 6):
        buffer.append(TIERS["cold"].batch(seq))
    found = spools.made[0].segments()
    assert [segment.tier for segment in found] == ["cold"] * (len(found) - 1) + ["warm"]
    assert len(found) >= 3


class AgainstModel(RuleBasedStateMachine):
    """A buffer beside a list that does the same by other means."""

    def __init__(self, tier: Tier, spools: Spools) -> None:
        super().__init__()
        self.tier = tier
        self.spools = spools
        self.batches_max, self.bytes_max = 5, 2048
        self.buffer = tier.make(spools, self.batches_max, self.bytes_max)
        self.held: list[Batch] = []
        self.next = 1

    @rule(size=st.integers(0, 3000), kind=st.sampled_from(("samples", "events")))
    def append(self, size: int, kind: str) -> None:
        size = size // 3 if self.tier.when_full == "refuses" else size
        batch = self.tier.batch(self.next, size, kind=kind, created_ms=self.next)
        fits = self.tier.has_room(self.held, batch, self.batches_max, self.bytes_max)
        taken = self.buffer.append(batch)
        assert fits is None or taken == fits
        if taken:
            self.held.append(batch)
            self.next += 1
            first, _ = self.buffer.range()
            dropped = [held for held in self.held if held.identity.seq < first]
            assert not dropped or self.tier.when_full == "drops"
            assert len(dropped) < len(self.held)
            self.held = self.held[len(dropped) :]

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
        assert content(self.buffer.get(batch.identity.seq)) == content(batch)

    @rule(seq=st.integers(-5, 100))
    def get_any(self, seq: int) -> None:
        expected = next((batch for batch in self.held if batch.identity.seq == seq), None)
        assert content(self.buffer.get(seq)) == content(expected)

    @invariant()
    def the_same(self) -> None:
        assert [content(batch) for batch in self.buffer] == [content(batch) for batch in self.held]
        assert self.buffer.range() == (self.next - len(self.held), self.next)
        assert self.buffer.holes() == []
        stats = self.buffer.stats()
        assert stats.batches == len(self.held)
        assert stats.samples == sum(batch.samples for batch in self.held)
        assert stats.bytes == sum(map(self.tier.takes, self.held)) <= stats.capacity_bytes
        assert stats.oldest_created_ms == (self.held[0].created_ms if self.held else None)

    def teardown(self) -> None:
        self.spools.close()


def test_against_a_model(tier: Tier, tmp_path: Path) -> None:
    run_state_machine_as_test(
        lambda: AgainstModel(tier, Spools(tmp_path)), settings=settings(max_examples=60, stateful_step_count=40)
    )
