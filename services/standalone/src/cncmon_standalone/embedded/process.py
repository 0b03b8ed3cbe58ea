"""What a process to be run is: its command line, environment, user and how it is asked to stop."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_PR_SET_PDEATHSIG = 1
# Loaded here: between fork and exec only async-signal-safe work is sound, and loading a library is not.
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Command:
    """A program to run. `uid`/`gid` None: as ourselves. `stop_signal` asks it to end in order."""

    name: str
    argv: list[str]
    environ: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    uid: int | None = None
    gid: int | None = None
    stop_signal: signal.Signals = signal.SIGTERM


def die_with_parent() -> None:
    """Ask the kernel to end this process (SIGTERM) when its parent dies, so that a killed supervisor leaves nothing.

    Runs in the child between fork and exec, after the change of user (which would clear it).
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))


def dying_with_parent(number: signal.Signals) -> Callable[[], None]:
    """Return what to run between fork and exec so that the child is sent a signal when its parent dies."""
    parent = os.getpid()

    def ask() -> None:
        if _LIBC is None:
            return
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(number))
        if os.getppid() != parent:  # it died before we asked
            os.kill(os.getpid(), number)

    return ask


def base_environ() -> dict[str, str]:
    """Return our environment without what could steer the programs behind our back."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("CNCMON_", "PG"))}
