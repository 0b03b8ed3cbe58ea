"""On a process's PYTHONPATH, messages do harm to whoever decodes them, by what their bytes contain.

CNC-KILL: the process dies at once, as of a fault in native code. CNC-HANG: it hangs. CNC-OUTAGE: the database can't be
used, once for each line of the file `outages`. CNC-WAIT: file `began` is made, and the process waits while file `wait`
is there. The files are in CNC_HARM_FOLDER.
"""

import os
import signal
import time
from pathlib import Path

from cncmon_ingest import decode as module
from cncmon_ingest.errors import OutageError

_real = module.decode


def decode(incoming: module.Incoming, limits: module.Limits) -> module.Decoded:
    """Do the harm, or decode."""
    folder = Path(os.environ.get("CNC_HARM_FOLDER", "/nowhere"))
    if b"CNC-KILL" in incoming.data:
        os.kill(os.getpid(), signal.SIGKILL)
    if b"CNC-HANG" in incoming.data:
        time.sleep(3600)
    if b"CNC-WAIT" in incoming.data:
        (folder / "began").touch()
        while (folder / "wait").exists():
            time.sleep(0.01)
    outages = folder / "outages"
    if b"CNC-OUTAGE" in incoming.data and outages.exists() and (left := outages.read_text().splitlines()):
        outages.write_text("".join(f"{line}\n" for line in left[1:]))
        raise OutageError(f"as the test wants it: {left[0]}")
    return _real(incoming, limits)


module.decode = decode
