"""One running process: its output to a bounded file, asked to stop and killed if it doesn't."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from cncmon_standalone.embedded.process import Command, base_environ, dying_with_parent

LOG_BYTES_MAX = 10 << 20
LOG_FILES = 3


class Child:
    """A started command in a session of its own, so that the terminal's Ctrl-C reaches the supervisor only."""

    def __init__(self, process: asyncio.subprocess.Process, command: Command) -> None:
        self._process = process
        self._command = command

    @classmethod
    async def start(cls, command: Command, log: Path) -> "Child":
        """Start it, its output appended to `log`.

        Raises:
            OSError: the program can't be run.
        """
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *command.argv,
                cwd=command.cwd or log.parent,
                env=base_environ() | dict(command.environ),
                user=command.uid,
                group=command.gid,
                extra_groups=None if command.uid is None else [],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=dying_with_parent(command.stop_signal),
            )
        return cls(process, command)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def wait(self) -> str:
        """Return how it ended, in words, once it has; nothing it forked is left in its session."""
        status = await self._process.wait()
        self._kill_group()
        return describe_exit(status)

    @property
    def succeeded(self) -> bool:
        """Whether it has ended with exit status 0."""
        return self._process.returncode == 0

    async def stop(self, seconds_max: float) -> bool:
        """Ask it to stop, kill it when it takes longer; return whether it stopped by itself."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(self._command.stop_signal)
            try:
                await asyncio.wait_for(self._process.wait(), seconds_max)
            except TimeoutError:
                self._kill_group()
                await self._process.wait()
                return False
        return True

    def kill(self) -> None:
        """Kill -9 the process and everything under it: PostgreSQL's backends have sessions of their own."""
        import psutil

        try:
            under = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            under = []
        self._kill_group()
        for process in under:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


def describe_exit(status: int) -> str:
    """Return an exit status in words."""
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was ended by {name}"


def rotate(log: Path, bytes_max: int = LOG_BYTES_MAX, files: int = LOG_FILES) -> None:
    """Keep a log that a process appends to within bounds: copy it to `.1`, the older ones one further, and empty it.

    Emptied in place, since the process keeps it open. What is written between the copy and the cut is lost; a log may
    lose a line, while a pipe through the supervisor would let it hold up the process.
    """
    try:
        if log.stat().st_size <= bytes_max:
            return
    except FileNotFoundError:
        return
    older = [log.with_name(f"{log.name}.{number}") for number in range(1, files)]
    for source, target in zip(reversed(older[:-1]), reversed(older[1:]), strict=True):
        if source.exists():
            source.replace(target)
    if older:
        with log.open("rb") as source_file, older[0].open("wb") as target_file:
            while chunk := source_file.read(1 << 20):
                target_file.write(chunk)
    os.truncate(log, 0)


def tail(log: Path, lines: int = 8) -> list[str]:
    """Return the last lines of a log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - (16 << 10)))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        return []
