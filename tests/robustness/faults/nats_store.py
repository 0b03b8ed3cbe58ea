"""NATS loses what it had acknowledged: kill -9 with the last part of its storage gone, as after a power cut."""

import shutil
from pathlib import Path

from testkit.servers import Server

STORE = "jetstream"


def copy_store(server: Server, folder: Path, into: Path) -> None:
    """Copy a running server's store as it is at one moment; the server stands still meanwhile."""
    server.pause()
    try:
        shutil.rmtree(into, ignore_errors=True)
        shutil.copytree(folder / STORE, into)
    finally:
        server.resume()


def lose_since(server: Server, folder: Path, copy: Path) -> None:
    """kill -9 the server and put an earlier copy in place of its store; start it again yourself."""
    server.kill()
    shutil.rmtree(folder / STORE)
    shutil.copytree(copy, folder / STORE)
