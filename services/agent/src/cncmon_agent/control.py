"""One controller for what would else be scattered constants: replay, compression, cold tier, shedding.

Drift-plus-penalty control after M. J. Neely, Stochastic Network Optimization with Application to Communication and
Queueing Systems (Morgan & Claypool, 2010), chapter 4: actual queues, virtual queues for time averages that must hold,
and in each slot the decision that minimises a bound of the drift plus V times the penalty.

Queues Θ(t), each scaled to be near 1 where it hurts. Actual ones: B backlog (in times of `DRAIN_S` at the present
share), W warm and C cold (fill times the shortage that the forecast sees). Virtual ones, max(0, q + (use / budget -
1) dt / τ): Z excess of live latency, D bytes written (the wear of an SD card), U processor time. They stop at
`QUEUE_MAX`, so that an outage of hours, which no decision can end, is not paid for hours afterwards. I holds how
lately the stream lost something.

Lyapunov function: L(Θ) = ½ Σ q², but for B, which enters with Huber's function (½ B² to 1, B - ½ above): a day of
backlog must not outbid live latency a thousand times harder than a minute of it. B's weight in the drift is then
min(B, 1).

Each slot minimises the bound of drift plus penalty, Σ q · growth(q | a) + V p(a), over decisions a. It is separable:

* replay: with u = ln R, R the share of the server that was learned, x the latency over its floor in units of the slack,
      min over u of  V (u - u₀)² / 2 dt  -  g min(B, 1) u  +  g x (1 + Z) (R₀ / R_ref)^¼ u,
  solved by u = u₀ + g dt / V (min(B, 1) - x (1 + Z) (R₀ / R_ref)^¼). The penalty is the distance from the last
  share: nothing is known of the latency at rates far from it. The root makes whoever has more give way more, so that
  edges that share a server come to equal shares. The rate is R min(B, 1) / (1 + x): what stands in the server's queue
  takes its part of the share away at once, before anything is learned from it; without that the loop swings. What is
  told of the database is late: u falls again only on news of what went out after the last fall, and what is on its way
  is bounded by what the database takes in `WINDOW_S` (Little's law), whatever the rate.
* cold and level, over "stay" (0) and "move at level l", for each MB:
      min of  -W relief(l) + C kept(l) + (V + U) c_cpu cpu_s(l) + (V + D) c_write kept(l)
* shed: the smaller expected loss of a byte: I (or what a sound stream is trusted with) if the stream has it, else 1.

V > 0 weighs cost against queues: larger V comes nearer to the least cost, by O(1/V), with queues larger by O(V).
"""

import math
import random
from typing import Final, Literal

from msgspec import Struct

from cncmon_agent.compression import LEVELS
from cncmon_agent.forecast import RateMeter, hours_left

QUEUE_MAX: Final = 8.0
"""Where the virtual queues stop."""
LATENCY_QUEUE_MAX: Final = 2.0
"""Where that of live latency stops: it is paid off within 4 s of a database that keeps up again."""
STALE_S_MAX: Final = 10.0
"""A commit lag above this counts as news in any case: the database is away, not only behind."""


class ControlSettings(Struct, frozen=True):
    """What the controller aims at. The first four are a matter of the place; the rest is tuned in bench.control."""

    replay_bytes_per_s_max: float = 16 << 20
    """Bytes a second of backlog at most. Four times what 24 h at 250 samples/s need to be gone in 150 s."""
    horizon_h: float = 24.0
    """Outage in hours to be survived: a forecast under it makes the controller spend CPU and writes for room."""
    cpu_share_budget: float = 0.5
    """Processor time to be used in the long run, in cores, by the whole agent: half a core leaves a Pi for others."""
    write_bytes_per_s_budget: float = 256 << 10
    """Bytes a second to be written in the long run: 8 TB a year; a 32 GB card of 3,000 cycles endures some 96 TB."""
    replay_bytes_per_s_min: float = 4 << 10
    """Replay never stands still while there is a connection: 500 edges at this rate are 2 MB/s."""
    replay_bytes_per_s_start: float = 64 << 10
    """First rate after a connection, times 0.5 to 1.5: 500 edges at once begin at 32 MB/s."""
    hold_s_max: float = 0.5
    """Replay begins at random so late after a connection; one minute of backlog still goes within 2 s."""
    ack_slack_s: float = 0.05
    """Ack latency over its floor that is aimed at: a tenth of the 500 ms that a live sample may take."""
    commit_slack_s: float = 0.12
    """Time from stream to database over its floor that is aimed at; the watermark is told every 200 ms."""
    v: float = 1.0
    """V of drift plus penalty. Larger: fewer CPU seconds and writes, slower changes of rate, longer queues."""


