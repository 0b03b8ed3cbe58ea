"""An edge of the model: the agent's own parts over a disk in memory, driven step by step instead of by its tasks."""

import time
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext

from cncmon_agent import heartbeat
from cncmon_agent.agent import note_end, note_synced
from cncmon_agent.batcher import Batcher
from cncmon_agent.buffer import Buffer
from cncmon_agent.buffer.emptied import Emptied
from cncmon_agent.buffer.hot import HotRing
from cncmon_agent.buffer.spool import Spool, SpoolSettings
from cncmon_agent.buffer.tiered import TieredBuffer
from cncmon_agent.closings import Closings
from cncmon_agent.deliveries import Deliveries
from cncmon_agent.delivery import Delivery, is_held
from cncmon_agent.epochs import Epoch, Epochs
from cncmon_agent.gaps import GapTeller
from cncmon_agent.predecessor import Predecessor
from cncmon_agent.settings import AgentSettings
from cncmon_core import names
from cncmon_core.frames import ENCODING_ZSTD
from cncmon_core.identity import subject_of
from cncmon_core.watermark import decode_watermark
from robustness.model.disk import SimulatedDisk
from robustness.model.promises import Key, Promises, Quality, sample

SITE = "hall"
SPOOL = Path("/spool")
SEGMENT_BYTES = 16 << 10
HOT_BYTES = 1 << 18
ABSENT = (nats.js.errors.Error, nats.errors.NoRespondersError, TimeoutError)


