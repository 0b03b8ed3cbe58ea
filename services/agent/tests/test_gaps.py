"""Gaps are derived: what is neither held nor in the database is declared until the database has passed it (rule A7)."""

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from cncmon_agent import gaps
from cncmon_agent.batch import make
from cncmon_agent.batcher import Batcher
from cncmon_agent.buffer.emptied import Emptied
from cncmon_agent.buffer.hot import HotRing
from cncmon_agent.closings import Closings
from cncmon_agent.deliveries import Deliveries
from cncmon_agent.epochs import Epoch, Epochs
from cncmon_agent.gaps import GapTeller, gaps_of
from cncmon_agent.settings import AgentSettings
from cncmon_core import frames
from cncmon_core.watermark import Watermark

OLD = 5


def now() -> datetime:
    return datetime(2026, 11, 24, tzinfo=UTC)


class Holed(HotRing):
    """A ring some of whose batches were damaged."""

    def __init__(self, first_seq: int = 1) -> None:
        super().__init__(1 << 16, first_seq=first_seq)
        self.bad: list[tuple[int, int]] = []

    def get(self, seq: int):
        return None if any(low <= seq <= high for low, high in self.bad) else super().get(seq)

    def holes(self) -> list[tuple[int, int]]:
        return list(self.bad)


def filled(first: int, last: int) -> Holed:
    """Two samples in each batch."""
    buffer = Holed(first)
    for seq in range(first, last + 1):
        buffer.append(make(OLD, seq, 2 * (seq - 1), "samples", [b"{}", b"{}"], 1, 0))
    return buffer


class Edge:
    def __init__(self, folder: Path) -> None:
        self.epochs = Epochs(folder)
        self.buffer = HotRing(1 << 20)
        self.deliveries = Deliveries(self.buffer, self.epochs.current, 120)
        self.batcher = Batcher(AgentSettings(), self.epochs.current.epoch, self.buffer, None, now)
        self.teller = GapTeller(self.deliveries, self.batcher, None, now)

    def said(self) -> list[tuple[int, int, int, int | None, str]]:
        """Everything declared so far, (epoch, from, to, samples, reason)."""
        found = []
        for batch in self.buffer:
            for part in frames.split(frames.decompress(batch.data))[0]:
                event = msgspec.json.decode(part)
                if event["type"] == "gap":
                    data = event["data"]
                    found.append((data["epoch"], data["seq_from"], data["seq_to"], data["samples"], data["reason"]))
        return found

    def tell(self, **epochs: int) -> None:
        known = {int(name.removeprefix("e")): seq for name, seq in epochs.items()}
        current = self.epochs.current.epoch
        self.deliveries.told(Watermark(1, "made", 0, {current if key == 0 else key: seq for key, seq in known.items()}))


@pytest.fixture
def edge(tmp_path: Path) -> Edge:
    return Edge(tmp_path)


def test_delivery_a7_what_was_dropped_in_front_is_a_gap_with_its_samples(edge) -> None:
    edge.deliveries.add_earlier(filled(4, 6), Epoch(OLD, freed_seq=1, freed_samples=2, last_seq=6, last_samples=12))
    edge.teller.go(online=True)
    edge.tell(e5=1)
    edge.teller.step()
    assert edge.said() == [(OLD, 2, 3, 4, "dropped")]


def test_delivery_a7_damaged_records_and_a_lost_end_are_gaps(edge) -> None:
    buffer = filled(1, 6)
    buffer.bad = [(3, 4)]
    delivery = edge.deliveries.add_earlier(buffer, Epoch(OLD, last_seq=9, last_samples=20))
    assert gaps_of(delivery) == [(OLD, 3, 4, 4, "damaged", 4, 8), (OLD, 7, 9, 8, "lost", 12, 20)]


def test_delivery_a7_nothing_at_or_under_what_was_freed_is_declared(edge) -> None:
    delivery = edge.deliveries.add_earlier(filled(8, 9), Epoch(OLD, freed_seq=7, freed_samples=14, last_seq=9))
    assert gaps_of(delivery) == []


