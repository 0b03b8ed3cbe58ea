"""A running system from start to stop, as `up` and `demo` have it in common: ports, supervisor, state file, signals."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from cncmon_core import __version__
from cncmon_standalone import ports, state, system
from cncmon_standalone.state import ProcessState, RunState
from cncmon_standalone.supervise.part import Event
from cncmon_standalone.supervise.supervisor import Listener, Supervisor


async def run[T](plan: system.Plan, command: str, listener: Listener, body: Callable[[Supervisor], Awaitable[T]]) -> T:
    """Run everything of a plan while `body` runs; the data folder must be locked.

    Raises:
        InUseError: a port is taken; nothing was started.
        PartError, StopRequestedError, and whatever `body` raises: everything was stopped.
    """
    ports.check(plan.wanted_ports())
    plan.cluster.draw_password()
    supervisor = Supervisor(system.parts(plan), plan.folder.logs, listener)
    log = _EventLog(plan)
    supervisor.listen(log)
    started = time.time()

    def publish(_: Event | None = None) -> None:
        state.write(plan.folder, _state_of(plan, command, started, supervisor))

    publish()
    supervisor.listen(publish)
    with contextlib.closing(log):
        async with stopping_on_signals(supervisor):
            return await supervisor.run(lambda: body(supervisor))


def _state_of(plan: system.Plan, command: str, started: float, supervisor: Supervisor) -> RunState:
    return RunState(
        pid=os.getpid(),
        command=command,
        version=__version__,
        started=started,
        data=str(plan.folder.root),
        api_url=plan.api_url.rstrip("/"),
        nats_url=plan.nats_url,
        database_dsn=plan.cluster.dsn,
        processes=[
            ProcessState(
                name=runner.part.name,
                group=runner.part.group,
                pid=runner.pid,
                state=runner.state.value,
                restarts=runner.restarts,
                since=runner.since,
                log=str(runner.log),
                monitor_port=runner.part.monitor_port,
            )
            for runner in supervisor.runners.values()
        ],
        simulator_url=plan.simulator_url,
    )


@contextlib.asynccontextmanager
async def stopping_on_signals(supervisor: Supervisor) -> AsyncIterator[None]:
    """Until the block ends, take Ctrl-C and its like for the wish to stop; the second one kills."""
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if supervisor.stop_requested.is_set():
            supervisor.kill()
        supervisor.stop_requested.set()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


class _EventLog:
    """What the supervisor did, as JSON lines in DATA/logs/cncmon.log, which is kept small as the parts' logs are."""

    def __init__(self, plan: system.Plan) -> None:
        self._file = (plan.folder.logs / "cncmon.log").open("ab", buffering=0)

    def __call__(self, event: Event) -> None:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "part": event.part.name,
            "state": event.state.value,
            "event": event.text,
        }
        self._file.write(msgspec.json.encode(line) + b"\n")

    def close(self) -> None:
        self._file.close()
