"""The supervisor with real processes: what it starts, restarts, stops, and leaves behind."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from cncmon_standalone.embedded.process import Command
from cncmon_standalone.errors import PartError, StopRequestedError
from cncmon_standalone.supervise import supervisor as module
from cncmon_standalone.supervise.child import describe_exit, rotate, tail
from cncmon_standalone.supervise.part import Event, Part, Probe, State
from cncmon_standalone.supervise.supervisor import Supervisor
from testkit.waiting import WAIT_S_MAX, until

SLEEPER = "import time\nwhile True: time.sleep(1)"
STUBBORN = (
    "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(3600)"
)


async def at_once() -> None:
    return None


def part(name: str, code: str = SLEEPER, *, ready: Probe | None = at_once, **others: object) -> Part:
    group = str(others.pop("group", name))
    return Part(name, group, name, lambda: Command(name, [sys.executable, "-c", code]), ready, **others)  # type: ignore[arg-type]


class Watch:
    """The events, as (name, state)."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, state: State) -> list[str]:
        return [event.part.name for event in self.events if event.state is state]

    async def until(self, condition: Callable[["Watch"], object]) -> None:
        await until(
            lambda: condition(self), what=lambda: f"so: {[(e.part.name, e.state, e.text) for e in self.events]}"
        )


async def test_parts_start_after_what_they_need_and_stop_in_the_opposite_order(tmp_path: Path) -> None:
    watch = Watch()
    parts = [part("a"), part("b", after=("a",)), part("c-1", group="c", after=("b",)), part("c-2", group="c")]
    supervisor = Supervisor(parts, tmp_path, watch)
    await supervisor.run(supervisor.wait_ready)
    started = watch.of(State.STARTING)
    assert started.index("a") < started.index("b") < started.index("c-1")
    stopped = watch.of(State.STOPPED)
    assert set(stopped[:2]) == {"c-1", "c-2"}
    assert stopped[2:] == ["b", "a"]


async def test_a_killed_part_is_started_again_and_counted(tmp_path: Path) -> None:
    watch = Watch()
    supervisor = Supervisor([part("victim"), part("bystander")], tmp_path, watch)

    async def body() -> None:
        await supervisor.wait_ready()
        victim = supervisor.runners["victim"]
        for kills in (1, 2):
            pid = victim.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await watch.until(lambda w, kills=kills: w.of(State.RUNNING).count("victim") == kills + 1)  # type: ignore[misc]
            assert victim.restarts == kills
            assert victim.pid != pid
        assert supervisor.runners["bystander"].restarts == 0

    await supervisor.run(body)
    said = next(event.text for event in watch.events if event.state is State.RESTARTING)
    assert "was ended by SIGKILL; starting it again in" in said


async def test_a_part_that_ends_at_once_is_retried_ever_more_slowly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESTART_S_BASE", 0.05)
    watch = Watch()
    supervisor = Supervisor([part("broken", "raise SystemExit(7)", ready=lambda: _never())], tmp_path, watch)

    async def body() -> list[str]:
        await watch.until(lambda w: len(w.of(State.RESTARTING)) >= 5)
        return [event.text for event in watch.events if event.state is State.RESTARTING]

    texts = await supervisor.run(body)
    assert all("ended with exit status 7" in text for text in texts)
    delays = [float(text.split(" again in ")[1].removesuffix(" s")) for text in texts]
    bounds = [0.05 * 2**tries for tries in range(len(delays))]  # jittered below a bound that doubles
    assert all(delay <= bound + 0.05 for delay, bound in zip(delays, bounds, strict=True))


async def test_a_part_that_runs_for_good_is_started_again_even_when_it_ends_without_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESTART_S_BASE", 0.01)
    watch = Watch()
    supervisor = Supervisor([part("quits", "raise SystemExit(0)")], tmp_path, watch)

    async def body() -> None:
        await watch.until(lambda w: w.of(State.DONE) or len(w.of(State.RESTARTING)) >= 2)

    await supervisor.run(body)
    assert watch.of(State.DONE) == []
    said = next(event.text for event in watch.events if event.state is State.RESTARTING)
    assert "ended with exit status 0; starting it again in" in said


async def test_a_part_that_was_steady_before_it_ended_begins_its_backoff_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESTART_S_BASE", 0.01)
    monkeypatch.setattr(module, "STEADY_S", 0.0)
    watch = Watch()
    supervisor = Supervisor([part("steady", "raise SystemExit(7)")], tmp_path, watch)

    async def body() -> list[str]:
        await watch.until(lambda w: len(w.of(State.RESTARTING)) >= 10)
        return [event.text for event in watch.events if event.state is State.RESTARTING]

    texts = await supervisor.run(body)
    delays = [float(text.split(" again in ")[1].removesuffix(" s")) for text in texts]
    # Never reset, the tenth would be drawn from 0.5 to 5 s.
    assert max(delays) <= 0.1, delays


async def _never() -> str:
    return "never"


