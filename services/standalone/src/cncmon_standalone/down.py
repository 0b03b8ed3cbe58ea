"""`cncmon down`: ask a running `up` or `demo` to stop, and say what stopped."""

import os
import signal
import time
from pathlib import Path

from cncmon_standalone import console, state
from cncmon_standalone.errors import StandaloneError

WAIT_S_MAX = 20.0


def run(data: Path | None) -> None:
    """Stop it and wait for its end.

    Raises:
        NotRunningError: nothing runs.
        StandaloneError: it may not be stopped by us, or takes too long.
    """
    running = state.find(data)
    out = console.for_people()
    alive = {process.name for process in running.processes if process.pid is not None}
    out.print(f"Stopping cncmon {running.command} on {running.data}, pid {running.pid}")
    try:
        os.kill(running.pid, signal.SIGTERM)
    except PermissionError as error:
        raise StandaloneError(f"pid {running.pid} belongs to another user: run this as that user") from error
    except ProcessLookupError:
        pass
    began = time.monotonic()
    while running.folder.holder() == running.pid:
        now = state.read(running.folder)
        if now is not None:
            for process in now.processes:
                if process.name in alive and process.state == "stopped":
                    alive.discard(process.name)
                    out.print(f"  [green]√[/] {process.name} stopped")
        if time.monotonic() - began > WAIT_S_MAX:
            raise StandaloneError(
                f"pid {running.pid} still runs after {WAIT_S_MAX:.0f} s, "
                f"waiting for: {', '.join(sorted(alive)) or 'itself'}. Its log: {running.folder.logs / 'cncmon.log'}. "
                f"To end everything at once: kill -9 {running.pid}"
            )
        time.sleep(0.05)
    for name in sorted(alive):
        out.print(f"  [green]√[/] {name} stopped")
    out.print(f"Stopped in {time.monotonic() - began:.1f} s.")
