"""The agent: its parts, how they are wired, and how they stop."""

import asyncio
import contextlib
import gc
import random
import time
from collections.abc import Iterable
from pathlib import Path

from nats.aio.client import Client

from cncmon_agent import heartbeat
from cncmon_agent.accepted_log import AcceptedLog
from cncmon_agent.batch import Source
from cncmon_agent.batcher import Batcher
from cncmon_agent.beats import Beats
from cncmon_agent.buffer import Buffer
from cncmon_agent.buffer.emptied import Emptied
from cncmon_agent.clock import Clock
from cncmon_agent.closings import Closings
from cncmon_agent.config.follower import ConfigFollower
from cncmon_agent.control import Controller, ControlSettings
from cncmon_agent.deliveries import Deliveries
from cncmon_agent.delivery import Delivery, is_held, samples_before
from cncmon_agent.durable_file import DurableFile
from cncmon_agent.epochs import Epoch, Epochs
from cncmon_agent.errors import FolderError, FolderInUseError
from cncmon_agent.folder import UNSTAMPED, DataFolder
from cncmon_agent.fork import Fork
from cncmon_agent.gaps import GapTeller
from cncmon_agent.governor import SLOT_S, Governor
from cncmon_agent.heartbeat import Heartbeat
from cncmon_agent.machines import MachineSet
from cncmon_agent.mover import Mover
from cncmon_agent.predecessor import Predecessor
from cncmon_agent.publish import Publisher
from cncmon_agent.server_time import ask_time
from cncmon_agent.settings import AgentSettings
from cncmon_agent.spool_care import SpoolCare
from cncmon_agent.storage import Storage
from cncmon_agent.time_floor import TimeFloor
from cncmon_agent.time_source import SystemTime, TimeSource
from cncmon_agent.unstamped import Intake
from cncmon_agent.without_time import make_unstamped
from cncmon_core import logs, names
from cncmon_core.nats_link import NatsLink

log = logs.get(__name__)

UPKEEP_S = 1.0

STUCK_S = 180.0
"""A publish loop or a sync that has not turned for so long, while it should, is dead: only a restart helps then.
Acknowledgements may be waited for a minute, and so may a large batch at the lowest pace.
"""


