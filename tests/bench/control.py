"""The controller that ships against fixed and reactive policies, over seeded outages: a simulation, no I/O, no clock.

Two worlds. `Cloud` is a stream server and the database behind it, two first-in-first-out queues that all edges share,
in slots of 100 ms: how replay is paced. `Disk` (bench.control_disk) is one edge's log and cold folder through an
outage: what is compressed, moved and shed. Every policy sees the same observations in the same worlds with the same
seeds.
"""

import random
import statistics
import sys
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from bench.control_disk import Disk, PlainDisk, disk_traces
from bench.report import Figure, Report, run
from cncmon_agent.control import Controller, ControlSettings, Decision, Observation

SEED = 20_260_101
SLOT_S = 0.1
MB = 1e6
SAMPLE_BYTES = 25.0
LIVE_BYTES_S = 250 * SAMPLE_BYTES
"""One edge: 250 samples a second."""
IN_FLIGHT_BYTES = 64 * 12_500.0
"""What the publisher has in flight at most, whatever the pace: 64 batches of 500 samples."""
BASE_ACK_S = 0.004
LIVE_BASE_S = 0.15
"""Linger (100 ms) and commit (50 ms): what a live sample takes when nothing is in the way."""
TOLD_SLOTS = 2
"""The watermark is told every 200 ms."""


class Policy(Protocol):
    """What is compared: the controller, or something simpler."""

    def step(self, seen: Observation) -> Decision:
        """Decide for the next slot."""


Make = Callable[[int], Policy]
"""Makes the policy of the edge with a number."""


def shipped(number: int) -> Policy:
    """Return the class that ships, with its default settings."""
    return Controller(ControlSettings(), random.Random(SEED + number))


def decision(
    rate: float, level: int = 1, *, cold: bool = False, shed: Literal["taken_first", "oldest"] = "oldest"
) -> Decision:
    """Return a decision of a simple policy."""
    return Decision(replay_bytes_per_s=rate, compression_level=level, to_cold=cold, shed=shed, hours_left=None)


@dataclass
class FixedRate:
    """The same rate always."""

    rate: float

    def step(self, seen: Observation) -> Decision:
        """Decide for the next slot."""
        return decision(self.rate if seen.online and seen.backlog_bytes > 0 else 0.0)


@dataclass
class Aimd:
    """Additive increase, multiplicative decrease on the same latencies that the controller has, as TCP does on loss."""

    rate: float = 64e3
    wait: int = 0

    def step(self, seen: Observation) -> Decision:
        """Decide for the next slot."""
        if not seen.online or seen.backlog_bytes <= 0:
            self.rate = 64e3
            return decision(0.0)
        self.wait = max(self.wait - 1, 0)
        if (seen.ack_latency_s or 0.0) > 0.1 or (seen.commit_lag_s or 0.0) > 0.4:
            # Once in a round trip, or it would halve again for the same queue.
            if not self.wait:
                self.rate, self.wait = max(self.rate / 2, 4e3), 3
        else:
            self.rate += 64e3
        return decision(self.rate)


@dataclass
class Edge:
    """One edge as the cloud sees it. sent: all bytes ever sent, at the end of each slot."""

    policy: Policy
    backlog: float
    online: bool = True
    sent: list[float] = field(default_factory=lambda: [0.0])
    acked: float = 0.0
    committed: float = 0.0
    told: deque[tuple[float, float]] = field(default_factory=lambda: deque([(0.0, 0.0)], maxlen=7))
    replayed_s: float = 0.0
    decision: Decision = field(default_factory=lambda: decision(0.0))

    def committed_bytes_s(self) -> float | None:
        """Return what gets into the database a second, as the agent averages it over some documents."""
        (began_s, before), (ended_s, after) = self.told[0], self.told[-1]
        return (after - before) / (ended_s - began_s) if after > 0 and ended_s > began_s else None


PORTION_BYTES = 215e3
"""What ingest commits at once: 4 MiB of JSON, 10,000 samples."""
COMMIT_S = 0.006
STALLS_PER_S = 0.05
STALL_S = 0.3
"""Every 20 s of work a transaction waits so long for a checkpoint."""


