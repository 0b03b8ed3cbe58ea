"""Starts parts in order, keeps them running, stops them in the opposite order. One task group owns everything."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

from cncmon_core.backoff import Backoff
from cncmon_standalone.errors import PartError, StopRequestedError
from cncmon_standalone.supervise.child import Child, rotate, tail
from cncmon_standalone.supervise.part import Event, Part, State

RESTART_S_BASE = 0.25
RESTART_S_MAX = 10.0
STEADY_S = 30.0
"""A part that was ready for so long starts its back-off anew when it dies."""
START_S_MAX = 90.0
PROBE_INTERVAL_S = 0.05
ROTATE_INTERVAL_S = 5.0

Listener = Callable[[Event], None]


class Runner:
    """Keeps one part running. `restarts` counts the starts after the first; `pid` is None while it doesn't run."""

    def __init__(self, part: Part, log: Path, tell: Listener) -> None:
        self.part = part
        self.log = log
        self.state = State.WAITING
        self.restarts = 0
        self.since = time.time()
        self.missing = ""
        self.ready_once = asyncio.Event()
        self.failed = asyncio.Event()
        self._tell = tell
        self._child: Child | None = None
        self._stop = asyncio.Event()
        self._ended = asyncio.Event()
        self._started_s = 0.0

    @property
    def pid(self) -> int | None:
        """The running process."""
        return self._child.pid if self._child else None

    async def keep(self, before: Sequence["Runner"]) -> None:
        """Start the part when those before it have been ready, and again whenever it ends, until `stop`."""
        backoff = Backoff(RESTART_S_BASE, RESTART_S_MAX)
        try:
            for other in before:
                await _either(other.ready_once, self._stop)
            while not self._stop.is_set():
                self._started_s = time.monotonic()
                said = await self._live()
                if self._stop.is_set():
                    return
                if self.part.once and said is None:
                    self._set(State.DONE, "done")
                    self.ready_once.set()
                    return
                if time.monotonic() - self._started_s > STEADY_S:
                    backoff.reset()
                delay_s = backoff.next_s()
                self.restarts += 1
                self._set(State.RESTARTING, f"{said}; starting it again in {delay_s:.1f} s")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), delay_s)
        finally:
            self._ended.set()

    async def _live(self) -> str | None:
        """Run the process once; return how it ended, or None where it ran to a good end."""
        try:
            # A thread of its own that ends: a process with threads shouldn't fork.
            with ThreadPoolExecutor(1) as thread:
                command = await asyncio.get_running_loop().run_in_executor(thread, self.part.command)
            if self._stop.is_set():
                return "stopped"
            child = await Child.start(command, self.log)
        except (PartError, OSError) as error:
            self.missing = str(error)
            self.failed.set()
            return str(error)
        if self._stop.is_set():  # asked while the process was being made, when there was none to stop yet
            await child.stop(self.part.stop_s_max)
            return "stopped"
        self._child = child
        self._set(State.STARTING, f"started, pid {child.pid}")
        async with asyncio.TaskGroup() as group:
            probing = group.create_task(self._probe())
            said = await child.wait()
            probing.cancel()
        self._child = None
        return None if self.part.once and child.succeeded else said

    async def _probe(self) -> None:
        if self.part.ready is None:
            return
        while (missing := await self.part.ready()) is not None:
            self.missing = missing
            await asyncio.sleep(PROBE_INTERVAL_S)
        self.missing = ""
        if not self._stop.is_set():
            self._set(State.RUNNING, "ready")
            self.ready_once.set()

    async def stop(self) -> None:
        """Ask the process to stop, kill it if it doesn't in time, and don't start it again."""
        if self._stop.is_set():
            await self._ended.wait()
            return
        self._stop.set()
        child, began = self._child, time.monotonic()
        said = "was not running"
        if child is not None:
            self._set(State.STOPPING, "stopping")
            in_time = await child.stop(self.part.stop_s_max)
            said = "stopped" if in_time else f"did not stop within {self.part.stop_s_max:.0f} s and was killed"
        await self._ended.wait()
        if self.state is not State.DONE:
            self._started_s = began
            self._set(State.STOPPED, said)

    def kill(self) -> None:
        """Kill -9 the process, with what it forked."""
        if self._child is not None:
            self._child.kill()

    def _set(self, state: State, text: str) -> None:
        self.state, self.since = state, time.time()
        self._tell(Event(self.part, state, text, time.monotonic() - self._started_s))


