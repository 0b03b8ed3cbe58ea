"""The agent: its parts, how they are wired, and how they stop."""

import asyncio
import gc
import math
import time
from datetime import UTC, datetime
from pathlib import Path

from nats.aio.client import Client
from prometheus_client import Counter

from cncmon_agent import heartbeat
from cncmon_agent.accepted_log import AcceptedLog
from cncmon_agent.batcher import Batcher
from cncmon_agent.buffer.hot import HotBuffer
from cncmon_agent.clock import Clock
from cncmon_agent.delivery import Delivery
from cncmon_agent.epochs import Epochs
from cncmon_agent.heartbeat import Heartbeat
from cncmon_agent.poller import Poller
from cncmon_agent.publish import Publisher
from cncmon_agent.settings import AgentSettings
from cncmon_core import logs, machine_files, names
from cncmon_core.events import EPOCH_CLOSED, Event, encode_event
from cncmon_core.machine import Machine
from cncmon_core.nats_link import NatsLink

log = logs.get(__name__)

GOLDEN: float = (math.sqrt(5) - 1) / 2
"""Multiples of it, modulo 1, spread evenly however many there are: the machines' phases within an interval."""


RESTARTS = Counter("cncmon_edge_poller_restarts", "Machine tasks begun again after a fault of our own.")

RESTART_S = 5.0


async def _supervised(poller: Poller) -> None:
    """Run one machine's task for ever: a fault of ours in it must not take the other machines along."""
    while True:
        try:
            await poller.run()
        except Exception:
            log.exception("a machine's task failed and is begun again", machine=poller.report.id)
            RESTARTS.inc()
            poller.report.error = "internal error, see the agent's log"
        await asyncio.sleep(RESTART_S)


class Agent:
    """One edge. `run` until told to stop."""

    def __init__(self, settings: AgentSettings, link: NatsLink) -> None:
        """Prepare everything that needs no network.

        Raises:
            OSError: the data folder can't be used.
        """
        self._settings = settings
        self._link = link
        self._started_s = time.monotonic()
        self._clock = Clock()
        self.epochs = Epochs(Path(settings.data_dir))
        if self.epochs.unreadable:
            log.warning("the epochs file could not be read: earlier epochs are not closed by this edge")
        self._record = AcceptedLog(Path(settings.accepted_log)) if settings.accepted_log else None
        self.buffer = HotBuffer(settings.buffer_batches_max, settings.buffer_bytes_max)
        self.batcher = Batcher(settings, self.epochs.current.epoch, self.buffer, self._record)
        self.delivery = Delivery(self.buffer, self.epochs.current, settings.duplicate_window_s)
        self.publisher = Publisher(settings, self.buffer, self.batcher, self.delivery, self._record)
        self._closing_seq: int | None = None
        found = machine_files.load([Path(path) for path in settings.machines])
        self._problems = [str(problem) for problem in found.problems]
        for problem in self._problems:
            log.error("machine document left out", problem=problem)
        mine = [m for m in found.machines.values() if (m.spec.site, m.spec.edge) == (settings.site, settings.edge)]
        self.pollers = [self._poller(index, machine) for index, machine in enumerate(mine)]
        log.info("agent made", epoch=self.epochs.current.epoch, machines=len(mine), left_out=len(self._problems))

    def _poller(self, index: int, machine: Machine) -> Poller:
        phase_s = (index * GOLDEN % 1.0) * machine.spec.poll_interval_ms / 1000
        return Poller(machine, self._settings, self.batcher, self._clock, phase_s)

    async def run(self, stop: asyncio.Event) -> None:
        """Read and publish until told to stop; then cut the last batch and deliver what is there."""
        self._close_earlier_epochs()
        # What is made up to here lives as long as the process: no use in looking at it in every collection.
        gc.collect()
        gc.freeze()
        async with asyncio.TaskGroup() as group:
            link = group.create_task(self._link.run(self._session))
            keeping = group.create_task(self._keep())
            polling = [group.create_task(_supervised(poller)) for poller in self.pollers]
            await stop.wait()
            for task in polling:
                task.cancel()
            await asyncio.gather(*polling, return_exceptions=True)
            self.batcher.cut()
            await self._drain()
            link.cancel()
            keeping.cancel()
        self._save()
        if self._record is not None:
            self._record.close()
        left = self.buffer.stats()
        log.info("agent stopped", undelivered_samples=left.samples if self.delivery.unacknowledged() else 0)

    async def _session(self, client: Client) -> None:
        await self.publisher.session(client, self._beat)

    async def _drain(self) -> None:
        """Wait until the stream has every batch, as long as there is a connection and the time is not out."""
        deadline_s = time.monotonic() + self._settings.drain_s_max
        while self.delivery.unacknowledged() and time.monotonic() < deadline_s:
            self.publisher.progress.clear()
            try:
                await asyncio.wait_for(self.publisher.progress.wait(), 0.1)
            except TimeoutError:
                continue

    def _close_earlier_epochs(self) -> None:
        """Say of every earlier epoch that it will not grow; said again at each start until the database has it."""
        now = datetime.now(UTC)
        events = [
            Event(
                EPOCH_CLOSED,
                now,
                data={"epoch": epoch.epoch, "last_seq": epoch.acked_seq, "samples": epoch.acked_samples},
            )
            for epoch in self.epochs.open
        ]
        if events:
            self._closing_seq = self.batcher.add_events([encode_event(event) for event in events])

    async def _keep(self) -> None:
        """Look after what changes slowly: the clock, the epochs file, the closings that are confirmed."""
        while True:
            await asyncio.sleep(self._settings.state_save_ms / 1000)
            if self._clock.follow():
                log.warning("the wall clock was set")
            self._save()

    def _save(self) -> None:
        if self._closing_seq is not None and (self.delivery.watermark or 0) >= self._closing_seq:
            self.epochs.confirm_closed({epoch.epoch for epoch in self.epochs.open})
            self._closing_seq = None
        try:
            self.epochs.save()
        except OSError as error:
            log.error("the epochs file can't be written", error=str(error))

    async def _beat(self, client: Client) -> None:
        key = names.edge_key(self._settings.site, self._settings.edge)
        failed: str | None = None
        while True:
            said = await heartbeat.send(client, key, names.KV_STATUS, self.heartbeat())
            if said is not None and said != failed:
                log.warning("no heartbeat", error=said)
            failed = said
            await asyncio.sleep(self._settings.heartbeat_ms / 1000)

    def heartbeat(self) -> Heartbeat:
        """Return what there is to say now."""
        reports = [poller.report for poller in self.pollers]
        for state in ("connecting", "connected", "offline"):
            heartbeat.MACHINES.labels(state).set(sum(report.state == state for report in reports))
        return Heartbeat(
            version=heartbeat.VERSION,
            boot_id=heartbeat.BOOT_ID,
            site=self._settings.site,
            edge=self._settings.edge,
            epoch=self.epochs.current.epoch,
            epochs=[
                heartbeat.EpochReport(epoch.epoch, epoch.acked_seq, epoch.freed_seq, epoch.acked_samples)
                for epoch in (*self.epochs.open, self.epochs.current)
            ],
            time=datetime.now(UTC),
            uptime_s=round(time.monotonic() - self._started_s, 1),
            buffer=heartbeat.buffer_report(self.buffer, self.delivery.unacknowledged()),
            samples_accepted=self.batcher.samples,
            stream_error=self.publisher.stream_error,
            machines=reports,
            problems=self._problems,
        )