class Queue:
    """A first-in-first-out queue of bytes with a capacity; says how long what leaves it in a slot had been in it."""

    def __init__(self) -> None:
        self.came = [0.0]
        self.left = 0.0

    def step(self, bytes_in: float, capacity_bytes_s: float) -> float:
        """Advance by a slot, and return how many bytes left."""
        before = self.left
        self.came.append(self.came[-1] + bytes_in)
        self.left = min(self.left + capacity_bytes_s * SLOT_S, self.came[-1])
        return self.left - before

    @property
    def held(self) -> float:
        """Bytes in it."""
        return self.came[-1] - self.left

    @property
    def leaving(self) -> int:
        """The slot at whose end everything that has left had come."""
        return bisect_left(self.came, self.left - 1e-3)

    @property
    def delay_s(self) -> float:
        """How long what left last, and what is next, has been in the queue: 0 when it is empty."""
        if self.held < 1.0:
            return 0.0
        slot = self.leaving
        began, ended = self.came[slot - 1] if slot else 0.0, self.came[slot]
        part = (self.left - began) / (ended - began) if ended > began else 1.0
        return (len(self.came) - 1 - (slot - 1 + part)) * SLOT_S


class Database(Queue):
    """A queue that is emptied in transactions, as ingest does: what is in hand leaves all at once, at the commit.

    Their speed varies as on a machine that others use too, and now and then one waits for a checkpoint.
    """

    def __init__(self, noise: random.Random) -> None:
        super().__init__()
        self._noise = noise
        self._in_hand = 0.0
        self._work = 0.0

    def step(self, bytes_in: float, capacity_bytes_s: float) -> float:
        """Advance by a slot, and return how many bytes were committed."""
        before = self.left
        self.came.append(self.came[-1] + bytes_in)
        time_s = SLOT_S
        while time_s > 0 and capacity_bytes_s > 0:
            if self._work <= 0:
                self._in_hand = min(self.held, PORTION_BYTES)
                if self._in_hand < 1.0:
                    break
                self._work = self._in_hand / capacity_bytes_s * self._noise.lognormvariate(-0.05, 0.3) + COMMIT_S
                if self._noise.random() < STALLS_PER_S * self._work:
                    self._work += STALL_S
            done_s = min(time_s, self._work)
            time_s -= done_s
            self._work -= done_s
            if self._work <= 0:
                self.left = min(self.left + self._in_hand, self.came[-1])
        return self.left - before


@dataclass(frozen=True)
class Trace:
    """One case of replay. stream, database: bytes a second at a time since the start; outages: (from, to) in s.
    holds: whether live latency can hold in it."""

    name: str
    backlog_s: float
    edges: int = 1
    stream: Callable[[float], float] = lambda _s: 40 * MB
    database: Callable[[float], float] = lambda _s: 6 * MB
    outages: Sequence[tuple[float, float]] = ()
    limit_s: float = 900.0
    holds: bool = True


@dataclass(frozen=True)
class Replayed:
    """What came of it. drain_s is infinite where it was not drained within the trace's limit."""

    drain_s: float
    median_s: float
    live_p99_s: float
    live_max_s: float