def test_delivery_a7_what_the_watermark_has_passed_is_no_gap(edge) -> None:
    edge.tell(e5=7)
    delivery = edge.deliveries.add_earlier(filled(8, 9), Epoch(OLD, freed_seq=2, last_seq=9))
    assert gaps_of(delivery) == []


def test_delivery_a7_without_a_connection_or_a_watermark_nothing_is_said(edge, monkeypatch) -> None:
    edge.deliveries.add_earlier(filled(4, 6), Epoch(OLD, last_seq=6))
    edge.teller.step()
    edge.teller.go(online=True)
    edge.teller.step()
    assert edge.said() == []
    # An epoch that the cloud side does not know at all after half a minute: unknown there, and still a gap.
    monkeypatch.setattr(gaps, "UNKNOWN_S", -1.0)
    edge.teller.step()
    assert edge.said() == [(OLD, 1, 3, 6, "dropped")]


def test_delivery_a7_a_gap_is_said_once_and_again_when_the_database_went_back(edge, monkeypatch) -> None:
    edge.deliveries.add_earlier(filled(4, 6), Epoch(OLD, last_seq=6))
    edge.teller.go(online=True)
    edge.tell(e5=0)
    for _ in range(3):
        edge.teller.step()
    assert len(edge.said()) == 1
    # Stored, and the watermark stands before it all the same.
    edge.tell(e5=0, e0=1)
    monkeypatch.setattr(gaps, "REPEAT_S", -1.0)
    edge.teller.step()
    assert len(edge.said()) == 2
    edge.tell(e5=3, e0=1)
    edge.teller.step()
    assert len(edge.said()) == 2


def test_delivery_a7_an_epoch_all_of_which_is_gone_is_one_gap(edge) -> None:
    epoch = Epoch(OLD, freed_seq=2, freed_samples=4, last_seq=9, last_samples=18)
    delivery = edge.deliveries.add_earlier(Emptied(10), epoch)
    assert gaps_of(delivery) == [(OLD, 3, 9, 14, "dropped", 4, 18)]
    assert not delivery.done()
    edge.tell(e5=9)
    assert gaps_of(delivery) == []
    assert delivery.done()


def test_delivery_a1_closings_are_said_once_and_forgotten_when_stored_and_drained(tmp_path: Path) -> None:
    first = Edge(tmp_path)
    old = first.epochs.current
    old.last_seq, old.last_samples = 3, 6
    first.epochs.save()
    edge = Edge(tmp_path)
    assert [epoch.epoch for epoch in edge.epochs.open] == [old.epoch]
    ring = HotRing(1 << 16)
    for seq in (1, 2, 3):
        ring.append(make(old.epoch, seq, 2 * (seq - 1), "samples", [b"{}", b"{}"], 1, 0))
    delivery = edge.deliveries.add_earlier(ring, edge.epochs.open[0])
    closings = Closings(edge.epochs, edge.deliveries, edge.batcher, now)
    closings.say()
    [batch] = list(edge.buffer)
    event = msgspec.json.decode(frames.split(frames.decompress(batch.data))[0][0])
    assert event["data"] == {"epoch": old.epoch, "last_seq": 3, "samples": 6}
    assert closings.step() == []
    edge.tell(e0=1)
    # Stored, but its batches are not delivered.
    assert closings.step() == []
    assert edge.epochs.open[0].closed
    while (found := edge.deliveries.next_backlog()) is not None:
        edge.deliveries.taken(found[0], found[1], found[1], 0.0, duplicate=False)
    edge.deliveries.told(Watermark(1, "made", 0, {edge.epochs.current.epoch: 1, old.epoch: 3}))
    assert delivery.done()
    assert closings.step() == [old.epoch]
    assert edge.epochs.open == []
    assert edge.deliveries.earlier == {}
