import asyncio
import itertools
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cncmon_agent import batcher as module
from cncmon_agent.accepted_log import AcceptedLog
from cncmon_agent.batcher import Batcher
from cncmon_agent.buffer.hot import HotRing
from cncmon_agent.settings import AgentSettings
from cncmon_core import frames
from cncmon_core.events import Event, encode_event
from cncmon_core.sample import Sample, decode_sample

pytestmark = pytest.mark.virtual_time

NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)
EPOCH = 4242


def sample(number: int = 0, note: str = "") -> Sample:
    return Sample("cnc-001", NOW, 20.5, float(number), extras={"poll_counter": number, "note": note})


def batcher_of(settings: AgentSettings, record: AcceptedLog | None = None, **limits: Any) -> tuple[Batcher, HotRing]:
    buffer = HotRing(limits.get("bytes_max", 1 << 24), limits.get("batches_max", 1000))
    return Batcher(settings, EPOCH, buffer, record, lambda: NOW), buffer


def payloads(buffer: HotRing) -> list[list[bytes]]:
    return [frames.split(frames.decompress(batch.data))[0] for batch in buffer]


async def test_a_batch_is_cut_at_its_number_of_frames(settings_of) -> None:
    batcher, buffer = batcher_of(settings_of(batch_frames_max=3, linger_offline_ms=60_000))
    for number in range(7):
        batcher.add(sample(number))
    assert [len(parts) for parts in payloads(buffer)] == [3, 3]
    batcher.cut()
    assert [len(parts) for parts in payloads(buffer)] == [3, 3, 1]
    assert [decode_sample(part) for parts in payloads(buffer) for part in parts] == [sample(n) for n in range(7)]
    batcher.cut()
    assert buffer.stats().batches == 3


@given(st.lists(st.integers(0, 1500), min_size=1, max_size=60))
async def test_a_batch_has_no_more_bytes_than_allowed(sizes: list[int]) -> None:
    batcher, buffer = batcher_of(AgentSettings(batch_bytes_max=2048, linger_offline_ms=60_000))
    for number, size in enumerate(sizes):
        batcher.add(sample(number, "x" * size))
    batcher.cut()
    found = payloads(buffer)
    assert all(len(frames.join(parts)) <= 2048 for parts in found)
    assert [decode_sample(part).spindle_speed for parts in found for part in parts] == list(range(len(sizes)))
    # Fewest batches: no two neighbours would have gone into one.
    for before, after in itertools.pairwise(found):
        assert len(frames.join([*before, after[0]])) > 2048


@pytest.mark.parametrize(("less", "cut"), [(0, [2, 2]), (1, [1, 1, 1, 1])])
async def test_a_batch_is_exactly_as_large_as_allowed(settings_of, less: int, cut: list[int]) -> None:
    size = len(frames.join([module.encode_sample(sample(1, "x" * 1000))]))
    batcher, buffer = batcher_of(settings_of(batch_bytes_max=2 * size - less, linger_offline_ms=60_000))
    for _ in range(4):
        batcher.add(sample(1, "x" * 1000))
    batcher.cut()
    assert [len(parts) for parts in payloads(buffer)] == cut


async def test_a_sample_larger_than_a_batch_goes_alone(settings_of) -> None:
    batcher, buffer = batcher_of(settings_of(batch_bytes_max=1024, linger_offline_ms=60_000))
    for note in ("", "x" * 3000, ""):
        batcher.add(sample(1, note))
    batcher.cut()
    assert [len(parts) for parts in payloads(buffer)] == [1, 1, 1]


@pytest.mark.parametrize(("online", "least_s", "most_s"), [(True, 0.02, 0.2), (False, 0.25, 0.6)])
async def test_linger_counts_from_the_first_sample(settings_of, online: bool, least_s: float, most_s: float) -> None:
    batcher, buffer = batcher_of(settings_of(linger_ms=30, linger_offline_ms=300))
    batcher.go(online=online)
    loop = asyncio.get_running_loop()
    start = loop.time()
    while not buffer.stats().batches:
        batcher.add(sample())
        await asyncio.sleep(0.01)
        assert loop.time() - start < most_s
    assert loop.time() - start >= least_s
    assert batcher.appended.is_set()