class Agent:
    """One edge. `run` until told to stop."""

    def __init__(self, settings: AgentSettings, link: NatsLink, source: TimeSource | None = None) -> None:
        """Prepare everything that needs no network. source: the machine's clocks, for tests.

        Raises:
            FolderError: another agent runs on the data folder, or it can't be used and the settings demand it.
            SpoolError: the same of the folder of batches.
        """
        self._settings = settings
        self._link = link
        self._started_s = time.monotonic()
        self._problems: list[str] = []
        self._folder = self._open_folder()
        path = self._folder.path if self._folder else None
        self.epochs = Epochs(path, settings.site, settings.edge)
        if self.epochs.unreadable:
            log.warning("the epochs file could not be read: earlier epochs are not closed by this edge")
        self._record = AcceptedLog(Path(settings.accepted_log)) if settings.accepted_log else None
        source = source or SystemTime()
        floor = TimeFloor(source, DurableFile(path / "time.json") if path else None)
        self.clock = Clock(source, floor, trust=settings.clock_trusted, wait_s_max=settings.clock_wait_s_max)
        current = self.epochs.current
        self.storage = Storage(settings, current.epoch, path, self._record, next(iter(self._problems), None))
        if self.storage.spool is not None:
            self.storage.spool.note_end = self.epochs.note_end
        self.batcher = Batcher(settings, current.epoch, self.storage.buffer, self._record, self.clock.now)
        self.unstamped, spool = make_unstamped(settings, self.clock, path)
        self._unstamped_care = SpoolCare(UNSTAMPED, spool, settings.sync_interval_ms) if spool is not None else None
        self.mover = Mover(self.unstamped, _MainLog(self.batcher, self.storage), current.epoch)
        self.deliveries = Deliveries(
            self.storage.buffer, current, settings.duplicate_window_s, self.epochs.stream_created
        )
        self._pin(self.deliveries.current)
        self.publisher = Publisher(settings, self.batcher, self.deliveries, self._record, self.mover.holds)
        self.gaps = GapTeller(self.deliveries, self.batcher, self.mover, self.clock.now)
        self.closings = Closings(self.epochs, self.deliveries, self.batcher, self.clock.now)
        self.governor = Governor(
            Controller(control_settings(settings), random.Random()),  # noqa: S311 jitter is no secret
            self.publisher,
            self.deliveries,
            self.storage,
            lambda: self.batcher.online,
        )
        self.machines = MachineSet(settings, Intake(self.clock, self.batcher, self.unstamped), self.clock)
        self.config = ConfigFollower(settings, path, self.machines.apply)
        self._predecessor = Predecessor(settings.site, settings.edge)
        self.beats = Beats(settings.site, settings.edge)
        self._saving = asyncio.Lock()
        self.fork = Fork(
            self.epochs,
            self.storage,
            self.batcher,
            self.deliveries,
            self.mover,
            self.gaps,
            self.closings,
            self.beats,
            self._save,
            self._pin,
        )
        log.info("agent made", epoch=current.epoch, earlier_epochs=len(self.epochs.open))

    def stuck(self) -> str | None:
        """Liveness: whether publishing stands still though there is a connection, the disk does not answer, or the cold
        tier's came back.

        Not being connected is no fault. Called from another thread.
        """
        now_s = time.monotonic()
        still_s = self.publisher.still_s(now_s)
        if self.batcher.online and still_s >= STUCK_S:
            return f"nothing was published, nor looked at, for {still_s:.0f} s"
        if self.storage.cold_is_back:
            return f"the cold tier's disk is there again: a start reads what is on it ({self._settings.cold_dir})"
        still_s = self.storage.sync_overdue_s(now_s)
        return f"a sync of the batches on disk has not ended for {still_s:.0f} s" if still_s >= STUCK_S else None

    def _open_folder(self) -> DataFolder | None:
        try:
            return DataFolder(Path(self._settings.data_dir))
        except FolderInUseError:
            raise
        except FolderError as error:
            if self._settings.spool == "required":
                raise
            self._problems.append(str(error))
            return None

    def _pin(self, delivery: Delivery) -> None:
        epoch = delivery.epoch.epoch
        delivery.pinned_from = lambda: self.mover.pinned_from(epoch)

    async def run(self, stop: asyncio.Event) -> None:
        """Read and publish until told to stop; then cut the last batch, deliver what can be, and sync."""
        await self.config.start()
        # What is made up to here lives as long as the process: no use in looking at it in every collection.
        gc.collect()
        gc.freeze()
        async with asyncio.TaskGroup() as group:
            machines = group.create_task(self.machines.run())
            others = [
                group.create_task(self._link.run(self._session)),
                group.create_task(self.storage.run()),
                group.create_task(self._recover()),
                group.create_task(self.mover.run()),
                *([group.create_task(self._unstamped_care.run())] if self._unstamped_care else []),
                group.create_task(self._govern()),
                group.create_task(self._keep()),
            ]
            await stop.wait()
            machines.cancel()
            await asyncio.wait([machines])
            self.unstamped.cut()
            self.batcher.cut()
            await self._drain()
            for task in others:
                task.cancel()
        await self._close()

    async def _close(self) -> None:
        await asyncio.to_thread(self.storage.close)
        if self._unstamped_care is not None:
            await asyncio.to_thread(self._unstamped_care.close)
        self._note_synced()
        await self._save()
        if self._record is not None:
            self._record.close()
        if self._folder is not None:
            self._folder.close()
        log.info("agent stopped", kept_batches=self.deliveries.unacknowledged())

    async def _session(self, client: Client) -> None:
        self.clock.go(online=True)
        self.gaps.go(online=True)
        self.unstamped.go(online=True)
        try:
            await self.publisher.session(client, self._beat, self.config.follow, self._hear_time)
        finally:
            self.unstamped.go(online=False)
            self.gaps.go(online=False)
            self.clock.go(online=False)

    async def _hear_time(self, client: Client) -> None:
        """Compare our clock with the server's at each connection, and again as long as time is not known."""
        while True:
            if (heard := await ask_time(client)) is not None:
                self.clock.heard(*heard)
            if self.clock.known:
                return
            await asyncio.sleep(self._settings.watermark_poll_ms / 1000)

    async def _drain(self) -> None:
        """Wait until the stream has what was read last, as long as there is a connection and the time is not out.

        Nothing is lost otherwise, where there is a disk; it comes with the next start then.
        """
        deadline_s = time.monotonic() + self._settings.drain_s_max
        current = self.deliveries.current
        while current.unacknowledged() and time.monotonic() < deadline_s and (self.batcher.online or not self._disk):
            self.publisher.progress.clear()
            try:
                await asyncio.wait_for(self.publisher.progress.wait(), 0.1)
            except TimeoutError:
                continue

    @property
    def _disk(self) -> bool:
        return self.storage.spool is not None

    async def _recover(self) -> None:
        """Once everything on disk is known: drain earlier epochs, close them, and move what had no time."""
        await self.storage.wait_recovered()
        if self.storage.fell_back:
            # What earlier starts left may well be on the disk that can't be read now: of that nothing can be said. A
            # start that reads it drains and closes it.
            self.mover.recovered([])
            return
        left = dict(self.storage.spool.earlier) if self.storage.spool is not None else {}
        known = {epoch.epoch for epoch in self.epochs.open}
        # Those that the epochs file does not know: it was lost. What is not there any more of them may be in the
        # database, or was dropped: the database knows, and takes of what is declared only what it lacks.
        self.epochs.open += [Epoch(number) for number in left if number not in known]
        whole = self.storage.cold_missing is None
        for epoch in self.epochs.open:
            if epoch.epoch in self.deliveries.earlier:
                # Begun by this process, which has ended it by now.
                continue
            buffer: Buffer = left.get(epoch.epoch) or Emptied(max(epoch.last_seq, epoch.acked_seq) + 1)
            note_end(epoch, buffer)
            self._pin(self.deliveries.add_earlier(buffer, epoch, whole=whole))
        self.publisher.wake()
        if whole:
            self.closings.say()
        # At once: what the cap drops now was known to be there by nobody else.
        await self._save()
        if self._unstamped_care is not None:
            await self._unstamped_care.recovered.wait()
        self.mover.recovered(await _sources(left.values()) if self.unstamped.spool.earlier else [])

    async def _govern(self) -> None:
        while True:
            self.governor.step()
            await asyncio.sleep(SLOT_S)

    async def _keep(self) -> None:
        """Look after what changes slowly: the clock, the epochs file, gaps, and what is delivered to its end."""
        saved_s = time.monotonic()
        while True:
            await asyncio.sleep(min(UPKEEP_S, self._settings.state_save_ms / 1000))
            if self.clock.follow():
                log.warning("the wall clock was set", steps=self.clock.steps)
            await self.fork.step()
            if self.storage.recovered and not self.storage.fell_back:
                # Of what earlier starts left nothing can be said while some of it may be on a disk that is not there.
                self.gaps.step(earlier=self.storage.cold_missing is None)
                for epoch in self.closings.step():
                    if self.storage.spool is not None:
                        self.storage.spool.forget(epoch)
            if time.monotonic() - saved_s >= self._settings.state_save_ms / 1000:
                saved_s = time.monotonic()
                self._note_synced()
                await self._save()

    def _note_synced(self) -> None:
        """Bring the epoch up to what is synced: that much a later start will say was there."""
        current = self.epochs.current
        self.epochs.stream_created = self.deliveries.stream_created
        for delivery in self.deliveries:
            delivery.settle()
        if not self._disk:
            # What is only in memory is not promised: the epoch ends, if it does, where the stream has it.
            current.last_seq, current.last_samples = current.acked_seq, current.acked_samples
        else:
            note_synced(current, self.storage.buffer, self.storage.synced_seq)

    async def _save(self) -> None:
        # One after the other: what was encoded first must not be written last.
        async with self._saving:
            content = self.epochs.changes()
            try:
                if content is not None:
                    await asyncio.to_thread(self.epochs.write, content)
                if self._folder is not None:
                    await asyncio.to_thread(self.clock.floor.keep)
            except OSError as error:
                log.error("the epochs file can't be written", error=str(error))

    async def _beat(self, client: Client) -> None:
        key = names.edge_key(self._settings.site, self._settings.edge)
        failed: str | None = None
        await self._predecessor.ask(client)
        self.beats.connected()
        while True:
            self.config.changed.clear()
            if await self.beats.finds_twin(client):
                self.epochs.current.forked = True
            said = await heartbeat.send(client, key, names.KV_STATUS, self.heartbeat())
            if said is not None and said != failed:
                log.warning("no heartbeat", error=said)
            failed = said
            # Whoever changed the configuration waits to hear what became of it.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.config.changed.wait(), self._settings.heartbeat_ms / 1000)

    def heartbeat(self) -> Heartbeat:
        """Return what there is to say now."""
        reports, mark = self.machines.reports(), self.beats.next()
        drained = self.deliveries.earlier
        for state in ("connecting", "connected", "offline"):
            heartbeat.MACHINES.labels(state).set(sum(report.state == state for report in reports))
        return Heartbeat(
            version=heartbeat.VERSION,
            boot_id=mark.boot_id,
            site=self._settings.site,
            edge=self._settings.edge,
            epoch=self.epochs.current.epoch,
            epochs=[
                *[heartbeat.unread_report(epoch) for epoch in self.epochs.open if epoch.epoch not in drained],
                *[heartbeat.epoch_report(delivery) for delivery in drained.values()],
                heartbeat.epoch_report(self.deliveries.current, self.batcher.samples),
            ],
            time=self.clock.now(),
            uptime_s=round(time.monotonic() - self._started_s, 1),
            buffer=heartbeat.buffer_report(self.storage, self.deliveries, self.governor.decision, self.clock.now()),
            samples_accepted=self.batcher.accepted,
            samples_refused=self.batcher.refused,
            stream_error=self.publisher.stream_error,
            machines=reports,
            config=self.config.report,
            clock=heartbeat.ClockReport(self.clock.known, self.unstamped.samples(), self.clock.steps),
            problems=self._all_problems(),
            gone=self._predecessor.gone({self.epochs.current.epoch, *(epoch.epoch for epoch in self.epochs.open)}),
            beat=mark.beat,
            nonce=mark.nonce,
            forked=[epoch.epoch for epoch in (*self.epochs.open, self.epochs.current) if epoch.forked],
        )

    def _all_problems(self) -> list[str]:
        """Return what is wrong with this edge's disks, and its epochs; that there is no disk on purpose is not."""
        memory_only = self.storage.memory_only if self._settings.spool != "off" else None
        said = [*self._problems, memory_only, self.storage.cold_missing, *self.deliveries.problems()]
        return list(dict.fromkeys(text for text in said if text is not None))


