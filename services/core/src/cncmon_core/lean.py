"""Imported first by a service's `main`: keeps out libraries that ours take along only because they find them installed.

An image of one service does not have them. Where the whole product is installed in one place they are there, and would
cost the agent some 20 MB of its 50, and ingest nearly half of the time that its start takes: nats-py takes aiohttp (for
WebSockets, unused), structlog takes rich and greenlet (for terminals and gevent), msgspec takes typing_extensions where
Python 3.12's own typing has all it needs. importlib.metadata costs 0.8 MB and is read by nats-py for its own version
alone: the server lists our client as 0.0.0.
"""

import sys

UNWANTED = ("aiohttp", "greenlet", "importlib.metadata", "rich", "typing_extensions")

for _name in UNWANTED:
    # None makes an import fail as if the library were not installed (Python reference, section 5.3.1).
    sys.modules.setdefault(_name, None)  # type: ignore[arg-type]  # typeshed does not know that None is allowed