class ModelEdge:
    """One agent under one name, over many starts. window_s: the stream's duplicate window."""

    def __init__(self, name: str, folder: Path, promises: Promises, window_s: float) -> None:
        self.name = name
        self.disk = SimulatedDisk()
        self.skew_s = 0.0
        self.recovered = False
        self._folder = folder
        self._promises = promises
        self._window_s = window_s
        self._settings = AgentSettings(site=SITE, edge=name, linger_ms=3_600_000, linger_offline_ms=3_600_000)
        self.begin()

    def begin(self) -> None:
        """Start the process: a new epoch, nothing recovered yet."""
        self.boot_id = f"{self.name}-{time.monotonic_ns()}"
        self.epochs = Epochs(self._folder, SITE, self.name)
        settings = SpoolSettings(segment_bytes=SEGMENT_BYTES, spool_bytes_max=8 * SEGMENT_BYTES, reserve_bytes=0)
        self.spool = Spool(SPOOL, settings, self.disk)
        self.spool.note_end = self.epochs.note_end
        current = self.epochs.current
        self.log = self.spool.begin(current.epoch)
        self.buffer = TieredBuffer(HotRing(HOT_BYTES), self.log)
        self.batcher = Batcher(self._settings, current.epoch, self.buffer, self._promises, _now)
        self.deliveries = Deliveries(self.buffer, current, self._window_s, self.epochs.stream_created)
        self.gaps = GapTeller(self.deliveries, self.batcher, None, _now)
        self.closings = Closings(self.epochs, self.deliveries, self.batcher, _now)
        self.recovered = False
        self._predecessor = Predecessor(SITE, self.name)

    def now_s(self) -> float:
        """The edge's monotonic clock, which the model moves on."""
        return time.monotonic() + self.skew_s

    def accept(self, qualities: list[Quality]) -> None:
        """Take samples into one batch."""
        for quality in qualities:
            number = self._promises.number(quality)
            made = sample(number, f"{self.name}-m{number % 2}", quality)
            noise = {**(made.extras or {}), "noise": Random(number).randbytes(1500).hex()}
            self.batcher.add(msgspec.structs.replace(made, extras=noise))
        self.batcher.cut()

    def sync(self) -> None:
        """Sync the log: from here on its batches are promised."""
        if (work := self.spool.sync_work()) is not None:
            work.run()
            self.spool.synced(work)
        self._promises.synced(self.epochs.current.epoch, self.log.synced_seq)

    def recover(self) -> None:
        """Read what earlier starts left, drain and close it."""
        if self.recovered:
            return
        for piece in self.spool.recover_steps():
            piece.run()
            piece.install()
        known = {epoch.epoch for epoch in self.epochs.open}
        self.epochs.open += [Epoch(number) for number in self.spool.earlier if number not in known]
        for epoch in self.epochs.open:
            buffer: Buffer = self.spool.earlier.get(epoch.epoch) or Emptied(max(epoch.last_seq, epoch.acked_seq) + 1)
            note_end(epoch, buffer)
            self.deliveries.add_earlier(buffer, epoch)
        self.recovered = True
        self.closings.say()
        self.epochs.save()

    async def connect(self, js: JetStreamContext, *, asks: bool = True) -> None:
        """A connection begins. asks: whether the server says which stream there is."""
        self.deliveries.connection_lost()
        if asks:
            await self.look_at_stream(js)
        self.batcher.go(online=True)
        self.gaps.go(online=True)
        self.deliveries.connected()

    async def look_at_stream(self, js: JetStreamContext) -> None:
        """Hear when the stream was made and how far it is."""
        try:
            info = await js.stream_info(names.STREAM)
        except ABSENT:
            return
        if info.created is not None:
            self.deliveries.stream_seen(info.created.astimezone(UTC).isoformat(), info.state.last_seq)

    async def publish(self, js: JetStreamContext, count: int, *, loses_acks: bool = False) -> None:
        """Publish some batches, the live ones first."""
        for _ in range(count):
            found = self._next()
            if found is None:
                return
            delivery, seq = found
            batch = delivery.buffer.get(seq)
            if batch is None:
                delivery.gone(seq)
                continue
            name = batch.identity
            headers = name.to_headers(SITE, self.name, ENCODING_ZSTD)
            try:
                ack = await js.publish(subject_of(name.kind, SITE, self.name), batch.data, headers=headers)
            except ABSENT:
                delivery.failed(seq)
                return
            if loses_acks:
                delivery.failed(seq)
            else:
                self.deliveries.taken(delivery, seq, ack.seq, self.now_s(), duplicate=bool(ack.duplicate))

    def _next(self) -> tuple[Delivery, int] | None:
        seq = self.deliveries.current.next_live()
        return self.deliveries.next_backlog() if seq is None else (self.deliveries.current, seq)

    async def hear(self, js: JetStreamContext) -> bytes | None:
        """Read the watermark document, and return it."""
        key = names.edge_key(SITE, self.name)
        try:
            message = await js.get_last_msg(f"KV_{names.KV_WATERMARK}", f"$KV.{names.KV_WATERMARK}.{key}", direct=True)
        except ABSENT:
            return None
        if not message.data:
            return None
        await self.told(js, message.data)
        return message.data

    async def told(self, js: JetStreamContext, document: bytes) -> None:
        """Take in a watermark document, which may be an old one."""
        self.deliveries.told(decode_watermark(document))
        if self.deliveries.unsure:
            await self.look_at_stream(js)

    def resend(self) -> None:
        """Look for what the consumers passed without storing it, long after the duplicate window."""
        self.skew_s += self._window_s + 10
        self.deliveries.look_for_lost(self.now_s())
        self.deliveries.resume()

    def keep(self) -> None:
        """Declare gaps, repeat closings, save the epochs file."""
        if self.recovered:
            self.gaps.step()
            for epoch in self.closings.step():
                self.spool.forget(epoch)
        self.epochs.stream_created = self.deliveries.stream_created
        for delivery in self.deliveries:
            delivery.settle()
        note_synced(self.epochs.current, self.buffer, self.log.synced_seq)
        self.epochs.save()

    async def beat(self, client: Client) -> dict[int, int]:
        """Send a heartbeat; return the last seq that it tells of each epoch."""
        await self._predecessor.ask(client)
        drained = self.deliveries.earlier
        here = {self.epochs.current.epoch, *(epoch.epoch for epoch in self.epochs.open)}
        reports = [
            *[heartbeat.unread_report(epoch) for epoch in self.epochs.open if epoch.epoch not in drained],
            *[heartbeat.epoch_report(delivery) for delivery in drained.values()],
            heartbeat.epoch_report(self.deliveries.current, self.batcher.samples),
        ]
        content: dict[str, Any] = {
            "boot_id": self.boot_id,
            "time": _now(),
            "epochs": reports,
            "gone": self._predecessor.gone(here),
        }
        key = names.edge_key(SITE, self.name)
        await client.jetstream().publish(f"$KV.{names.KV_STATUS}.{key}", msgspec.json.encode(content))
        return {report.epoch: report.last_seq for report in reports}

    def drop_oldest(self) -> None:
        """The cap drops a segment."""
        self.spool.shed()

    def kill(self) -> None:
        """kill -9, and start again."""
        self.disk.end_process()
        self.begin()

    def cut_power(self, random: Random, keep: float) -> None:
        """Cut the power: what was not synced is lost, or torn."""
        self.disk.cut_power(random, keep)
        self.begin()

    def holds(self, key: Key) -> bool:
        """Whether a batch is on this edge's disk, or missing there in a way that it still has to declare."""
        epoch, seq, _ = key
        if not self.recovered and (epoch in {known.epoch for known in self.epochs.open} or self._is_on_disk(epoch)):
            return True
        for delivery in self.deliveries:
            if delivery.epoch.epoch == epoch:
                return is_held(delivery.buffer, seq) or seq > delivery.epoch.freed_seq
        return False

    def _is_on_disk(self, epoch: int) -> bool:
        return any(f"{epoch:x}" in path.name or str(epoch) in path.name for path in self.disk.names)

    def is_at_rest(self) -> bool:
        """Whether nothing is left to be sent, closed or declared."""
        deliveries = self.deliveries
        return (
            not deliveries.unacknowledged()
            and not self.epochs.open
            and not deliveries.earlier
            and not deliveries.current.missing()
            and deliveries.current.done()
        )


def _now() -> datetime:
    return datetime.now(UTC)
