"""Samples taken before the time was known: rule A8, with a crash between any two steps.

Long, because a fault found adds its sequence here, beside its like.
"""

import asyncio
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cncmon_agent import mover, ranges
from cncmon_agent.batch import Source, make
from cncmon_agent.clock import Clock, from_unix_ns, to_unix_ns
from cncmon_agent.durable_file import DurableFile
from cncmon_agent.mover import Lost
from cncmon_agent.time_floor import BUILD_NS, TimeFloor
from cncmon_agent.unstamped import FLAG, MemoryFile, Unstamped
from cncmon_core import frames
from cncmon_core.sample import Sample
from testkit.times import NOW_NS, S, Times
from testkit.unstamped import Crash, Edge, Process, Spool, World, samples_of
from testkit.waiting import WAIT_S_MAX


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mover, "RETRY_S", 0.0)
    monkeypatch.setattr(mover, "GROUP_BATCHES", 4)


async def live(world: World, **life: Any) -> None:
    """Run one process until it dies or is stopped."""
    try:
        await Process(world).run(**life)
    except* Crash:
        world.crashed += 1
    world.die()


async def live_on(world: World, lives: list[dict[str, Any]]) -> None:
    """Run processes until every crash has happened, and one more to the end; then check what came of it."""
    for life in lives:
        world.cut_power = life.pop("cut_power")
        await live(world, **life)
    world.crashes.clear()
    last = Process(world)
    last.recover()
    await asyncio.wait_for(last.run(samples=5, learns_at=1, recovers_at=99, to_the_end=True), WAIT_S_MAX)
    assert last.mover.done
    world.random = Random(1)
    for _ in range(100):
        last.deliver()
    check(world)


def check(world: World) -> None:
    """Nothing durable is lost, nothing is there twice, times are right or are bounded and say that they aren't."""
    found: dict[int, tuple[int, int]] = {}
    for identity, batch in world.published.items():
        for sample in samples_of(batch):
            assert sample.extras
            number = sample.extras["number"]
            assert number not in found, f"{number} is stored as {found[number]} and as {identity}"
            found[number] = identity
            true_ns, boot = world.truth[number]
            error_ns = to_unix_ns(sample.timestamp) - true_ns
            if sample.extras.get(FLAG):
                assert error_ns <= 0
                assert to_unix_ns(sample.timestamp) >= BUILD_NS
                assert boot != world.moved_in[identity]
            else:
                assert abs(error_ns) <= S // 10
    assert world.durable <= found.keys(), f"lost: {sorted(world.durable - found.keys())}"


LIFE = st.fixed_dictionaries(
    {
        "samples": st.integers(0, 40),
        "learns_at": st.integers(0, 60),
        "recovers_at": st.integers(0, 45),
        "cut_power": st.booleans(),
    }
)


@given(
    seed=st.integers(0, 1 << 30),
    crashes=st.lists(st.tuples(st.integers(1, 120), st.booleans()), max_size=6),
    lives=st.lists(LIFE, min_size=1, max_size=7),
)
@example(
    seed=134939006,
    crashes=[(14, True), (64, False), (70, False), (10, True)],
    lives=[
        {"samples": 6, "learns_at": 3, "recovers_at": 4, "cut_power": False},
        {"samples": 12, "learns_at": 11, "recovers_at": 3, "cut_power": False},
        {"samples": 1, "learns_at": 0, "recovers_at": 0, "cut_power": False},
        {"samples": 1, "learns_at": 0, "recovers_at": 0, "cut_power": False},
    ],
)
@settings(max_examples=250)
def test_delivery_a8_crashes_anywhere_lose_and_double_nothing(
    seed: int, crashes: list[tuple[int, bool]], lives: list[dict[str, Any]]
) -> None:
    asyncio.run(live_on(World(seed, tuple(crashes)), [dict(life) for life in lives]))


@pytest.mark.parametrize("cut_power", [False, True], ids=["kill", "power cut"])
def test_delivery_a8_a_crash_at_every_step_of_a_move(cut_power: bool) -> None:
    step = 0
    while True:
        step += 1
        world = World(step, ((step, cut_power),))
        asyncio.run(live_on(world, [{"samples": 24, "learns_at": 14, "recovers_at": 2, "cut_power": cut_power}]))
        if not world.crashed:
            break
    assert step > 60


async def test_new_samples_do_not_wait_for_the_mover() -> None:
    edge = Edge(Times(wall_ns=0))
    edge.take(3)
    edge.world.learn_time()
    edge.clock.follow()
    edge.take(3)
    stamped = edge.moved()
    assert [sample.timestamp for sample in stamped] == [from_unix_ns(NOW_NS + second * S) for second in (4, 5, 6)]
    edge.process.recover()
    await edge.move()
    assert [sample.timestamp for sample in edge.moved()[3:]] == [from_unix_ns(NOW_NS + n * S) for n in (1, 2, 3)]
    assert all(FLAG not in (sample.extras or {}) for sample in edge.moved())
    assert edge.unstamped.spool.earlier == {}


