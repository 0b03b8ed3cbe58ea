"""Wait until the query API is ready, then check what it says of its database; exit with what is wrong."""

import json
import os
import sys
import time
import urllib.error
import urllib.request

API = os.environ["API"]


def ask(path: str) -> bytes:
    """Return the answer's bytes; raise OSError for a status of 400 and above, and where nobody answers."""
    with urllib.request.urlopen(API + path, timeout=10) as answer:  # noqa: S310 it is our own Service
        body: bytes = answer.read()
        return body


end_s = time.monotonic() + float(os.environ["WAIT_S"])
while True:
    try:
        ask("/readyz")
        break
    except OSError as error:
        said = error.read().decode() if isinstance(error, urllib.error.HTTPError) else str(error)
        if time.monotonic() > end_s:
            sys.exit(f"{API}/readyz: {said}")
        time.sleep(1)
status = json.loads(ask("/api/v1/status"))
print(json.dumps(status))
ask("/api/v1/machines")
