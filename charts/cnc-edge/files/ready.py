"""Wait until the agent is ready: connected, its batches taken, its disk there. Exit with what is wrong."""

import os
import sys
import time
import urllib.error
import urllib.request

URL = os.environ["READY"]

end_s = time.monotonic() + float(os.environ["WAIT_S"])
while True:
    try:
        with urllib.request.urlopen(URL, timeout=10) as answer:  # noqa: S310 it is our own Service
            print(answer.read().decode())
            break
    except OSError as error:
        said = error.read().decode() if isinstance(error, urllib.error.HTTPError) else str(error)
        if time.monotonic() > end_s:
            sys.exit(f"{URL}: {said}")
        time.sleep(1)
