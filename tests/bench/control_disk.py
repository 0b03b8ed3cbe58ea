"""One edge's log and cold folder through an outage: what is compressed, moved and shed under each policy.

Slots of 10 s, segments of 4 MiB, one edge of 250 samples a second on a Pi whose processor takes `PI` times as long for
zstd as the machine the levels were measured on.
"""

from dataclasses import dataclass
from typing import Protocol

from cncmon_agent.compression import LEVELS
from cncmon_agent.control import Decision, Observation

SLOT_S = 10.0
MB = 1e6
HOUR_S = 3600.0
SAMPLE_BYTES = 25.0
INFLOW_BYTES_S = 250 * SAMPLE_BYTES
SEGMENT_BYTES = 4 << 20
PI = 4.0
IDLE_CPU = 0.1


class Policy(Protocol):
    """What is compared."""

    def step(self, seen: Observation) -> Decision:
        """Decide for the next slot."""


@dataclass(frozen=True)
class DiskTrace:
    """A case: hours of running; when the network and the database are away (from, to), in hours."""

    name: str
    hours: float
    warm_bytes: float
    cold_bytes: float = 0.0
    offline: tuple[float, float] = (0.0, 0.0)
    database_away: tuple[float, float] = (0.0, 0.0)
    uplink_bytes_s: float = 4 * MB
    """For backlog, beside the live samples."""


@dataclass
class Kept:
    """What came of it; lost: samples that nobody has any more; insurance: samples shed that the stream has."""

    written_bytes: float = 0.0
    cpu_s: float = 0.0
    lost_samples: float = 0.0
    insurance_samples: float = 0.0


@dataclass
class Segment:
    """A sealed segment. size: bytes now; raw: as accepted."""

    raw: float
    size: float
    taken: bool
    cold: bool = False


@dataclass
class PlainDisk:
    """Fixed or reactive: moves when the fill has reached a share of the capacity, at one level; sheds the oldest."""

    level: int
    fill: float

    def step(self, seen: Observation) -> Decision:
        """Decide for the next slot."""
        capacity = seen.capacity_warm_bytes
        held = seen.warm_bytes + (0.0 if seen.capacity_cold_bytes else seen.cold_bytes)
        return Decision(
            replay_bytes_per_s=4 * MB if seen.online else 0.0,
            compression_level=self.level,
            to_cold=held >= self.fill * capacity,
            shed="oldest",
            hours_left=None,
        )


