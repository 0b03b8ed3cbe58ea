"""What the agent's capture path costs: 100 machines × 10 Hz, from a poll that is due to a compressed batch.

The machines are in another process; what is measured is this process's CPU time a poll. Stages are measured by adding
one at a time, paced as in service: in a tight loop, with warm caches, all of it costs half. The floor of the same run
is a bare asyncio protocol on uvloop that exchanges the same bytes with a bare server, woken at the same moments.
"""

import asyncio
import contextlib
import gc
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, cast

import uvloop

from bench.report import Figure, Report, run
from cncmon_agent import drivers, ticks
from cncmon_agent.batch import make
from cncmon_agent.clock import Clock
from cncmon_agent.drivers.modbus.client import Question, connect
from cncmon_agent.drivers.modbus.plan import plan
from cncmon_agent.poller import Poller
from cncmon_agent.settings import AgentSettings
from cncmon_core import machine_files
from cncmon_core.machine import Machine, ModbusConnection
from cncmon_core.sample import Sample, encode_sample
from cncmon_simulator import Settings, running

MACHINES: Final = 100
INTERVAL_S: Final = 0.1
GOLDEN: Final = 0.6180339887498949
FLOOR: Final = "a bare protocol"

_FRAMES_A_BATCH: Final = 100
"""What 1,000 samples a second make in a linger of 100 ms."""


class _Counting:
    """Where samples end; `add` of the stages below do more with them."""

    def __init__(self) -> None:
        self.polls = 0
        self.frames: list[bytes] = []
        self.batches = 0

    def add(self, sample: Sample) -> None:
        self.polls += 1

    def add_encoded(self, sample: Sample) -> None:
        self.polls += 1
        encode_sample(sample)

    def add_to_batch(self, sample: Sample) -> None:
        self.polls += 1
        self.frames.append(encode_sample(sample))
        if len(self.frames) == _FRAMES_A_BATCH:
            self.batches += 1
            make(77, self.batches, self.polls, "samples", self.frames, AgentSettings().compression_level, 0)
            self.frames = []


class _Sink:
    def __init__(self, add: Callable[[Sample], None]) -> None:
        self.add = add


class _Echo(asyncio.Protocol):
    """Answers any bytes with the same ones."""

    def __init__(self, said: bytes) -> None:
        self._said = said

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(self._said)


class _Hearing(asyncio.Protocol):
    def __init__(self, counting: _Counting) -> None:
        self._counting = counting

    def data_received(self, data: bytes) -> None:
        self._counting.polls += 1