async def test_a_batch_that_was_not_full_is_moved_too() -> None:
    edge = Edge(Times(wall_ns=0))
    edge.take(4)
    edge.world.learn_time()
    edge.clock.follow()
    edge.process.recover()
    await edge.move()
    assert len(edge.moved()) == 4


async def test_a_move_that_is_begun_again_moves_nothing_twice() -> None:
    edge = Edge(Times(wall_ns=0))
    edge.take(6)
    edge.world.learn_time()
    edge.clock.follow()
    edge.process.recover()
    first = asyncio.create_task(edge.mover.run())
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(edge.moved()) == 6
    first.cancel()
    await asyncio.wait({first})
    await edge.move()
    assert len(edge.moved()) == 6
    assert edge.mover.done


async def test_who_knows_the_time_from_the_start_begins_no_log() -> None:
    times = Times()
    times.rtc = True
    edge = Edge(times)
    assert (edge.unstamped.own, edge.world.unstamped, edge.world.meta_file.content) == (None, {}, None)
    edge.unstamped.cut()
    edge.process.recover()
    await asyncio.wait_for(edge.mover.run(), WAIT_S_MAX)
    with pytest.raises(RuntimeError):
        edge.unstamped.add(Sample("m", edge.clock.now(), 1.0, 1.0))


async def test_the_log_is_known_on_disk_before_it_has_a_sample() -> None:
    edge = Edge(Times(wall_ns=0))
    assert [meta.log for meta in edge.meta().logs] == [edge.unstamped.own_log]
    assert edge.meta().logs[0].boot_id == "boot-1"


async def test_what_is_moved_is_held_until_that_is_written_down() -> None:
    edge = Edge(Times(wall_ns=0))
    edge.take(3)
    edge.world.learn_time()
    edge.clock.follow()
    edge.process.recover()
    running = asyncio.create_task(edge.mover.run())
    for _ in range(20):
        await asyncio.sleep(0)
    (batch,) = edge.process.log
    assert batch.source == Source(edge.unstamped.own_log or 0, 1, 3)
    assert edge.mover.holds(batch)
    assert edge.mover.pinned_from(1) == 1
    edge.take(3)
    live_batch = edge.process.log.get(2)
    assert live_batch is not None
    assert not edge.mover.holds(live_batch)
    edge.process.log.sync()
    await asyncio.wait_for(running, WAIT_S_MAX)
    assert not edge.mover.holds(batch)
    assert edge.mover.pinned_from(1) is None
    assert edge.meta().logs[0].moved == [(1, 3)]


async def test_what_earlier_processes_moved_is_held_until_it_is_noted() -> None:
    edge = Edge(Times())
    batch = make(99, 1, 0, "samples", [b"{}"], 1, 0, Source(5, 1, 1))
    assert edge.mover.holds(batch)
    assert edge.mover.pinned_from(99) == 1
    assert not edge.mover.holds(make(99, 1, 0, "samples", [b"{}"], 1, 0))
    edge.process.recover()
    await edge.move()
    assert not edge.mover.holds(batch)
    assert edge.mover.pinned_from(99) is None


async def test_a_main_log_without_room_is_waited_for() -> None:
    edge = Edge(Times(wall_ns=0))
    edge.take(30)
    edge.world.learn_time()
    edge.clock.follow()
    edge.process.recover()
    edge.main.full = 0.6
    await edge.move()
    assert [sample.extras["number"] for sample in edge.moved() if sample.extras] == list(range(1, 31))


async def test_a_file_that_cannot_be_written_holds_what_was_moved() -> None:
    edge = Edge(Times(wall_ns=0))
    edge.take(3)
    edge.world.learn_time()
    edge.clock.follow()
    edge.process.recover()
    failing = True
    write = edge.world.meta_file.write

    def full(content: bytes) -> None:
        if failing and b"moved" in content:
            raise OSError(28, "No space left on device")
        write(content)

    edge.world.meta_file.write = full  # type: ignore[method-assign]
    await edge.move()
    (batch,) = edge.process.log
    assert edge.mover.holds(batch)
    # The task is begun again by its supervisor: what it had appended is not appended again.
    failing = False
    await edge.move()
    assert len(edge.moved()) == 3
    assert not edge.mover.holds(batch)
    assert edge.mover.done