class Observation(Struct, frozen=True, kw_only=True):
    """What is known at the end of a slot. Latencies are None when nothing new is known."""

    now_s: float
    """Monotonic time."""
    dt_s: float
    """Length of the slot; 0.1 is what the gains are tuned for, 0.05 to 0.25 is fine."""
    online: bool
    inflow_bytes_s: float
    """Compressed bytes accepted into the buffer in this slot, a second."""
    backlog_bytes: float
    """Waits to be replayed: held, not acknowledged, not in the live lane."""
    unacked_bytes: float
    """Held and not acknowledged by the stream, live lane included."""
    warm_bytes: float
    cold_bytes: float
    capacity_warm_bytes: float
    """What may be held where the log is, cold segments included unless they have a disk; without a disk, the ring."""
    capacity_cold_bytes: float = 0.0
    """What may be held on a disk of its own for cold segments; 0: there is none."""
    ack_latency_s: float | None = None
    """Mean PubAck latency of this slot; where an older publish is unanswered, its age."""
    ack_latency_floor_s: float | None = None
    """Lowest PubAck latency lately. The controller keeps the lowest since the connection itself."""
    commit_lag_s: float | None = None
    """Time from PubAck to watermark for the newest batch that it passed; or the age of the oldest it has not, if more.
    Without it (no watermark yet) only the stream is paced, and a database slower than it delays live samples."""
    committed_bytes_s: float | None = None
    """Backlog bytes that get into the database a second, of late; None until any has on this connection."""
    replayed_bytes_s: float | None = None
    """Backlog bytes really sent in this slot, a second: the share does not grow far beyond what is used of it."""
    cpu_share: float = 0.0
    """Processor time of the agent in this slot, in cores."""
    written_bytes_s: float = 0.0
    """Bytes written to disk, a second."""
    recompress_gain: float | None = None
    """Share of bytes that recompression saved on this edge's own segments, 0 to 1; None: nothing measured yet."""
    recompress_level: int = 1
    """The level that `recompress_gain` was measured at."""
    stream_lost: bool = False
    """Whether there was evidence in this slot that the stream lost acknowledged batches (rule A5)."""


class Decision(Struct, frozen=True, kw_only=True):
    """What to do in the next slot."""

    replay_bytes_per_s: float
    """0 when offline or without backlog."""
    window_bytes: float | None = None
    """Backlog on its way to the database at most; None: any amount, since nothing is known of the database."""
    compression_level: int
    """zstd level for segments that are moved to cold; 1: as they are."""
    to_cold: bool
    """Whether sealed warm segments should be moved, oldest first."""
    shed: Literal["taken_first", "oldest"]
    """At the cap: the oldest segment that the stream has acknowledged, or simply the oldest."""
    hours_left: float | None
    """Forecast of `forecast.hours_left` for all there is room for; None: no limit in sight."""


class Queues(Struct, frozen=True):
    """The state Θ as metrics: every queue is 0 to `QUEUE_MAX`, backlog and insurance 0 to 1."""

    backlog: float
    warm: float
    cold: float
    latency: float
    writes: float
    cpu: float
    insurance: float


