"""Puts together what keeps samples that have no time yet: a small spool of its own, or memory."""

from pathlib import Path

from cncmon_agent.batcher import Batcher
from cncmon_agent.buffer import Buffer
from cncmon_agent.buffer.errors import SpoolError, SpoolLockedError
from cncmon_agent.buffer.hot import HotRing
from cncmon_agent.buffer.spool import Spool
from cncmon_agent.clock import Clock
from cncmon_agent.durable_file import DurableFile
from cncmon_agent.folder import UNSTAMPED
from cncmon_agent.settings import AgentSettings
from cncmon_agent.storage import no_room, spool_settings
from cncmon_agent.unstamped import MemoryFile, MemoryLogs, Unstamped

FILE = "unstamped.json"


def make_unstamped(settings: AgentSettings, clock: Clock, folder: Path | None) -> tuple[Unstamped, Spool | None]:
    """Return it, and its spool where there is a disk.

    Raises:
        SpoolError: there is no disk to be used, and the settings demand one.
        OSError: its file can't be written.
    """

    def sink(number: int, buffer: Buffer) -> Batcher:
        # No record of what was accepted: that is written when the samples get their time, and their identity.
        return Batcher(settings, number, buffer, None, clock.now, counted=False)

    spool: Spool | None = None
    if folder is not None and settings.spool != "off":
        try:
            spool = Spool(folder / UNSTAMPED, spool_settings(settings, cold=False))
            if no_room(spool) is not None:
                # Memory is better than nothing, and what is on disk already must not wait for the room.
                spool.close()
                spool = None
        except SpoolLockedError:
            raise
        except SpoolError:
            if settings.spool == "required":
                raise
    if spool is None or folder is None:
        memory = MemoryLogs(lambda: HotRing(settings.hot_bytes_max))
        return Unstamped(clock, memory, MemoryFile(), sink), None
    return Unstamped(clock, spool, DurableFile(folder / FILE), sink), spool