class Supervisor:
    """Runs parts while a body of work runs. `stop_requested` is the user's Ctrl-C or SIGTERM."""

    def __init__(self, parts: Iterable[Part], logs: Path, listener: Listener) -> None:
        self.stop_requested = asyncio.Event()
        self._listeners = [listener]
        self._logs = logs
        self.runners = {part.name: Runner(part, logs / f"{part.name}.log", self._tell) for part in parts}

    def listen(self, listener: Listener) -> None:
        """Tell one more of what happens."""
        self._listeners.append(listener)

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)

    async def run[T](self, body: Callable[[], Awaitable[T]]) -> T:
        """Start everything, run `body` beside it, stop everything in order, and return what `body` returned."""
        async with asyncio.TaskGroup() as group:
            for runner in self.runners.values():
                before = [self.runners[name] for name in runner.part.after]
                group.create_task(runner.keep(before), name=runner.part.name)
            rotating = group.create_task(self._rotate_logs())
            outcome = await asyncio.gather(asyncio.ensure_future(body()), return_exceptions=True)
            await self.stop()
            rotating.cancel()
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    async def wait_ready(self, names: Iterable[str] | None = None) -> None:
        """Wait until the named parts, or all, have been ready once.

        Raises:
            PartError: one can't be run, or took too long; says which, why, and its last words.
            StopRequestedError: the user would rather not wait.
        """
        deadline = time.monotonic() + START_S_MAX
        for runner in [self.runners[name] for name in (self.runners if names is None else names)]:
            while not runner.ready_once.is_set():
                if self.stop_requested.is_set():
                    raise StopRequestedError("stopped before everything was running")
                for other in self.runners.values():
                    if other.failed.is_set() and not other.ready_once.is_set():
                        raise PartError(f"{other.part.name}: {other.missing}")
                if time.monotonic() > deadline:
                    raise PartError(_why_not_ready(runner))
                await asyncio.sleep(0.02)

    async def stop(self, group: str | None = None) -> None:
        """Stop one group of parts, or all: group by group, last started first, those of one group side by side."""
        chosen = [runner for runner in reversed(self.runners.values()) if group in (None, runner.part.group)]
        for _, runners in groupby(chosen, key=lambda runner: runner.part.group):
            await asyncio.gather(*(runner.stop() for runner in runners))

    def kill(self) -> None:
        """Kill everything that runs at once: the user asked a second time. Nothing accepted is lost by it."""
        for runner in self.runners.values():
            runner.kill()

    def group(self, name: str) -> list[Runner]:
        """Return the runners of a group."""
        return [runner for runner in self.runners.values() if runner.part.group == name]

    async def sleep(self, seconds: float) -> bool:
        """Wait; return True at once when the user asks to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stop_requested.wait(), seconds)
        return self.stop_requested.is_set()

    async def _rotate_logs(self) -> None:
        while True:
            await asyncio.sleep(ROTATE_INTERVAL_S)
            for log in self._logs.glob("*.log"):
                rotate(log)


def _why_not_ready(runner: Runner) -> str:
    words = "\n".join(f"    {line}" for line in tail(runner.log))
    said = f" ({runner.missing})" if runner.missing else ""
    again = f", started {runner.restarts + 1} times" if runner.restarts else ""
    return (
        f"{runner.part.name} is not ready after {START_S_MAX:.0f} s{said}{again}. "
        f"Its log {runner.log} ends with:\n{words}"
    )


async def _either(*events: asyncio.Event) -> None:
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
