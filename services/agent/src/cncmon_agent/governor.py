"""Carries what is seen to the controller, and what it decides to those who do it, slot by slot."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from prometheus_client import Gauge

from cncmon_agent.buffer.segment import SegmentInfo
from cncmon_agent.control import Controller, Decision, Observation
from cncmon_agent.deliveries import Deliveries
from cncmon_agent.publish import Publisher
from cncmon_agent.storage import Storage

SLOT_S: Final = 0.1
"""What the controller's gains are tuned for."""

IO_EVERY_S: Final = 1.0

TELL_EVERY_S: Final = 0.5
"""Metrics are read every few seconds, and setting them all costs more than to look and decide does."""

HOURS_LEFT = Gauge("cncmon_edge_buffer_hours_left", "Hours of outage the buffer can still take; NaN: no end.")
REPLAY_RATE = Gauge("cncmon_edge_replay_bytes_per_second", "Pace of the backlog; 0 while there is none to send.")
QUEUES = Gauge("cncmon_edge_control_queue", "Queues of the controller, near 1 where it hurts.", ["queue"])
COMPRESSION = Gauge("cncmon_edge_compression_level", "zstd level at which segments are moved to the cold tier.")


class Governor:
    """One slot a call. It knows how to look and how to pull the levers; what to do is the controller's."""

    def __init__(
        self,
        controller: Controller,
        publisher: Publisher,
        deliveries: Deliveries,
        storage: Storage,
        online: Callable[[], bool],
    ) -> None:
        self._controller = controller
        self._publisher = publisher
        self._deliveries = deliveries
        self._storage = storage
        self._online = online
        self._at_s = time.monotonic()
        self._cpu_s = time.process_time()
        self._accepted = storage.accepted_bytes
        self._replayed = 0
        self._lost = 0
        self._io = _Written()
        self._held = storage.held()
        self._told_s = -TELL_EVERY_S
        self.decision: Decision | None = None
        storage.shed_by(self.shed_order)

    def step(self) -> Decision:
        """Look, decide, and pass it on."""
        seen = self._look()
        decision = self.decision = self._controller.step(seen)
        self._publisher.pace.bytes_per_s = decision.replay_bytes_per_s
        self._publisher.pace.bound(decision.window_bytes)
        self._storage.cold_level = decision.compression_level if decision.to_cold else None
        if seen.now_s - self._told_s >= TELL_EVERY_S:
            self._told_s = seen.now_s
            self._tell(decision)
        return decision

    def _tell(self, decision: Decision) -> None:
        self._storage.tell(self._held)
        HOURS_LEFT.set(float("nan") if decision.hours_left is None else decision.hours_left)
        REPLAY_RATE.set(decision.replay_bytes_per_s)
        COMPRESSION.set(decision.compression_level)
        queues = self._controller.queues
        for name in queues.__struct_fields__:
            QUEUES.labels(name).set(getattr(queues, name))

    def shed_order(self, segments: Sequence[SegmentInfo]) -> SegmentInfo:
        """Return which of the segments to drop, given oldest first."""
        if self.decision is not None and self.decision.shed == "taken_first":
            acked = {delivery.epoch.epoch: delivery.epoch.acked_seq for delivery in self._deliveries}
            for segment in segments:
                if segment.last <= acked.get(segment.epoch, 0):
                    return segment
        return segments[0]

    def _look(self) -> Observation:
        now_s, cpu_s = time.monotonic(), time.process_time()
        dt_s = max(now_s - self._at_s, 1e-3)
        held, publisher = self._storage.held(), self._publisher
        self._held = held
        size = held.bytes / held.batches if held.batches else 0.0
        accepted, replayed = self._storage.accepted_bytes, publisher.pace.spent_bytes
        lost = self._deliveries.resent
        seen = Observation(
            now_s=now_s,
            dt_s=dt_s,
            online=self._online(),
            inflow_bytes_s=(accepted - self._accepted) / dt_s,
            backlog_bytes=self._deliveries.backlog() * size,
            unacked_bytes=self._deliveries.unacknowledged() * size,
            warm_bytes=held.warm_bytes,
            cold_bytes=held.cold_bytes,
            capacity_warm_bytes=held.capacity_warm_bytes,
            capacity_cold_bytes=held.capacity_cold_bytes,
            ack_latency_s=publisher.ack_latency_s(now_s),
            commit_lag_s=publisher.lag.take(now_s),
            committed_bytes_s=publisher.lag.committed_bytes_s(),
            replayed_bytes_s=(replayed - self._replayed) / dt_s,
            cpu_share=(cpu_s - self._cpu_s) / dt_s,
            written_bytes_s=self._io.per_s(now_s),
            recompress_gain=self._storage.recompress_gain,
            recompress_level=self._storage.recompress_level,
            stream_lost=lost > self._lost,
        )
        self._at_s, self._cpu_s, self._accepted, self._replayed, self._lost = now_s, cpu_s, accepted, replayed, lost
        return seen


class _Written:
    """Bytes this process writes to disks, a second, from /proc/self/io: pages as they are dirtied."""

    def __init__(self) -> None:
        self._path = Path("/proc/self/io")
        self._at_s = -IO_EVERY_S
        self._bytes: int | None = None
        self._rate = 0.0

    def per_s(self, now_s: float) -> float:
        if now_s - self._at_s < IO_EVERY_S:
            return self._rate
        found = self._read()
        if found is not None and self._bytes is not None:
            self._rate = max(0.0, (found - self._bytes) / (now_s - self._at_s))
        self._at_s, self._bytes = now_s, found
        return self._rate

    def _read(self) -> int | None:
        try:
            lines = self._path.read_text().splitlines()
        except OSError:
            # A kernel without task I/O accounting: then the wear of the disk is not looked at.
            return None
        return next((int(line.split()[1]) for line in lines if line.startswith("write_bytes")), None)