class Cloud:
    """The stream server, the database behind it, and the edges."""

    def __init__(self, trace: Trace, make: Make) -> None:
        self.trace = trace
        backlog = trace.backlog_s * LIVE_BYTES_S
        self.edges = [Edge(make(number), backlog) for number in range(trace.edges)]
        self.noise = random.Random(SEED)
        self.stream, self.database = Queue(), Database(random.Random(SEED))
        self.lag_s = 0.0
        self.live: list[float] = []

    def run(self) -> Replayed:
        """Run until everything is drained and the outages are over, or to the limit."""
        drained: dict[int, float] = {}
        slot, last_outage = 0, max((to for _from, to in self.trace.outages), default=0.0)
        while slot * SLOT_S < self.trace.limit_s:
            now_s = slot * SLOT_S
            self._step(now_s, slot)
            slot += 1
            for number, edge in enumerate(self.edges):
                if edge.backlog > 0:
                    drained.pop(number, None)
                elif number not in drained:
                    drained[number] = now_s + SLOT_S
            if len(drained) == len(self.edges) and now_s >= last_outage and self._empty():
                break
        whole = len(drained) == len(self.edges) and self._empty()
        over = [*drained.values(), *[float("inf")] * (len(self.edges) - len(drained))]
        ordered = sorted(self.live)
        return Replayed(
            # In the database, not only sent.
            drain_s=slot * SLOT_S - last_outage if whole else float("inf"),
            median_s=statistics.median(over),
            live_p99_s=ordered[int(len(ordered) * 0.99)],
            live_max_s=ordered[-1],
        )

    def _empty(self) -> bool:
        return self.stream.held + self.database.held < 2e5 * len(self.edges)

    def _step(self, now_s: float, slot: int) -> None:
        online = not any(start <= now_s < end for start, end in self.trace.outages)
        total = sum(self._send(edge, online) for edge in self.edges)
        out = self.stream.step(total, self.trace.stream(now_s))
        self.database.step(out, self.trace.database(now_s))
        ack_s = BASE_ACK_S + self.stream.delay_s
        if slot % TOLD_SLOTS == 0:
            self.lag_s = 0.05 + self.database.delay_s
            # What has left the database had left the stream, and before that come into it, in the same order.
            done = bisect_left(self.stream.came, self.database.left - 1e-3)
            for edge in self.edges:
                edge.committed = edge.sent[min(done, len(edge.sent) - 1)]
                edge.told.append((now_s, edge.committed))
        if online:
            self.live.append(LIVE_BASE_S + ack_s + self.database.delay_s)
        acked_slot = self.stream.leaving
        for edge in self.edges:
            self._observe(edge, now_s, ack_s * self.noise.lognormvariate(0, 0.15), acked_slot)

    def _send(self, edge: Edge, online: bool) -> float:
        """Send one slot's live samples and backlog; an outage makes backlog of the live ones."""
        live = LIVE_BYTES_S * SLOT_S
        edge.online = online
        if not online:
            edge.backlog += live
            edge.replayed_s = 0.0
            edge.sent.append(edge.sent[-1])
            return 0.0
        # While the stream keeps up, room comes back with each answer; else with what leaves the queue, slot by slot.
        turns = 1.0 if self.stream.held >= 1.0 else SLOT_S / BASE_ACK_S
        room = max(IN_FLIGHT_BYTES - (edge.sent[-1] - edge.acked), 0.0) * turns
        if edge.decision.window_bytes is not None:
            room = min(room, max(edge.decision.window_bytes - (edge.sent[-1] - edge.committed), 0.0))
        replay = min(edge.decision.replay_bytes_per_s * SLOT_S, edge.backlog, room)
        edge.backlog -= replay
        edge.replayed_s = replay / SLOT_S
        edge.sent.append(edge.sent[-1] + live + replay)
        return live + replay

    def _observe(self, edge: Edge, now_s: float, ack_s: float, acked_slot: int) -> None:
        edge.acked = edge.sent[acked_slot]
        held = edge.backlog + edge.sent[-1] - edge.acked
        edge.decision = edge.policy.step(
            Observation(
                now_s=now_s,
                dt_s=SLOT_S,
                online=edge.online,
                inflow_bytes_s=LIVE_BYTES_S,
                backlog_bytes=edge.backlog,
                unacked_bytes=held,
                warm_bytes=held,
                cold_bytes=0.0,
                capacity_warm_bytes=4e9,
                ack_latency_s=ack_s if edge.online else None,
                commit_lag_s=self.lag_s if edge.online else None,
                committed_bytes_s=edge.committed_bytes_s() if edge.online else None,
                replayed_bytes_s=edge.replayed_s,
            )
        )


def flaps() -> list[tuple[float, float]]:
    """Return twelve outages of 2 to 30 s with 5 to 20 s between them."""
    rng, at_s, outages = random.Random(SEED), 5.0, []
    for _ in range(12):
        end_s = at_s + rng.uniform(2, 30)
        outages.append((at_s, end_s))
        at_s = end_s + rng.uniform(5, 20)
    return outages


