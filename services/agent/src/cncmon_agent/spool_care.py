"""Looks after a spool: recovers what earlier starts left, and syncs.

All state is the event loop's; what waits for a disk runs in a thread, piece by piece.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from prometheus_client import Counter, Gauge

from cncmon_agent.buffer.spool import Spool
from cncmon_agent.buffer.sync import SyncWork
from cncmon_core import logs

log = logs.get(__name__)

SYNC_SECONDS = Gauge("cncmon_edge_sync_seconds", "How long the last sync took.")
SYNC_ERRORS = Counter("cncmon_edge_sync_errors", "Syncs that failed; what they were for is written elsewhere.")

LOOK_S: Final = 0.5
"""How often it is looked whether a sync can't wait for its time."""


class SpoolCare:
    """Recovery and group commit of one spool."""

    def __init__(self, name: str, spool: Spool, interval_ms: int) -> None:
        """name: for the log."""
        self._name = name
        self.spool = spool
        self.recovered = asyncio.Event()
        self.turned_s = time.monotonic()
        """When the sync loop last turned, monotonic."""
        self._interval_s = interval_ms / 1000
        self._turn = asyncio.Event()
        self._under_way: SyncWork | None = None
        self._ran: SyncWork | None = None
        self._running = threading.Lock()
        # Of its own: host names that nobody resolves must not hold up a sync.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"disk {name}")

    async def run(self) -> None:
        """Recover and sync, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._recover())
            group.create_task(self._sync_loop())

    async def turn(self) -> None:
        """Return when the sync loop has turned again, whether it found something to do or not."""
        await self._turn.wait()

    async def _recover(self) -> None:
        started_s = time.monotonic()
        for piece in self.spool.recover_steps():
            await self._in_thread(piece.run)
            piece.install()
        if self.spool.earlier:
            log.info(
                "batches of earlier starts found",
                spool=self._name,
                batches=sum(one.stats().batches for one in self.spool.earlier.values()),
                epochs=len(self.spool.earlier),
                took_s=round(time.monotonic() - started_s, 2),
            )
        self.recovered.set()

    async def _sync_loop(self) -> None:
        while True:
            await self._until_due()
            self.turned_s = time.monotonic()
            work = self.spool.sync_work()
            if work is not None:
                self._under_way = work
                await self._in_thread(partial(self._run, work))
                self._under_way = None
                self._done(work)
            turn, self._turn = self._turn, asyncio.Event()
            turn.set()

    async def _until_due(self) -> None:
        """Wait for the interval's end, or less where the memory for what is not synced is half full.

        When it is full nothing is accepted; a long interval is meant to write less, not to lose samples.
        """
        due_s = time.monotonic() + self._interval_s
        bytes_max = self.spool.settings.unsynced_bytes_max // 2
        while (left_s := due_s - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, LOOK_S))
            if any(log.appender.unsynced_bytes > bytes_max for log in self.spool.current.values()):
                return

    async def _in_thread(self, call: Callable[[], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _run(self, work: SyncWork) -> None:
        """Do a work that was not done yet, or wait for who does it."""
        with self._running:
            if self._ran is not work:
                work.run()
                self._ran = work

    def close(self) -> None:
        """Sync what is left, and close. Blocks for the disk, and for a sync that a stop left behind.

        Without that one's end the spool would hand out no other, and close files under it.
        """
        if (left := self._under_way) is not None:
            self._run(left)
            self._done(left)
        if (work := self.spool.sync_work()) is not None:
            work.run()
            self._done(work)
        self.spool.close()
        self._thread.shutdown(wait=False)

    def _done(self, work: SyncWork) -> None:
        self.spool.synced(work)
        SYNC_SECONDS.set(time.monotonic() - self.turned_s)
        if work.folder_failed or any(part.failed for part in work.parts):
            SYNC_ERRORS.inc()
            log.error("a sync failed: its file is left alone, and what was not synced is written into another")
