"""On a process's PYTHONPATH, messages do harm to whoever decodes them, by what their bytes contain.

CNC-KILL: the process dies at once, as of a fault in native code. CNC-HANG: it hangs. CNC-OUTAGE: the database can't be
used, once.
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
    if b"CNC-KILL" in incoming.data:
        os.kill(os.getpid(), signal.SIGKILL)
    if b"CNC-HANG" in incoming.data:
        time.sleep(3600)
    marker = Path(os.environ.get("CNC_OUTAGE_FILE", "/nowhere"))
    if b"CNC-OUTAGE" in incoming.data and marker.exists():
        marker.unlink()
        raise OutageError("as the test wants it")
    return _real(incoming, limits)


module.decode = decode