CPU_COST: Final = 0.05
"""Penalty of a CPU second, in the unit of a MB's relief at pressure 1."""
WRITE_COST: Final = 0.02
"""Penalty of a MB written, in the same unit."""
SOUND_STREAM: Final = 0.001
"""Trusted chance that a stream without a known loss loses a batch before the database has it."""
GROWTH: Final = 1.0
"""g, a second."""
AT_FLOOR: Final = 6.0
"""g is so many times larger after a connection and while latency stays at its floor: 4 MB/s within a second."""
CALM: Final = 0.1
"""Excess under which latency counts as at its floor. The equilibrium lies above it even at the largest share."""
CALM_S: Final = 2.0
"""It must have been there so long since it last was not: growing fast into one's own echo makes a swing of seconds."""
REF_BYTES_PER_S: Final = 64 << 10
"""R_ref: the share at which the aim of latency is just the slack; larger shares stay under it."""
FAIR: Final = 0.25
"""Power of R / R_ref in the price. ½ equalises sooner, and lets 500 small shares drive latency to three slacks."""
DRAIN_S: Final = 0.1
"""A backlog of less than the rate times this is replayed slower, down to the first rate."""
STEP_DOWN: Final = 0.35
"""The share falls by 30 % in a slot at most: the rate has fallen by 1 + x already."""
WINDOW_S: Final = 0.3
WINDOW_GAIN: Final = 1.3
WINDOW_MIN_BYTES: Final = 192 << 10
"""Some 9,000 samples, a tenth of a second of a database on two cores."""
UNTOLD_S: Final = 2.0
"""So long after a connection before a database of which nothing is heard is taken for none that could be hurt."""
TAU_LATENCY_S: Final = 2.0
TAU_CPU_S: Final = 60.0
TAU_WRITES_S: Final = 3600.0
TAU_INSURANCE_S: Final = 3600.0
EXCESS_MAX: Final = 50.0


