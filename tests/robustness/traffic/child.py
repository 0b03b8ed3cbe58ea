"""Services as processes of their own, so that kill -9 means what it says."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from cncmon_core.settings import variable_of
from cncmon_standalone.embedded.process import base_environ, dying_with_parent
from testkit.waiting import WAIT_S_MAX


class Child:
    """A Python module that runs as a process; started again at will, its output kept in one file."""

    def __init__(self, name: str, folder: Path, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        self.name = name
        self.argv = [sys.executable, "-P", *argv]
        self.log = folder / f"{name}.log"
        self._environ = environ
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self._output_from = 0

    def start(self, changes: Mapping[str, str] | None = None) -> None:
        """Start it; it is not waited for. changes: to its environment, for this start."""
        self.starts += 1
        with self.log.open("ab") as log:
            self._output_from = log.tell()
            self._process = subprocess.Popen(
                self.argv,
                env={**base_environ(), **self._environ, **(changes or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=dying_with_parent(signal.SIGKILL),
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def pause(self) -> None:
        """Freeze it: it is there, and does nothing."""
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.killpg(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        assert self._process is not None
        # What it forked or was wrapped in goes with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    async def stop(self) -> None:
        """SIGTERM, and wait; it must end by itself, in time and without an error."""
        if self._process is None:
            return
        process, self._process = self._process, None
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(process.wait, WAIT_S_MAX)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise AssertionError(f"{self.name} did not stop in {WAIT_S_MAX:g} s: {self.tail()}") from None
        # The wrapper of another network namespace ends as its program does; killed on purpose is not stopped.
        if process.returncode not in (0, -signal.SIGKILL):
            raise AssertionError(f"{self.name} ended with status {process.returncode}: {self.tail()}")

    def output(self) -> bytes:
        """Return its output since it was started last."""
        if not self.log.exists():
            return b""
        with self.log.open("rb") as log:
            log.seek(self._output_from)
            return log.read()

    def tail(self) -> str:
        """Return the end of its output, earlier starts included."""
        return self.log.read_text(errors="replace")[-3000:]


def environ_of(section: str, settings: msgspec.Struct, **changes: Any) -> dict[str, str]:
    """Return settings as environment variables; only what differs from the defaults."""
    values = msgspec.structs.asdict(settings) | changes
    defaults = {field.name: field.default for field in msgspec.structs.fields(settings)}
    return {
        variable_of(section, name): ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        for name, value in values.items()
        if value != defaults.get(name) and value is not None
    }