class Disk:
    """The log of one edge."""

    def __init__(self, trace: DiskTrace, policy: Policy) -> None:
        self.trace, self.policy = trace, policy
        self.segments: list[Segment] = []
        self.kept = Kept()
        self.open_bytes = 0.0
        self.gain: tuple[float, int] | None = None
        self.decision: Decision | None = None
        self.busy_s = self.credit = self.warm = self.cold = self.unacked = 0.0

    def run(self) -> Kept:
        """Run the whole trace."""
        for slot in range(int(self.trace.hours * HOUR_S / SLOT_S)):
            self._step(slot * SLOT_S)
        return self.kept

    def _count(self) -> None:
        """Sum up the segments. Most slots change none of them."""
        self.warm = sum(segment.size for segment in self.segments if not segment.cold)
        self.cold = sum(segment.size for segment in self.segments if segment.cold)
        self.unacked = sum(segment.size for segment in self.segments if not segment.taken)

    def _replay(self, online: bool) -> None:
        """The stream takes the oldest segments that it does not have, as fast as the uplink lets it."""
        self.credit = self.credit + self.trace.uplink_bytes_s * SLOT_S if online and self.unacked else 0.0
        for segment in self.segments:
            if not segment.taken:
                if segment.size > self.credit:
                    return
                segment.taken = True
                self.credit -= segment.size
                self.unacked -= segment.size

    def _step(self, now_s: float) -> None:
        hour = now_s / HOUR_S
        online = not self.trace.offline[0] <= hour < self.trace.offline[1]
        database = online and not self.trace.database_away[0] <= hour < self.trace.database_away[1]
        accepted = INFLOW_BYTES_S * SLOT_S
        written = accepted
        self.open_bytes += accepted
        if self.open_bytes >= SEGMENT_BYTES:
            self.segments.append(Segment(self.open_bytes, self.open_bytes, taken=online))
            self.open_bytes = 0.0
            self._count()
        if self.unacked:
            self._replay(online)
        if database and self.segments:
            self.segments = [segment for segment in self.segments if not segment.taken]
            self._count()
        if self.decision is not None and self.decision.to_cold and self.busy_s <= 0:
            written += self._move(self.decision.compression_level)
        cpu_s = min(self.busy_s, SLOT_S)
        self.busy_s -= cpu_s
        self._shed()
        self.kept.written_bytes += written
        self.kept.cpu_s += cpu_s
        gain, level = self.gain or (None, 1)
        self.decision = self.policy.step(
            Observation(
                now_s=now_s,
                dt_s=SLOT_S,
                online=online,
                inflow_bytes_s=INFLOW_BYTES_S,
                backlog_bytes=self.unacked,
                unacked_bytes=self.unacked + self.open_bytes,
                warm_bytes=self.warm + self.open_bytes,
                cold_bytes=self.cold,
                capacity_warm_bytes=self.trace.warm_bytes,
                capacity_cold_bytes=self.trace.cold_bytes,
                ack_latency_s=0.004 if online else None,
                cpu_share=IDLE_CPU + cpu_s / SLOT_S,
                written_bytes_s=written / SLOT_S,
                recompress_gain=gain,
                recompress_level=level,
            )
        )

    def _move(self, number: int) -> float:
        """Move warm segments, oldest first, until a slot's processor time is spoken for; return bytes written."""
        level = next(each for each in LEVELS if each.level == number)
        written = 0.0
        for segment in self.segments:
            size = segment.raw * (1.0 - level.gain)
            if segment.cold or (self.trace.cold_bytes and self.cold + size > self.trace.cold_bytes):
                continue
            self.warm -= segment.size
            self.cold += size
            segment.cold, segment.size = True, size
            written += size
            self.busy_s += level.cpu_s * PI * segment.raw / MB
            self.gain = (level.gain, number)
            if self.busy_s >= SLOT_S or written >= 8 * SEGMENT_BYTES:
                break
        return written

    def _shed(self) -> None:
        while self._over() and self.segments:
            here = [each for each in self.segments if not (self.trace.cold_bytes and each.cold)]
            order = here or self.segments
            taken_first = self.decision is not None and self.decision.shed == "taken_first"
            gone = next((each for each in order if each.taken), order[0]) if taken_first else order[0]
            self.segments.remove(gone)
            self._count()
            if gone.taken:
                self.kept.insurance_samples += gone.raw / SAMPLE_BYTES
            else:
                self.kept.lost_samples += gone.raw / SAMPLE_BYTES

    def _over(self) -> bool:
        here = self.warm + (0.0 if self.trace.cold_bytes else self.cold)
        return here + self.open_bytes > self.trace.warm_bytes


def disk_traces() -> list[DiskTrace]:
    """Return the cases."""
    return [
        DiskTrace("short_outages_roomy", 24, 4000 * MB, offline=(4, 5)),
        DiskTrace("24h_fits", 26, 2000 * MB, offline=(1, 25)),
        DiskTrace("24h_just_too_small", 26, 480 * MB, offline=(1, 25)),
        DiskTrace("24h_half_too_small", 26, 270 * MB, offline=(1, 25)),
        DiskTrace("48h_cold_disk", 50, 300 * MB, 1000 * MB, offline=(1, 49)),
        DiskTrace("database_away_then_offline", 40, 300 * MB, offline=(13, 36), database_away=(1, 37)),
        DiskTrace(
            "narrow_uplink_database_away",
            40,
            400 * MB,
            offline=(0, 15),
            database_away=(0, 39),
            uplink_bytes_s=1000,
        ),
    ]