class Controller:
    """Decides slot by slot. Not thread-safe; the same observations and the same `rng` give the same decisions."""

    def __init__(self, settings: ControlSettings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self._accepted = RateMeter()
        self._online = False
        self._online_s = 0.0
        self._hold_until_s = 0.0
        self._share = 0.0
        self._peak = 0.0
        self._calm_s = 0.0
        self._excess: float | None = None
        self._fell_s = -math.inf
        self._stale = False
        self._ack_floor_s = self._commit_floor_s = math.inf
        self._gain_scale = 1.0
        self._level = LEVELS[0]
        self._backlog = self._warm = self._cold = 0.0
        self._latency = self._writes = self._cpu = self._insurance = 0.0

    @property
    def queues(self) -> Queues:
        """The queues after the last step."""
        return Queues(self._backlog, self._warm, self._cold, self._latency, self._writes, self._cpu, self._insurance)

    def step(self, seen: Observation) -> Decision:
        """Take one slot's observation, advance the queues, and return what minimises drift plus penalty."""
        settings, dt_s = self._settings, max(seen.dt_s, 0.0)
        self._accepted.observe(seen.inflow_bytes_s, dt_s)
        self._cpu = _virtual(self._cpu, seen.cpu_share / settings.cpu_share_budget, dt_s / TAU_CPU_S)
        self._writes = _virtual(
            self._writes, seen.written_bytes_s / settings.write_bytes_per_s_budget, dt_s / TAU_WRITES_S
        )
        self._insurance = 1.0 if seen.stream_lost else self._insurance * math.exp(-dt_s / TAU_INSURANCE_S)
        replay = self._replay(seen, dt_s)
        left = self._forecast(seen, replay)
        to_cold = self._move(seen)
        return Decision(
            replay_bytes_per_s=replay,
            window_bytes=_window(seen.committed_bytes_s),
            compression_level=self._level.level,
            to_cold=to_cold,
            shed=self._shed(seen),
            hours_left=left,
        )

    def _replay(self, seen: Observation, dt_s: float) -> float:
        settings = self._settings
        if not seen.online:
            self._online, self._backlog, self._share = False, min(seen.backlog_bytes, 1.0), 0.0
            self._latency = _virtual(self._latency, 0.0, dt_s / TAU_LATENCY_S)
            return 0.0
        if not self._online:
            self._connected(seen.now_s)
        self._look(seen, dt_s)
        if seen.backlog_bytes <= 0:
            # What was learned of the server is old when the next backlog comes.
            self._backlog = self._share = 0.0
            return 0.0
        if seen.now_s < self._hold_until_s:
            return 0.0
        least = settings.replay_bytes_per_s_min
        self._share = self._share or self._start()
        self._backlog = min(
            1.0, seen.backlog_bytes / (self._share * DRAIN_S) + settings.replay_bytes_per_s_start / self._share
        )
        self._learn(seen, dt_s)
        rate = self._share * self._backlog / (1.0 + (self._excess or 0.0))
        return min(max(rate, least), settings.replay_bytes_per_s_max)

    def _connected(self, now_s: float) -> None:
        self._online = True
        self._online_s = now_s
        self._share = 0.0
        self._peak, self._excess = 0.0, None
        self._fell_s, self._stale = -math.inf, False
        self._calm_s = CALM_S
        self._ack_floor_s = self._commit_floor_s = math.inf
        self._hold_until_s = now_s + self._rng.random() * self._settings.hold_s_max

    def _start(self) -> float:
        settings = self._settings
        start = settings.replay_bytes_per_s_start * (0.5 + self._rng.random())
        return min(max(start, settings.replay_bytes_per_s_min), settings.replay_bytes_per_s_max)

    def _look(self, seen: Observation, dt_s: float) -> None:
        """Take the latencies; the larger excess, of the stream or of the database behind it, is what counts."""
        excesses: list[float] = []
        for latency_s in (seen.ack_latency_s, seen.ack_latency_floor_s):
            # The lowest since the connection, and never forgotten while it lasts: under a queue of hours that many
            # edges keep up together, a floor that forgets would take the queue for the way.
            self._ack_floor_s = min(self._ack_floor_s, math.inf if latency_s is None else latency_s)
        if seen.ack_latency_s is not None:
            # Over a long way latency swings more.
            slack_s = max(self._settings.ack_slack_s, min(self._ack_floor_s / 4, 0.15))
            excesses.append((seen.ack_latency_s - self._ack_floor_s) / slack_s)
        stale = False
        if seen.commit_lag_s is not None:
            self._commit_floor_s = min(self._commit_floor_s, seen.commit_lag_s)
            commit = (seen.commit_lag_s - self._commit_floor_s) / self._settings.commit_slack_s
            # What is told now went out `commit_lag_s` ago. If that was before the last fall, the fall is not in it.
            sent_s = seen.now_s - seen.commit_lag_s
            stale = commit > max([*excesses, 0.0]) and sent_s < self._fell_s and seen.commit_lag_s < STALE_S_MAX
            excesses.append(commit)
        if excesses:
            self._excess = min(max([*excesses, 0.0]), EXCESS_MAX)
            self._stale = stale
        if not self._stale:
            queue = _virtual(self._latency, min(self._excess or 0.0, 4.0), dt_s / TAU_LATENCY_S)
            self._latency = min(queue, LATENCY_QUEUE_MAX)

    def _learn(self, seen: Observation, dt_s: float) -> None:
        """Move the share to the closed minimum of the replay's drift plus penalty."""
        settings, excess = self._settings, self._excess
        if excess is None:
            # Not one answer since the connection: nothing speaks for more.
            return
        price = excess * (1.0 + self._latency) * (self._share / REF_BYTES_PER_S) ** FAIR
        self._calm_s = self._calm_s + dt_s if excess < CALM else 0.0
        growth = GROWTH * (AT_FLOOR if self._calm_s >= CALM_S else 1.0)
        step = max(growth * (self._backlog - price) * dt_s / settings.v, -STEP_DOWN)
        if step < 0:
            if self._stale:
                return
            self._fell_s = seen.now_s
        share = self._share * math.exp(min(step, 1.0))
        if seen.committed_bytes_s is None and seen.now_s - self._online_s < UNTOLD_S:
            share = min(share, 2.0 * settings.replay_bytes_per_s_start)
        if seen.replayed_bytes_s is not None:
            self._peak = max(seen.replayed_bytes_s, self._peak * math.exp(-dt_s))
            if step > 0:
                share = min(share, max(self._share, 2.0 * self._peak, 2.0 * settings.replay_bytes_per_s_start))
        self._share = min(max(share, settings.replay_bytes_per_s_min), settings.replay_bytes_per_s_max)

    def _forecast(self, seen: Observation, replay: float) -> float | None:
        """Set the actual queues of the disk, and return the hours left."""
        inflow = self._accepted.bytes_per_s
        warm, cold = seen.capacity_warm_bytes, seen.capacity_cold_bytes
        expected = next((level.gain for level in LEVELS if level.level == seen.recompress_level), 0.0)
        if seen.recompress_gain is not None and expected > 0:
            self._gain_scale = min(max(seen.recompress_gain / expected, 0.0), 4.0)
        in_warm = seen.warm_bytes + (0.0 if cold else seen.cold_bytes)
        # A backlog that is going away needs no room, and moving it would only wear the disk.
        going = seen.online and replay > 2.0 * (inflow or 0.0)
        self._warm = 0.0 if going else _pressure(in_warm, warm, inflow, self._settings.horizon_h)
        self._cold = _pressure(seen.cold_bytes, cold, inflow, self._settings.horizon_h) if cold else 0.0
        return hours_left(
            warm + cold,
            seen.warm_bytes + seen.cold_bytes,
            inflow,
            recompressible_bytes=seen.warm_bytes,
            gain=seen.recompress_gain,
        )

    def _move(self, seen: Observation) -> bool:
        """Choose the level, and whether moving at it is better than leaving the segments where they are."""
        elsewhere = seen.capacity_cold_bytes > 0
        v, best, best_cost = self._settings.v, self._level, 0.0
        to_cold = False
        for level in LEVELS:
            gain = min(level.gain * self._gain_scale, 0.95)
            relief = 1.0 if elsewhere else gain
            cost = (
                -self._warm * relief
                + self._cold * (1.0 - gain)
                + (v + self._cpu) * CPU_COST * level.cpu_s
                + (v + self._writes) * WRITE_COST * (1.0 - gain)
            )
            if cost < best_cost:
                best, best_cost, to_cold = level, cost, True
        self._level = best
        return to_cold

    def _shed(self, seen: Observation) -> Literal["taken_first", "oldest"]:
        held = seen.warm_bytes + seen.cold_bytes
        if seen.unacked_bytes <= 0 or held <= seen.unacked_bytes:
            # All of it is acknowledged, or none: there is nothing to choose between.
            return "oldest"
        return "taken_first" if max(self._insurance, SOUND_STREAM) < seen.unacked_bytes / held else "oldest"


def _window(committed_bytes_s: float | None) -> float | None:
    """Return what may be on its way: what the database takes in `WINDOW_S` (Little's law), and some more to grow by.

    Rates alone can't hold live latency: what is told of the database is half a second old.
    """
    if committed_bytes_s is None:
        return None
    return max(WINDOW_MIN_BYTES, WINDOW_GAIN * WINDOW_S * committed_bytes_s)


def _virtual(queue: float, use: float, slots: float) -> float:
    """Advance a virtual queue: `use` is in units of its budget, `slots` the time in units of its time constant."""
    return min(max(queue + (use - 1.0) * slots, 0.0), QUEUE_MAX)


def _pressure(held: float, capacity: float, inflow: float | None, horizon_h: float) -> float:
    """Return fill times shortage: 0 when the forecast reaches the horizon, `QUEUE_MAX` at most."""
    if capacity <= 0:
        return 0.0
    left_h = hours_left(capacity, held, inflow)
    if left_h is None:
        return 0.0
    fill = min(held / capacity, 1.0)
    return min(fill * max(horizon_h / max(left_h, 1e-6) - 1.0, 0.0), QUEUE_MAX)
