"""Simulated pieces around the unstamped logs: a world that outlives processes, and processes that die in it.

The parts that ship (`Clock`, `Unstamped`, `Mover`, `Intake`) run unchanged between a log, a file and a main log that
can die before and after each of their effects. A power cut loses any subset of what was not synced, and brings back
what was freed; a kill loses memory alone.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import msgspec

from cncmon_agent.batch import Batch, Source, make
from cncmon_agent.buffer import Buffer, Stats
from cncmon_agent.clock import Clock
from cncmon_agent.mover import Mover
from cncmon_agent.time_floor import TimeFloor
from cncmon_agent.unstamped import Intake, LogsFile, Unstamped
from cncmon_core import frames
from cncmon_core.sample import Sample, decode_sample, encode_sample
from testkit.times import NOW_NS, S, Times

SEGMENT = 3
"""Batches in a segment of a simulated log: only whole ones are freed."""


class Crash(BaseException):
    """The process dies here."""


class Log:
    """A log whose unsynced batches can be lost, any of them, and whose freed ones can come back."""

    def __init__(self, world: "World", number: int) -> None:
        self.world = world
        self.number = number
        self.batches: dict[int, Batch] = {}
        self.freed: dict[int, Batch] = {}
        self.first = self.next = 1
        self.synced_seq = 0

    def append(self, batch: Batch) -> bool:
        assert batch.identity.seq == self.next
        self.batches[self.next] = batch
        self.next += 1
        return True

    def get(self, seq: int) -> Batch | None:
        return self.batches.get(seq)

    def free(self, up_to_seq: int) -> int:
        self.world.step()
        count = 0
        while self.first + SEGMENT - 1 <= min(up_to_seq, self.next - 1):
            for seq in range(self.first, self.first + SEGMENT):
                if seq in self.batches:
                    self.freed[seq] = self.batches.pop(seq)
                    count += 1
            self.first += SEGMENT
        return count

    def range(self) -> tuple[int, int]:
        return self.first, self.next

    def holes(self) -> list[tuple[int, int]]:
        return [(seq, seq) for seq in range(self.first, self.next) if seq not in self.batches]

    def __iter__(self) -> Iterator[Batch]:
        return iter([self.batches[seq] for seq in sorted(self.batches)])

    def stats(self) -> Stats:
        return Stats(len(self.batches), sum(batch.samples for batch in self), 0, 0, None)

    def sync(self) -> None:
        self.world.step()
        self.synced_seq = self.next - 1
        self.freed.clear()
        self.world.durable |= {number for batch in self for number in numbers(batch)}

    def power_cut(self, random: Random) -> None:
        for seq in [seq for seq in self.batches if seq > self.synced_seq and random.random() < 0.5]:
            del self.batches[seq]
        if self.freed and random.random() < 0.5:
            self.batches = self.freed | self.batches
        self.freed = {}
        held = sorted(self.batches)
        self.first, self.next = (held[0], held[-1] + 1) if held else (1, 1)


class World:
    """What outlives a process: logs, files, what was published, and the true time."""

    def __init__(self, seed: int = 0, crashes: tuple[tuple[int, bool], ...] = ()) -> None:
        self.random = Random(seed)
        self.crashes = list(crashes)
        self.steps = self.crashed = 0
        self.true_ns = NOW_NS
        self.times = Times(wall_ns=0, boottime=0)
        self.boots = 1
        self.unstamped: dict[int, Log] = {}
        self.main: dict[int, Log] = {}
        self.floor_file, self.meta_file = File(self), File(self)
        self.published: dict[tuple[int, int], Batch] = {}
        self.moved_in: dict[tuple[int, int], str] = {}
        self.truth: dict[int, tuple[int, str]] = {}
        self.durable: set[int] = set()
        self.cut_power = False

    def step(self) -> None:
        """Count a step; die where that was drawn."""
        self.steps += 1
        if self.crashes and self.steps >= self.crashes[0][0]:
            _, self.cut_power = self.crashes.pop(0)
            self.steps = 0
            raise Crash

    def pass_s(self, seconds: float) -> None:
        self.true_ns += int(seconds * S)
        self.times.pass_s(seconds)

    def learn_time(self) -> None:
        self.times.wall, self.times.synced = self.true_ns, True

    def die(self) -> None:
        """Lose what a kill, or a power cut, loses."""
        if self.cut_power:
            for log in (*self.unstamped.values(), *self.main.values()):
                log.power_cut(self.random)
            self.boots += 1
            self.true_ns += self.random.randrange(3600) * S
            self.times = Times(wall_ns=0, boottime=0, boot=f"boot-{self.boots}")


class File:
    """A small file; a crash comes before or after its content is replaced, and tells nothing of which."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.content: bytes | None = None

    def read(self) -> bytes | None:
        return self.content

    def write(self, content: bytes) -> None:
        self.world.step()
        self.content = content
        self.world.step()


class Spool:
    """The unstamped logs of a process."""

    def __init__(self, world: World) -> None:
        self.world = world
        for log in world.unstamped.values():
            # As `buffer.spool.Spool` does: once it is open, the folder is synced, and what was freed stays away.
            log.freed.clear()
        self.earlier: dict[int, Buffer] = {number: log for number, log in world.unstamped.items() if log.batches}

    def begin(self, epoch: int) -> Log:
        self.world.step()
        return self.world.unstamped.setdefault(epoch, Log(self.world, epoch))

    def forget(self, epoch: int) -> None:
        self.world.step()
        log = self.world.unstamped[epoch]
        if self.world.random.random() < 0.5:
            # The folder was not synced: it may still be there when the power comes back.
            log.batches.clear()
        del self.earlier[epoch]


