"""Runs a command with a time limit and leaves no process behind: `python -m mutants.contained SECONDS COMMAND...`.

Every process that loses its parent under here becomes a child of this one (PR_SET_CHILD_SUBREAPER, prctl(2)), servers
in sessions of their own included. Ends as the command did; with 124, as timeout(1), where it had to be ended.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys

import psutil

PR_SET_CHILD_SUBREAPER = 36
TIMED_OUT = 124


def end_children() -> None:
    """Kill everything below this process until nothing is left."""
    while children := psutil.Process().children(recursive=True):
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        psutil.wait_procs(children, timeout=0.1)


def main() -> int:
    """Run the command of the command line."""
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError("prctl(PR_SET_CHILD_SUBREAPER) failed: the runner of mutants needs Linux")
    # The runner asks the kernel for this signal when it dies, and so takes what is below us along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    limit_s, *command = sys.argv[1:]
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            return process.wait(float(limit_s))
        except subprocess.TimeoutExpired:
            return TIMED_OUT
    finally:
        end_children()


if __name__ == "__main__":
    sys.exit(main())