async def test_a_batch_that_has_grown_is_split_and_each_part_says_what_it_holds() -> None:
    edge = Edge(Times(wall_ns=0))
    edge.main.batch_bytes_max = 250
    edge.take(3)
    edge.world.learn_time()
    edge.clock.follow()
    edge.process.recover()
    await edge.move()
    assert [(batch.source.first, batch.source.last) for batch in edge.process.log if batch.source] == [(1, 2), (3, 3)]


async def test_a_clockless_boot_before_this_one_is_bounded_and_flagged() -> None:
    world = World()
    first = Edge(Times(wall_ns=0, boottime=0, boot="a"), world=world)
    first.clock.floor.known(NOW_NS)
    first.clock.floor.keep()
    second = Edge(Times(wall_ns=0, boottime=0, boot="b"), world=world)
    second.take(300)
    third = Edge(Times(wall_ns=0, boottime=0, boot="c"), world=world)
    third.take(30)
    fourth = Edge(Times(wall_ns=0, boottime=0, boot="d"), world=world)
    fourth.take(3)
    fourth.process.recover()
    moving = asyncio.create_task(fourth.move())
    await moving
    # It needs no time of its own for that.
    assert not fourth.clock.settled
    moved = fourth.moved()
    assert [sample.timestamp for sample in moved] == [from_unix_ns(NOW_NS + n * S) for n in range(1, 331)]
    assert all(sample.extras and sample.extras[FLAG] is True for sample in moved)
    assert fourth.clock.floor.base_ns == NOW_NS + 330 * S


async def test_a_boot_that_knew_the_time_is_exact_though_it_moved_nothing() -> None:
    world = World()
    first = Edge(Times(wall_ns=0, boottime=0, boot="a"), world=world)
    first.take(3)
    world.times.wall, world.times.synced = NOW_NS, True
    first.clock.follow()
    await first.move()  # its spools have not recovered: nothing is moved yet
    assert first.moved() == []
    second = Edge(Times(wall_ns=0, boottime=0, boot="b"), world=world)
    second.process.recover()
    await second.move()
    assert [sample.timestamp for sample in second.moved()] == [from_unix_ns(NOW_NS - n * S) for n in (2, 1, 0)]
    assert all(FLAG not in (sample.extras or {}) for sample in second.moved())


async def test_what_was_known_of_the_time_holds_for_a_later_process_of_the_same_boot() -> None:
    """Somebody set the clock in between: what the samples' time was is known, and not by that clock."""
    world = World()
    first = Edge(Times(wall_ns=0, boottime=0, boot="a"), world=world)
    first.take(3)
    world.times.wall, world.times.synced = NOW_NS, True
    first.clock.follow()
    await first.move()  # its spools have not recovered: nothing is moved yet
    assert first.moved() == []
    world.times.wall += 3600 * S
    second = Edge(world.times, world=world)
    second.process.recover()
    await second.move()
    assert [sample.timestamp for sample in second.moved()] == [from_unix_ns(NOW_NS - n * S) for n in (2, 1, 0)]


async def test_given_up_it_is_flagged_until_the_time_is_known() -> None:
    times = Times(wall_ns=0, boottime=0)
    edge = Edge(times)
    edge.take(3)
    edge.clock.go(online=True)
    edge.clock._wait_ns_max = 100 * S
    edge.world.pass_s(100)
    edge.clock.follow()
    edge.take(3)
    edge.process.recover()
    await edge.move()
    assert [(sample.extras or {}).get(FLAG) for sample in edge.moved()] == [True] * 6
    assert edge.moved()[-1].timestamp == from_unix_ns(BUILD_NS + 3 * S)
    times.wall, times.synced = NOW_NS, True
    edge.clock.follow()
    edge.take(3)
    assert FLAG not in (edge.moved()[-1].extras or {})
    # As the samples were stamped, so they stay.
    assert edge.moved()[0].timestamp == from_unix_ns(BUILD_NS + 104 * S)


@pytest.mark.parametrize("step_s", [-3600, 86_400])
async def test_a_step_after_the_time_was_known_changes_nothing_that_waits(step_s: int) -> None:
    edge = Edge(Times(wall_ns=0))
    edge.take(3)
    edge.world.learn_time()
    edge.clock.follow()
    edge.world.times.wall += step_s * S
    assert edge.clock.follow()
    edge.process.recover()
    await edge.move()
    edge.take(3)
    stamps = [to_unix_ns(sample.timestamp) - NOW_NS for sample in edge.moved()]
    assert stamps == [*(n * S for n in (1, 2, 3)), *((n + step_s) * S for n in (4, 5, 6))]
    assert [batch.identity.seq for batch in edge.process.log] == [1, 2]