class Collector:
    """Collects samples into batches of three; for the main log also what the mover brings."""

    batch_bytes_max = 600

    def __init__(self, world: World, epoch: int, log: Buffer) -> None:
        self.world, self.epoch, self.log = world, epoch, log
        self.collected: list[bytes] = []
        self.base = 0
        self.full = 0.0

    def add(self, sample: Sample) -> None:
        self.collected.append(encode_sample(sample))
        if len(self.collected) == 3:
            self.cut()

    def cut(self) -> None:
        if self.collected:
            self._append(self.collected, None)
            self.collected = []

    def go(self, *, online: bool) -> None: ...

    def add_stamped(self, parts: list[bytes], source: Source) -> int | None:
        self.world.step()
        if self.world.random.random() < self.full:
            return None
        assert len(parts) == 1 or sum(len(part) + 4 for part in parts) <= self.batch_bytes_max
        seq = self._append(parts, source)
        self.world.moved_in[self.epoch, seq] = self.world.times.boot
        return seq

    def _append(self, parts: list[bytes], source: Source | None) -> int:
        _, seq = self.log.range()
        self.log.append(make(self.epoch, seq, self.base, "samples", parts, 1, 0, source))
        self.base += len(parts)
        return seq

    async def synced(self, epoch: int, seq: int) -> None:
        log = self.world.main[self.epoch]
        while log.synced_seq < seq:
            await asyncio.sleep(0)


class Process:
    """One run of an agent, as far as it concerns time."""

    def __init__(self, world: World) -> None:
        self.world = world
        epoch = len(world.main) + 1
        self.clock = Clock(world.times, TimeFloor(world.times, world.floor_file), wait_s_max=1e9)
        self.log = world.main[epoch] = Log(world, epoch)
        self.main = Collector(world, epoch, self.log)
        make_sink: Callable[[int, Buffer], Collector] = lambda log, buffer: Collector(world, log, buffer)  # noqa: E731
        self.unstamped = Unstamped(self.clock, Spool(world), world.meta_file, make_sink)
        self.intake = Intake(self.clock, self.main, self.unstamped)
        self.mover = Mover(self.unstamped, self.main, epoch, in_thread=in_thread)

    def recover(self) -> None:
        earlier = [log for log in self.world.main.values() if log is not self.log]
        for log in earlier:
            log.sync()
        self.mover.recovered([batch.source for log in earlier for batch in log if batch.source is not None])

    def take(self) -> None:
        """Take a sample."""
        number = len(self.world.truth) + 1
        self.world.truth[number] = (self.world.true_ns, self.world.times.boot)
        self.intake.add(Sample("m", self.clock.stamp(), 20.0, 100.0, extras={"number": number}))

    def deliver(self) -> None:
        """Publish and free what may be, as the delivery would some time."""
        for epoch, log in self.world.main.items():
            for batch in log:
                if not self.mover.holds(batch) and self.world.random.random() < 0.7:
                    self.world.published[epoch, batch.identity.seq] = batch
            gone = log.first
            while (epoch, gone) in self.world.published:
                gone += 1
            pinned = self.mover.pinned_from(epoch)
            log.free(min(gone, pinned if pinned is not None else gone) - 1)

    async def background(self) -> None:
        while True:
            self.deliver()
            if self.world.random.random() < 0.3:
                self.log.sync()
            for log in list(self.world.unstamped.values()):
                if self.world.random.random() < 0.2:
                    log.sync()
            await asyncio.sleep(0)

    async def run(self, *, samples: int, learns_at: int, recovers_at: int, to_the_end: bool = False) -> None:
        """Take samples 0.7 s apart and learn the time on the way; move until a crash, or until all is moved."""
        async with asyncio.TaskGroup() as group:
            background = group.create_task(self.background())
            moving = group.create_task(self.mover.run())
            for number in range(samples):
                if number == recovers_at:
                    self.recover()
                if number == learns_at:
                    self.world.learn_time()
                self.world.pass_s(0.7)
                self.clock.follow()
                with contextlib.suppress(OSError):
                    self.clock.floor.keep()
                self.take()
                await asyncio.sleep(0)
            if to_the_end:
                await moving
                self.main.cut()
                self.log.sync()
            else:
                for _ in range(20):
                    await asyncio.sleep(0)
            background.cancel()
            moving.cancel()


async def in_thread(write: Callable[[bytes], None], content: bytes) -> None:
    await asyncio.sleep(0)
    write(content)


def numbers(batch: Batch) -> list[int]:
    return [sample.extras["number"] for sample in samples_of(batch) if sample.extras]


def samples_of(batch: Batch) -> list[Sample]:
    return [decode_sample(frame) for frame in frames.split(frames.decompress(batch.data))[0]]


class Edge:
    """A process without crashes, driven by hand."""

    def __init__(self, times: Times, **parts: Any) -> None:
        self.world = parts.get("world") or World()
        self.world.times = times
        self.process = Process(self.world)
        self.clock, self.mover, self.main = self.process.clock, self.process.mover, self.process.main
        self.unstamped, self.intake = self.process.unstamped, self.process.intake

    def take(self, count: int = 1) -> None:
        for _ in range(count):
            self.world.pass_s(1)
            self.process.take()

    async def move(self) -> None:
        """Move until nothing is left to be moved yet."""
        syncing = asyncio.create_task(self._sync())
        moving = asyncio.create_task(self.mover.run())
        for _ in range(200):
            await asyncio.sleep(0)
        for task in (syncing, moving):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await moving

    async def _sync(self) -> None:
        while True:
            self.process.log.sync()
            await asyncio.sleep(0)

    def moved(self) -> list[Sample]:
        return [sample for batch in self.process.log for sample in samples_of(batch)]

    def meta(self) -> LogsFile:
        assert self.world.meta_file.content
        return msgspec.json.decode(self.world.meta_file.content, type=LogsFile)