async def test_a_full_batch_does_not_leave_its_timer_to_the_next(settings_of) -> None:
    batcher, buffer = batcher_of(settings_of(batch_frames_max=2, linger_offline_ms=100))
    batcher.add(sample(0))
    await asyncio.sleep(0.06)
    batcher.add(sample(1))
    batcher.add(sample(2))
    await asyncio.sleep(0.06)
    assert buffer.stats().batches == 1
    await asyncio.sleep(0.08)
    assert buffer.stats().batches == 2


async def test_identity_seq_and_base(settings_of) -> None:
    batcher, buffer = batcher_of(settings_of(batch_frames_max=2, linger_offline_ms=60_000))
    for number in range(5):
        batcher.add(sample(number))
    seq = batcher.add_events([encode_event(Event("a", NOW)), encode_event(Event("b", NOW))])
    batcher.add(sample(5))
    batcher.cut()
    found = [(b.identity.seq, b.identity.kind, b.identity.frames, b.identity.base, b.samples) for b in buffer]
    assert found == [
        (1, "samples", 2, 0, 2),
        (2, "samples", 2, 2, 2),
        (3, "samples", 1, 4, 1),
        (4, "events", 2, 5, 0),
        (5, "samples", 1, 5, 1),
    ]
    assert seq == 4
    assert batcher.samples == 6
    for batch in buffer:
        assert batch.identity.epoch == EPOCH
        batch.identity.check_payload(frames.decompress(batch.data))


def counted() -> tuple[float, float]:
    return module.ACCEPTED._value.get(), module.REFUSED._value.get()


async def test_what_a_full_buffer_refuses_is_counted_and_takes_no_number(settings_of) -> None:
    batcher, buffer = batcher_of(settings_of(batch_frames_max=2, linger_offline_ms=60_000), batches_max=2)
    accepted, refused = counted()
    for number in range(10):
        batcher.add(sample(number))
    assert counted() == (accepted + 4, refused + 6)
    assert batcher.samples == 4
    assert batcher.add_events([b"{}"]) is None
    buffer.free(1)
    for number in (20, 21):
        batcher.add(sample(number))
    assert [(batch.identity.seq, batch.identity.base) for batch in buffer] == [(2, 2), (3, 4)]
    assert [decode_sample(part).spindle_speed for part in payloads(buffer)[-1]] == [20, 21]
    assert counted() == (accepted + 6, refused + 6)


async def test_the_record_has_what_was_accepted_and_nothing_else(settings_of, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "accepted.jsonl"
    record = AcceptedLog(file)
    batcher, buffer = batcher_of(settings_of(batch_frames_max=2, linger_offline_ms=60_000), record, batches_max=2)
    for number in range(4):
        batcher.add(sample(number))
    batcher.add(Sample("cnc-002", NOW, None, None, machine_state="offline"))
    batcher.add(sample(9))
    record.acked(EPOCH, 1, 17)
    record.synced(EPOCH, 2)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    time = "2026-11-24T10:00:00Z"
    assert lines == [
        {"epoch": EPOCH, "seq": 1, "kind": "samples", "base": 0, "samples": [["cnc-001", n, time] for n in (0, 1)]},
        {"epoch": EPOCH, "seq": 2, "kind": "samples", "base": 2, "samples": [["cnc-001", n, time] for n in (2, 3)]},
        {"epoch": EPOCH, "seq": 1, "acked": 17},
        {"epoch": EPOCH, "synced": 2},
    ]
    buffer.free(2)
    batcher.add(Sample("cnc-002", NOW, None, None))
    batcher.cut()
    assert json.loads(file.read_text().splitlines()[-1])["samples"] == [["cnc-002", None, time]]
    record.close()


async def test_what_waits_while_offline_is_cut_when_the_connection_is_there(settings_of) -> None:
    batcher, buffer = batcher_of(settings_of(linger_ms=50, linger_offline_ms=60_000))
    batcher.add(sample(0))
    batcher.go(online=True)
    assert [len(parts) for parts in payloads(buffer)] == [1]
    batcher.go(online=True)
    batcher.add(sample(1))
    batcher.go(online=True)
    assert buffer.stats().batches == 1, "being online already cuts nothing"


async def test_batches_fit_the_servers_messages(settings_of) -> None:
    batcher, buffer = batcher_of(settings_of(linger_offline_ms=60_000))
    batcher.limit(4096 + 1000)
    for number in range(20):
        batcher.add(sample(number, "x" * 200))
    batcher.cut()
    assert all(sum(len(part) + 4 for part in parts) <= 1000 for parts in payloads(buffer))
    assert sum(len(parts) for parts in payloads(buffer)) == 20
