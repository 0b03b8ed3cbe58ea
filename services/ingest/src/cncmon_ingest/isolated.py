"""The process that tries suspects, from the worker's side: one for many tasks, restarted after it died (rule C3)."""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from typing import Final

import msgspec

from cncmon_ingest.alone import READY, Answer, Task
from cncmon_ingest.errors import LateError, OutageError

LINE_BYTES_MAX: Final = 1 << 16
"""Bytes of an answer."""

START_S_MAX: Final = 60.0
"""A process that takes no tasks by then is no evidence against any of them: the machine may be slow."""

DYING_S: Final = 0.2
"""Left to a process that is ending by itself, so that its exit status says of what."""


class Isolated:
    """Runs tasks in a process of its own, one at a time. Not for use by two tasks at once."""

    def __init__(self) -> None:
        self.process: Process | None = None

    async def run(self, task: Task, limit_s: float) -> tuple[Answer | None, str]:
        """Return the answer to a task; or None, and how the process ended instead.

        Raises:
            LateError: it did not answer in time, and is ended.
            OutageError: the process can't be started, or was ended by somebody.
        """
        process = await self._started()
        stdin, stdout = _pipes_of(process)
        line = b""
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(limit_s):
                stdin.write(msgspec.json.encode(task) + b"\n")
                await stdin.drain()
                line = await stdout.readline()
        if line.endswith(b"\n"):
            answer = msgspec.json.decode(line, type=Answer)
            if answer.died is None:
                return answer, ""
            return None, f"the isolated process died ({_cause_of(answer.died)})"
        late = process.returncode is None and not stdout.at_eof()
        code = await self.end(kill=True)
        if late:
            raise LateError(f"the isolated process did not answer within {limit_s:.0f} s")
        # Not the child that took the task, but what it was forked from: the task did not do that.
        raise OutageError(f"the isolated process was ended ({_cause_of(code)})")

    async def _started(self) -> Process:
        if self.process is not None and self.process.returncode is None:
            return self.process
        self.process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "cncmon_ingest.alone"),
            stdin=PIPE,
            stdout=PIPE,
            limit=LINE_BYTES_MAX,
            # A signal to the worker's process group, such as Ctrl-C, must not look like a message that kills.
            start_new_session=True,
        )
        line = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_S_MAX):
                line = await _pipes_of(process)[1].readline()
        if line != READY:
            code = await self.end(kill=True)
            raise OutageError(f"the isolated process did not start within {START_S_MAX:.0f} s, exit status {code}")
        return process

    async def end(self, *, kill: bool = False) -> int:
        """End the process, if there is one, and return its exit status.

        Cancelled half-way it has killed the process where it was to; who ends it again then waits for that.
        """
        process = self.process
        if process is None:
            return 0
        if process.stdin is not None:
            process.stdin.close()
        if kill:
            try:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(process.wait()), DYING_S)
            finally:
                # With what it forked.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        if process.stdout is not None:
            # To its end, or the transport is left open for the garbage collector to complain of.
            await process.stdout.read()
        code = await process.wait()
        self.process = None
        return code


def _cause_of(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit status {code}"


def _pipes_of(process: Process) -> tuple[asyncio.StreamWriter, asyncio.StreamReader]:
    if process.stdin is None or process.stdout is None:
        raise AssertionError("it was started with pipes")
    return process.stdin, process.stdout
