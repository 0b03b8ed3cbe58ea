"""What is seen reaches the controller, and what it decides reaches those who do it."""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from prometheus_client import REGISTRY

from cncmon_agent import governor
from cncmon_agent.batch import Batch
from cncmon_agent.buffer.segment import SegmentInfo
from cncmon_agent.control import Controller, ControlSettings, Decision, Observation
from cncmon_agent.deliveries import Deliveries
from cncmon_agent.epochs import Epoch
from cncmon_agent.governor import Governor, _Written
from cncmon_agent.pace import CommitLag, Pace
from cncmon_agent.publish import Publisher
from cncmon_agent.settings import AgentSettings
from cncmon_agent.storage import Storage

EPOCH = 77
DECIDED = Decision(replay_bytes_per_s=12_345.0, compression_level=9, to_cold=True, shed="taken_first", hours_left=3.5)


class Telling(Controller):
    """Remembers what it saw, and decides as it is told."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(ControlSettings(), random.Random(1))
        self.decision = decision
        self.seen: list[Observation] = []

    def step(self, seen: Observation) -> Decision:
        self.seen.append(seen)
        return self.decision


class FakePublisher:
    """What the governor looks at of a publisher, and the lever it pulls."""

    def __init__(self) -> None:
        self.pace = Pace(0.0)
        self.lag = CommitLag()
        self.latency_s: float | None = None

    def ack_latency_s(self, _: float) -> float | None:
        return self.latency_s


class Parts:
    """A governor over a real storage and real deliveries."""

    def __init__(self, settings: AgentSettings, folder: Path, controller: Controller) -> None:
        self.storage = Storage(settings, EPOCH, folder, None)
        self.deliveries = Deliveries(self.storage.buffer, Epoch(EPOCH), 120)
        self.publisher = FakePublisher()
        self.online = True
        self.governor = Governor(
            controller, cast("Publisher", self.publisher), self.deliveries, self.storage, lambda: self.online
        )


@pytest.fixture
def told() -> Telling:
    return Telling(DECIDED)


@pytest.fixture
def parts(settings_of: Callable[..., AgentSettings], tmp_path: Path, told: Telling) -> Parts:
    return Parts(settings_of(), tmp_path, told)


def metric(name: str) -> float:
    value = REGISTRY.get_sample_value(name)
    assert value is not None
    return value


def level_of(parts: Parts) -> int | None:
    return parts.storage.cold_level


def test_each_decision_reaches_its_lever(parts: Parts, told: Telling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(governor, "TELL_EVERY_S", 0.0)
    parts.governor.step()
    assert parts.publisher.pace.bytes_per_s == 12_345.0
    assert level_of(parts) == 9
    assert metric("cncmon_edge_buffer_hours_left") == 3.5
    assert metric("cncmon_edge_replay_bytes_per_second") == 12_345.0
    assert metric("cncmon_edge_compression_level") == 9
    told.decision = Decision(replay_bytes_per_s=0.0, compression_level=1, to_cold=False, shed="oldest", hours_left=None)
    parts.governor.step()
    assert parts.publisher.pace.bytes_per_s == 0.0
    assert level_of(parts) is None
    assert math.isnan(metric("cncmon_edge_buffer_hours_left"))


def test_what_is_held_waits_and_comes_in_is_seen(parts: Parts, told: Telling, batch_of: Callable[..., Batch]) -> None:
    parts.governor.step()
    for seq in range(1, 5):
        assert parts.storage.buffer.append(batch_of(seq, 1000, epoch=EPOCH))
    parts.deliveries.connected()
    parts.online = False
    parts.governor.step()
    empty, seen = told.seen
    assert (empty.online, seen.online) == (True, False)
    assert empty.inflow_bytes_s == empty.unacked_bytes == empty.backlog_bytes == 0
    assert seen.inflow_bytes_s == pytest.approx(parts.storage.accepted_bytes / seen.dt_s)
    held = parts.storage.held()
    assert seen.unacked_bytes == seen.backlog_bytes == held.bytes
    assert seen.warm_bytes == held.warm_bytes > 0
    assert seen.capacity_warm_bytes == held.capacity_warm_bytes


def test_the_larger_latency_and_the_lag_are_passed_on(parts: Parts, told: Telling) -> None:
    parts.publisher.latency_s = 0.25
    parts.publisher.lag.taken(10, 0.0)
    parts.publisher.lag.told(10, 0.5)
    parts.governor.step()
    assert told.seen[-1].ack_latency_s == 0.25
    assert told.seen[-1].commit_lag_s == 0.5


def test_evidence_against_the_stream_is_told_once(parts: Parts, told: Telling, batch_of: Callable[..., Batch]) -> None:
    for seq in range(1, 4):
        parts.storage.buffer.append(batch_of(seq, epoch=EPOCH))
        current = parts.deliveries.current
        assert current.next_live() == seq
        parts.deliveries.taken(current, seq, seq, 0.0, duplicate=False)
    parts.governor.step()
    # A fresh message at a place that was given out before: the stream went back.
    parts.storage.buffer.append(batch_of(4, epoch=EPOCH))
    parts.deliveries.taken(parts.deliveries.current, 4, 2, 0.0, duplicate=False)
    parts.governor.step()
    parts.governor.step()
    assert [seen.stream_lost for seen in told.seen] == [False, True, False]


def segment(epoch: int, first: int, last: int) -> SegmentInfo:
    return SegmentInfo(epoch, first, last, last - first + 1, last - first + 1, 4096, "warm", True, f"{epoch}-{first}")


def test_the_stream_is_trusted_with_what_it_has_taken_while_that_is_decided(parts: Parts, told: Telling) -> None:
    parts.deliveries.current.epoch.acked_seq = 20
    earlier = segment(66, 1, 10)
    segments = [earlier, segment(EPOCH, 1, 10), segment(EPOCH, 11, 20), segment(EPOCH, 21, 30)]
    assert parts.governor.shed_order(segments) == earlier, "nothing is decided yet"
    parts.governor.step()
    assert parts.governor.shed_order(segments) == segments[1], "nobody knows the earlier epoch's way"
    assert parts.governor.shed_order(segments[3:]) == segments[3], "something has to go"
    told.decision = Decision(replay_bytes_per_s=0.0, compression_level=1, to_cold=False, shed="oldest", hours_left=None)
    parts.governor.step()
    assert parts.governor.shed_order(segments) == earlier


def test_an_earlier_epoch_that_is_taken_goes_first(
    parts: Parts, batch_of: Callable[..., Batch], settings_of: Callable[..., AgentSettings], tmp_path: Path
) -> None:
    other = Storage(settings_of(), 66, tmp_path / "other", None)
    for seq in range(1, 11):
        other.buffer.append(batch_of(seq, epoch=66))
    parts.deliveries.add_earlier(other.buffer, Epoch(66, acked_seq=10, acked_stream_seq=9, last_seq=10))
    parts.governor.step()
    segments = [segment(55, 1, 10), segment(66, 1, 10), segment(EPOCH, 1, 10)]
    assert parts.governor.shed_order(segments) == segments[1]


def test_the_spool_asks_the_governor_what_to_drop(parts: Parts) -> None:
    assert parts.storage.spool is not None
    assert parts.storage.spool.order == parts.governor.shed_order


def test_written_bytes_are_a_rate_looked_at_once_a_second(tmp_path: Path) -> None:
    written = _Written()
    written._path = tmp_path / "io"
    written._path.write_text("rchar: 1\nwrite_bytes: 1000\ncancelled_write_bytes: 7\n")
    assert written.per_s(0.0) == 0.0
    written._path.write_text("rchar: 1\nwrite_bytes: 5000\ncancelled_write_bytes: 7\n")
    assert written.per_s(0.5) == 0.0
    assert written.per_s(2.0) == 2000.0
    assert written.per_s(2.5) == 2000.0
    written._path.unlink()
    assert written.per_s(4.0) == 2000.0, "a kernel that does not count says nothing new"


def test_on_this_kernel_writing_is_seen(tmp_path: Path) -> None:
    before = _Written()._read()
    with (tmp_path / "file").open("wb") as file:
        file.write(bytes(1 << 20))
    after = _Written()._read()
    assert before is not None
    assert after is not None
    assert after >= before