async def _serve_echo(size: int) -> None:
    said = bytes(size)
    server = await asyncio.get_running_loop().create_server(lambda: _Echo(said), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _serve_machines(file: str) -> None:
    settings = Settings(
        machines=MACHINES,
        port_base=0,
        control_port=-1,
        behaviour="reference",
        poll_interval_ms=int(INTERVAL_S * 1000),
        machines_file=file,
    )
    async with running(settings):
        print("ready", flush=True)
        await asyncio.Event().wait()


@contextlib.contextmanager
def _process(*arguments: str) -> Iterator[str]:
    """Run this program as a server; yield the line that it says when it is ready."""
    command = [sys.executable, "-m", "bench.capture", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def _starts() -> list[float]:
    """Return when each machine's first poll is due, on the pollers' own grid."""
    now_s = time.monotonic() + 0.2
    return [ticks.aligned_s(now_s + number * GOLDEN % 1 * INTERVAL_S, INTERVAL_S) for number in range(MACHINES)]


async def _paced(work: Callable[[], Awaitable[object]], due_s: float) -> None:
    here = ticks.of_running_loop()
    while True:
        await here.at(due_s)
        await work()
        due_s += INTERVAL_S


async def _written(transport: asyncio.Transport, request: bytes) -> None:
    transport.write(request)


async def _floor(port: int, request: bytes, counting: _Counting) -> list[Awaitable[None]]:
    loop = asyncio.get_running_loop()
    made: list[Awaitable[None]] = []
    for due_s in _starts():
        transport, _ = await loop.create_connection(lambda: _Hearing(counting), "127.0.0.1", port)
        made.append(_paced(partial(_written, transport, request), due_s))
    return made


def _target(machine: Machine) -> ModbusConnection:
    return cast("ModbusConnection", machine.spec.connection.modbus)


def _question(machine: Machine) -> Question:
    (block,) = plan(machine.spec.signals, _target(machine))
    return Question.of(block, _target(machine).unit_id)


async def _requests(machines: list[Machine], counting: _Counting) -> list[Awaitable[None]]:
    made: list[Awaitable[None]] = []
    for machine, due_s in zip(machines, _starts(), strict=True):
        client = await connect(_target(machine).host, _target(machine).port, 1)
        made.append(_paced(partial(_counted, partial(client.ask, _question(machine)), counting), due_s))
    return made


async def _reads(machines: list[Machine], counting: _Counting) -> list[Awaitable[None]]:
    return [
        _paced(partial(_counted, drivers.make(machine).read, counting), due_s)
        for machine, due_s in zip(machines, _starts(), strict=True)
    ]


async def _counted(work: Callable[[], Awaitable[object]], counting: _Counting) -> None:
    await work()
    counting.polls += 1


async def _polls(machines: list[Machine], add: Callable[[Sample], None]) -> list[Awaitable[None]]:
    settings, clock, sink = AgentSettings(), Clock(trust="always"), _Sink(add)
    return [
        Poller(machine, settings, sink, clock, number * GOLDEN % 1 * INTERVAL_S).run()
        for number, machine in enumerate(machines)
    ]


async def _cpu_us(made: Awaitable[list[Awaitable[None]]], counting: _Counting, seconds: float) -> float:
    """Return CPU time a poll in µs, once every machine is connected and polled."""
    tasks = [asyncio.ensure_future(work) for work in await made]
    await asyncio.sleep(1)
    gc.collect()
    gc.freeze()
    before, polls = resource.getrusage(resource.RUSAGE_SELF), counting.polls
    await asyncio.sleep(seconds)
    after, polls = resource.getrusage(resource.RUSAGE_SELF), counting.polls - polls
    for task in tasks:
        task.cancel()
    failed = [
        error
        for error in await asyncio.gather(*tasks, return_exceptions=True)
        if not isinstance(error, asyncio.CancelledError)
    ]
    if failed or polls < 0.95 * seconds / INTERVAL_S * MACHINES:
        raise SystemExit(f"{polls} polls in {seconds:g} s, {len(failed)} failed: {failed[:1]}")
    spent_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return 1e6 * spent_s / polls


def floor_us(seconds: float) -> float:
    """Return the floor alone, for other benchmarks: CPU time a poll of a bare protocol, in µs."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "machines.yaml"
        with _process("machines", str(file)):
            question = _question(next(iter(machine_files.load([file]).machines.values())))
        counting = _Counting()
        with _process("echo", str(question.size)) as port:
            return uvloop.run(_cpu_us(_floor(int(port), bytes(2) + question.request, counting), counting, seconds))


def measure(report: Report, quick: bool) -> None:
    """Measure each stage for 10 s (quick: 4 s)."""
    seconds = 4.0 if quick else 10.0

    def cpu_us(start: Callable[[_Counting], Awaitable[list[Awaitable[None]]]]) -> float:
        counting = _Counting()
        return uvloop.run(_cpu_us(start(counting), counting, seconds))

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "machines.yaml"
        with _process("machines", str(file)):
            machines = list(machine_files.load([file]).machines.values())
            question = _question(machines[0])
            request = bytes(2) + question.request
            with _process("echo", str(question.size)) as port:
                floor = cpu_us(partial(_floor, int(port), request))
            found = {
                "request": cpu_us(partial(_requests, machines)),
                "read": cpu_us(partial(_reads, machines)),
                "sample": cpu_us(lambda counting: _polls(machines, counting.add)),
                "encoded": cpu_us(lambda counting: _polls(machines, counting.add_encoded)),
            }
            total = cpu_us(lambda counting: _polls(machines, counting.add_to_batch))
    report.add("capture.floor", Figure(floor, "µs/poll"))
    for stage, value in found.items():
        report.add(f"capture.{stage}", Figure(value, "µs/poll", floor, FLOOR))
    # Of the 100 µs a sample that the agent has for all of it, disk and PubAck included.
    report.add("capture.batched", Figure(total, "µs/poll", floor, FLOOR, 85, "at_most"))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["machines", file]:
            uvloop.run(_serve_machines(file))
        case ["echo", size]:
            uvloop.run(_serve_echo(int(size)))
        case _:
            sys.exit(run("capture", measure))