async def test_what_is_lost_before_it_was_moved_is_told_by_number() -> None:
    world = World()
    first = Edge(Times(wall_ns=0, boot="a"), world=world)
    first.take(18)
    log = first.unstamped.own_log or 0
    del world.unstamped[log].batches[1], world.unstamped[log].batches[4]
    world.unstamped[log].first = 2
    second = Edge(Times(boot="b"), world=world)
    second.process.recover()
    await second.move()
    assert [sample.extras["number"] for sample in second.moved() if sample.extras] == [*range(4, 10), *range(13, 19)]
    assert second.mover.lost() == [Lost(log, 1, 3), Lost(log, 10, 12)]
    # It is told by later processes too, though the log is gone, until it is in the database.
    world.unstamped.clear()
    third = Edge(Times(boot="c"), world=world)
    third.process.recover()
    await third.move()
    assert third.mover.lost() == [Lost(log, 1, 3), Lost(log, 10, 12)]
    third.mover.declared(Lost(log, 1, 3))
    third.mover.declared(Lost(log, 10, 12))
    await third.move()
    assert third.mover.lost() == []
    assert log not in [meta.log for meta in third.meta().logs]


async def test_a_batch_that_does_not_decompress_is_lost_and_stops_nothing() -> None:
    world = World()
    first = Edge(Times(wall_ns=0, boot="a"), world=world)
    first.take(9)
    log = world.unstamped[first.unstamped.own_log or 0]
    log.batches[2] = msgspec.structs.replace(log.batches[2], data=b"nonsense")
    log.batches[3] = msgspec.structs.replace(log.batches[3], data=frames.compress(frames.join([b"{", b"{}", b"[]"])))
    second = Edge(Times(boot="b"), world=world)
    second.process.recover()
    await second.move()
    assert second.mover.lost() == [Lost(log.number, 4, 6)]
    # A frame that can't be read goes to ingest as it is.
    raw = [frame for batch in second.process.log for frame in frames.split(frames.decompress(batch.data))[0]]
    assert raw[3:] == [b"{", b"{}", b"[]"]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"logs":[{"log":"x"}]}', b"\xff"])
async def test_without_the_file_samples_get_the_lowest_bound(content: bytes) -> None:
    world = World()
    first = Edge(Times(wall_ns=0, boottime=0, boot="a"), world=world)
    first.take(12)
    world.unstamped[first.unstamped.own_log or 0].free(3)
    world.meta_file.content = content
    second = Edge(Times(boot="b"), world=world)
    second.process.recover()
    await second.move()
    assert [sample.timestamp for sample in second.moved()] == [from_unix_ns(BUILD_NS + n * S) for n in (10, 11, 12)]
    assert all(sample.extras and sample.extras[FLAG] for sample in second.moved())
    assert second.mover.lost() == []


async def test_a_replaced_card_knows_nothing_but_the_time_from_the_network() -> None:
    edge = Edge(Times(wall_ns=0, boottime=0))
    edge.take(3)
    edge.clock.heard(from_unix_ns(edge.world.true_ns), 0.02)
    assert not edge.clock.known
    edge.world.learn_time()
    edge.clock.follow()
    edge.process.recover()
    await edge.move()
    for sample in edge.moved():
        true_ns, _ = edge.world.truth[(sample.extras or {})["number"]]
        assert abs(sample.timestamp - from_unix_ns(true_ns)) <= timedelta(milliseconds=1)


async def test_a_folder_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    world = World()
    clock = Clock(Times(wall_ns=0), TimeFloor(Times()))
    with pytest.raises(FileNotFoundError):
        Unstamped(clock, Spool(world), DurableFile(tmp_path / "gone" / "logs.json"), lambda log, buffer: world)  # type: ignore[arg-type,return-value]  # no sample comes so far


def test_the_waiting_samples_are_counted() -> None:
    edge = Edge(Times(wall_ns=0))
    edge.take(7)
    edge.unstamped.cut()
    assert edge.unstamped.samples() == 7


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 9)), max_size=20), st.integers(1, 70), st.integers(0, 70))
def test_ranges_are_sets(added: list[tuple[int, int]], first: int, length: int) -> None:
    made: ranges.Ranges = []
    model: set[int] = set()
    for low, size in added:
        ranges.add(made, low, low + size)
        model |= set(range(low, low + size + 1))
    assert {number for low, high in made for number in range(low, high + 1)} == model
    assert all(high + 1 < low for (_, high), (low, _) in pairwise(made))
    gaps = list(ranges.missing(made, first, first + length))
    assert [number for low, high in gaps for number in range(low, high + 1)] == [
        number for number in range(first, first + length + 1) if number not in model
    ]


def test_memory_stands_in_for_a_disk() -> None:
    file = MemoryFile()
    assert file.read() is None
    file.write(b"x")
    assert file.read() == b"x"