def note_synced(epoch: Epoch, buffer: Buffer, synced_seq: int) -> None:
    """Write down up to which seq the current epoch is synced, also where that batch is freed, or damaged since."""
    last_seq = max(epoch.last_seq, epoch.freed_seq, synced_seq)
    if (samples := samples_before(buffer, epoch, last_seq + 1)) is None:
        # How many samples it had is not known any more; that it was there must be.
        samples = 0
    epoch.last_seq, epoch.last_samples = last_seq, samples


def note_end(epoch: Epoch, buffer: Buffer) -> None:
    """Write down where an earlier epoch ended: at what is recovered, unless more was known to be synced or taken."""
    _, end = buffer.range()
    # The last one may be damaged, or dropped: a seq of the epoch all the same, and nobody knows its samples.
    last = buffer.get(end - 1)
    ends = [
        (epoch.last_seq, epoch.last_samples),
        (epoch.acked_seq, epoch.acked_samples),
        (end - 1, last.identity.base + last.samples if last is not None else 0),
    ]
    epoch.last_seq, epoch.last_samples = max(ends)


async def _sources(left: Iterable[Buffer]) -> list[Source]:
    """Return from which samples without time batches on disk were made; reads all of them.

    One that can't be read just now is waited for: its samples would be moved, and stored, a second time.
    """
    found = []
    for buffer in left:
        seq, end = buffer.range()
        while seq < end:
            batch = buffer.get(seq)
            if batch is None and is_held(buffer, seq):
                await asyncio.sleep(UPKEEP_S)
                continue
            if batch is not None and batch.source is not None:
                found.append(batch.source)
            if seq % 64 == 0:
                await asyncio.sleep(0)
            seq = max(seq + 1, buffer.range()[0])
    return found


class _MainLog:
    """Where samples go that got their time late."""

    def __init__(self, batcher: Batcher, storage: Storage) -> None:
        self._batcher = batcher
        self._storage = storage

    @property
    def batch_bytes_max(self) -> int:
        return self._batcher.batch_bytes_max

    def add_stamped(self, parts: list[bytes], source: Source) -> int | None:
        return self._batcher.add_stamped(parts, source)

    async def synced(self, epoch: int, seq: int) -> None:
        await self._storage.synced(seq, epoch)


def control_settings(settings: AgentSettings) -> ControlSettings:
    """Return the controller's settings: what is a matter of the place, from ours."""
    return ControlSettings(
        replay_bytes_per_s_max=settings.replay_bytes_per_s_max,
        horizon_h=settings.horizon_h,
        cpu_share_budget=settings.cpu_share_budget,
    )