def traces(quick: bool) -> list[Trace]:
    """Return the cases. quick: less backlog and fewer edges."""
    many = 120 if quick else 500
    share = many / 500
    return [
        Trace("flaps", 0, outages=flaps()),
        Trace("1min", 60),
        Trace("1h", 3600),
        Trace("12h", 12 * 3600),
        Trace("24h", 24 * 3600),
        Trace("24h_fast_database", 24 * 3600, database=lambda _s: 30 * MB),
        Trace("12h_slow_stream", 12 * 3600, stream=lambda _s: 1.5 * MB),
        Trace("12h_slow_database", 12 * 3600, database=lambda _s: 1.5 * MB),
        Trace(
            "12h_server_drops_to_a_tenth",
            12 * 3600,
            stream=lambda s: 40 * MB if s % 40 < 20 else 4 * MB,
            database=lambda s: 6 * MB if s % 40 < 20 else 0.6 * MB,
            holds=False,
        ),
        Trace("1h_database_down_2min", 3600, database=lambda s: 0.0 if s < 120 else 6 * MB, holds=False),
        Trace(
            f"{many}_edges_{'2min' if quick else '30min'}",
            120 if quick else 1800,
            edges=many,
            stream=lambda _s: 60 * MB * share,
            database=lambda _s: 30 * MB * share,
        ),
    ]


def pacing(report: Report, quick: bool) -> None:
    """Compare pacing over all traces."""
    policies: dict[str, Make] = {
        "controller": shipped,
        "fixed_0.25MB": lambda _n: FixedRate(0.25 * MB),
        "fixed_1MB": lambda _n: FixedRate(MB),
        "fixed_4MB": lambda _n: FixedRate(4 * MB),
        "fixed_16MB": lambda _n: FixedRate(16 * MB),
        "aimd": lambda _n: Aimd(),
    }
    # Seconds to drain where the servers keep up. Live latency holds everywhere, but where the database is away or turns
    # ten times slower within a slot: what is in the stream by then nobody can take back.
    reach = {"1min": 2.0, "1h": 15.0, "12h": 75.0, "24h": 150.0, "24h_fast_database": 150.0}
    for trace in traces(quick):
        for name, make in policies.items():
            got = Cloud(trace, make).run()
            key, ours = f"control.{trace.name}.{name}", name == "controller"
            p99_s = 0.5 if ours and trace.holds else None
            drain_s = reach.get(trace.name) if ours else None
            report.add(f"{key}.drain", Figure(got.drain_s, "s", reach=drain_s, better="at_most"))
            report.add(f"{key}.live_p99", Figure(got.live_p99_s, "s", reach=p99_s, better="at_most"))


def disk(report: Report) -> None:
    """Compare what is done about a disk that fills up."""
    policies: dict[str, Callable[[], Policy]] = {
        "controller": lambda: shipped(0),
        "fixed_never_cold": lambda: PlainDisk(1, 2.0),
        "fixed_cold_9": lambda: PlainDisk(9, 0.0),
        "fixed_cold_19": lambda: PlainDisk(19, 0.0),
        "reactive_cold_9_at_80": lambda: PlainDisk(9, 0.8),
        "reactive_cold_15_at_95": lambda: PlainDisk(15, 0.95),
    }
    for trace in disk_traces():
        for name, make in policies.items():
            kept = Disk(trace, make()).run()
            key = f"control.{trace.name}.{name}"
            report.add(f"{key}.lost", Figure(kept.lost_samples, "samples"))
            report.add(f"{key}.insurance", Figure(kept.insurance_samples, "samples"))
            report.add(f"{key}.written", Figure(kept.written_bytes / MB, "MB"))
            report.add(f"{key}.cpu", Figure(kept.cpu_s, "s"))


def measure(report: Report, quick: bool) -> None:
    """Run both worlds."""
    pacing(report, quick)
    disk(report)
    if quick:
        report.not_run.append("500 edges with 30 minutes of backlog each (120 with 2 are run)")


if __name__ == "__main__":
    sys.exit(run("control", measure))