async def test_a_part_that_never_gets_ready_is_named_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "START_S_MAX", 0.5)
    supervisor = Supervisor(
        [part("mute", "print('no such table', flush=True)\n" + SLEEPER, ready=lambda: _never())], tmp_path, Watch()
    )

    async def body() -> None:
        mute = supervisor.runners["mute"]
        await until(lambda: mute.missing == "never" and tail(mute.log))
        await supervisor.wait_ready()

    with pytest.raises(
        PartError, match=r"(?s)mute is not ready after .* \(never\).*mute\.log ends with:\s+no such table"
    ):
        await supervisor.run(body)


async def test_a_part_that_cannot_be_run_fails_the_start_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = Part("gone", "gone", "gone", lambda: Command("gone", ["/nowhere/gone"]), at_once)
    supervisor = Supervisor([part("fine"), nowhere], tmp_path, Watch())
    monkeypatch.setattr(module, "START_S_MAX", 3600)  # it is not waited for
    with pytest.raises(PartError, match=r"gone: .*No such file"):
        await supervisor.run(supervisor.wait_ready)


async def test_a_part_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    watch = Watch()
    supervisor = Supervisor([part("stubborn", STUBBORN, stop_s_max=0.3)], tmp_path, watch)

    async def body() -> int | None:
        await supervisor.wait_ready()
        while not tail(tmp_path / "stubborn.log"):
            await asyncio.sleep(0.01)
        return supervisor.runners["stubborn"].pid

    pid = await supervisor.run(body)
    assert "did not stop within" in watch.events[-1].text
    assert pid is not None
    assert not psutil.pid_exists(pid)


async def test_a_program_that_runs_to_its_end_is_done_and_repeated_only_when_it_fails(tmp_path: Path) -> None:
    marker = tmp_path / "tried"
    code = (
        f"import pathlib\np = pathlib.Path({str(marker)!r})\nn = p.exists()\np.touch()\nraise SystemExit(0 if n else 3)"
    )
    watch = Watch()
    supervisor = Supervisor([part("once", code, ready=None, once=True), part("then", after=("once",))], tmp_path, watch)
    await supervisor.run(supervisor.wait_ready)
    assert watch.of(State.DONE) == ["once"]
    assert supervisor.runners["once"].restarts == 1
    assert watch.of(State.STOPPED) == ["then"]


async def test_a_wish_to_stop_during_the_start_is_granted(tmp_path: Path) -> None:
    supervisor = Supervisor([part("slow", ready=lambda: _never())], tmp_path, Watch())

    async def body() -> None:
        supervisor.stop_requested.set()
        await supervisor.wait_ready()

    with pytest.raises(StopRequestedError):
        await supervisor.run(body)


async def test_a_second_wish_to_stop_ends_everything_at_once(tmp_path: Path) -> None:
    watch = Watch()
    supervisor = Supervisor([part("stubborn", STUBBORN, stop_s_max=3600)], tmp_path, watch)

    async def body() -> None:
        await supervisor.wait_ready()
        while not tail(tmp_path / "stubborn.log"):
            await asyncio.sleep(0.01)
        asyncio.get_running_loop().call_later(0.2, supervisor.kill)

    await supervisor.run(body)
    assert watch.of(State.STOPPED) == ["stubborn"]


async def test_a_failing_body_stops_everything_first(tmp_path: Path) -> None:
    watch = Watch()
    supervisor = Supervisor([part("a")], tmp_path, watch)

    async def body() -> None:
        await supervisor.wait_ready()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await supervisor.run(body)
    assert watch.of(State.STOPPED) == ["a"]


SUPERVISE = """
import asyncio, sys
from pathlib import Path
from cncmon_standalone.embedded.process import Command
from cncmon_standalone.supervise.part import Part
from cncmon_standalone.supervise.supervisor import Supervisor

async def ready(): return None
command = Command("sleeper", [sys.executable, "-c", "import time; time.sleep(60)"])
parts = [Part(name, name, name, lambda: command, ready) for name in ("a", "b")]
s = Supervisor(parts, Path(sys.argv[1]), lambda event: None)
async def body():
    await s.wait_ready()
    print(*[r.pid for r in s.runners.values()], flush=True)
    await asyncio.sleep(60)
asyncio.run(s.run(body))
"""


def test_children_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as supervisor:
        assert supervisor.stdout is not None
        children = [psutil.Process(int(pid)) for pid in supervisor.stdout.readline().split()]
        assert len(children) == 2
        supervisor.kill()
        _, alive = psutil.wait_procs(children, timeout=WAIT_S_MAX)
        assert not alive


def test_a_log_stays_within_its_bound_and_keeps_the_newest(tmp_path: Path) -> None:
    log = tmp_path / "part.log"
    with log.open("ab", buffering=0) as held_open:
        for number in range(50):
            held_open.write(f"line {number} {'x' * 90}\n".encode())
            rotate(log, bytes_max=1000, files=3)
    sizes = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert set(sizes) == {"part.log", "part.log.1", "part.log.2"}
    assert all(size <= 1100 for size in sizes.values())
    everything = b"".join((tmp_path / name).read_bytes() for name in sorted(sizes, reverse=True))
    assert b"line 49 " in everything
    assert b"\0" not in everything


def test_exits_are_told_in_words() -> None:
    assert describe_exit(3) == "ended with exit status 3"
    assert describe_exit(-9) == "was ended by SIGKILL"
