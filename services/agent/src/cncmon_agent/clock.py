"""Wall time that does not jump: a monotonic clock, anchored to the wall clock once that is known to be right.

Three states, never backwards: the time is *unknown*, and samples are kept with their monotonic time (`unstamped`); it
is *uncertain* when waiting was given up, and samples are stamped with the best guess and flagged; it is *known*.

Stamps are for people and charts. The order of samples is that of (epoch, seq), so a step of the clock reorders, merges
and doubles nothing; after a step back, stamps of later samples may be lower than those of earlier ones.
"""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from prometheus_client import Counter, Gauge

from cncmon_agent.time_floor import BUILD_NS, TimeFloor
from cncmon_agent.time_source import SystemTime, TimeSource
from cncmon_core import logs

log = logs.get(__name__)

Trust = Literal["auto", "always"]
Evidence = Literal["setting", "kernel", "battery", "server"]

STEP_NS: Final = 100_000_000
"""A difference of 100 ms between the two clocks is a step (somebody set the clock); less is measuring noise."""

SERVER_NS_MAX: Final = 2_000_000_000
"""A server's clock within 2 s confirms ours: more than networks and NTP cost, less than anyone's set-by-hand error."""

SERVER_DRIFT_PPM: Final = 100
"""How fast our monotonic clock may leave a server's time heard earlier: the worst of cheap crystals."""

WAIT_S_MAX: Final = 600.0
"""Time service needs seconds to minutes behind a network that works; who is online longer without it will not get it.
"""

STEPS = Counter("cncmon_edge_clock_steps", "Steps of the wall clock that were seen.")
KNOWN = Gauge("cncmon_edge_clock_known", "1 while wall time is known to be right.")
SERVER_OFFSET = Gauge("cncmon_edge_clock_server_offset_seconds", "NATS server's clock less ours, when last compared.")

_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NS_PER_S: Final = 1_000_000_000
_NS_PER_DAY: Final = 86_400 * _NS_PER_S


def from_unix_ns(unix_ns: int) -> datetime:
    """Return Unix time as a datetime in UTC, µs."""
    # By days and seconds: timedelta takes twice as long to break up a large number itself.
    days, rest_ns = divmod(unix_ns, _NS_PER_DAY)
    seconds, rest_ns = divmod(rest_ns, _NS_PER_S)
    return _UNIX_EPOCH + timedelta(days, seconds, rest_ns // 1000)


def to_unix_ns(moment: datetime) -> int:
    """Return a datetime that has a time zone as Unix time in ns, exactly."""
    return (moment - _UNIX_EPOCH) // timedelta(microseconds=1) * 1000


class Clock:
    """Stamps samples. Both clocks are slewed alike by NTP, so they differ only where the wall clock was set.

    Evidence that wall time is right, in the order in which it is looked for:

    setting  `trust` is "always".
    kernel   the kernel says that its clock is disciplined (adjtimex(2)).
    battery  a battery clock or the host set the clock at boot, and it is later than the bound of `TimeFloor`.
    server   a NATS server's clock agrees within 2 s (`ts` in the answer of JetStream's STREAM.INFO, nats-server 2.10).
    """

    def __init__(
        self,
        source: TimeSource | None = None,
        floor: TimeFloor | None = None,
        *,
        trust: Trust = "auto",
        wait_s_max: float = WAIT_S_MAX,
    ) -> None:
        """`wait_s_max`: how long to wait for the time while online, in seconds, before samples are stamped anyway."""
        self._source = source or SystemTime()
        self.floor = floor or TimeFloor(self._source)
        self._trust = trust
        self._wait_ns_max = int(wait_s_max * _NS_PER_S)
        self._waited_ns = 0
        self._online_since_ns: int | None = None
        self._server: tuple[int, int, int] | None = None
        self._doubted = False
        self._settled = asyncio.Event()
        self.evidence: Evidence | None = None
        self.steps = 0
        self._wall_ns = self._measure()
        self._anchor_ns = self._wall_ns
        self.settled_anchor_ns: int | None = None
        """Wall time less boottime (ns) as it was when the clock settled, and again when it became known after that."""
        self._go_on(self._evidence())

    @property
    def known(self) -> bool:
        """Whether wall time is known to be right. Once true, true for as long as the process lives."""
        return self.evidence is not None

    @property
    def settled(self) -> bool:
        """Whether samples are stamped at once: time is known, or waiting for it was given up. Never false again."""
        return self.settled_anchor_ns is not None

    @property
    def uncertain(self) -> bool:
        """Whether samples are stamped with a time that may be wrong, and must say so."""
        return self.settled and not self.known

    @property
    def boot_id(self) -> str:
        """Which start of the kernel this is."""
        return self._source.boot_id()

    def now(self) -> datetime:
        """Return the best guess of wall time in UTC, µs: for reports, and for samples once settled."""
        return from_unix_ns(self._source.boottime_ns() + self._anchor_ns)

    def stamp(self) -> datetime:
        """Return what a sample taken now is stamped with: wall time, or 1970 plus boottime until settled.

        A sample must be handed on (`Intake.add`) without an await in between: then both see the same state.
        """
        return from_unix_ns(self._source.boottime_ns() + (self._anchor_ns if self.settled else 0))

    def follow(self) -> bool:
        """Look whether the wall clock was stepped, or the time has become known; return whether it was stepped.

        To be called about once a second: until the next call a step is invisible to new samples.
        """
        # The kernel's word is asked for before its clock is read: who disciplines it steps first and tells then.
        evidence = None if self.known else self._evidence()
        wall_ns = self._measure()
        stepped = abs(wall_ns - self._wall_ns) >= STEP_NS
        if stepped:
            self._wall_ns = wall_ns
            self.steps += 1
            STEPS.inc()
        self._go_on(evidence)
        return stepped

    def go(self, *, online: bool) -> None:
        """Wait for the time only while there is a connection: without one nothing would be sent anyway."""
        now_ns = self._source.boottime_ns()
        if self._online_since_ns is not None:
            self._waited_ns += now_ns - self._online_since_ns
        self._online_since_ns = now_ns if online else None

    def heard(self, server_time: datetime, round_trip_s: float) -> float:
        """Compare with a server's clock, right after its answer came; return its time less ours, in seconds.

        Never sets the clock: where it disagrees that is reported, and it is the guess when waiting is given up.
        """
        half_ns = int(max(round_trip_s, 0.0) * _NS_PER_S / 2)
        now_ns = self._source.boottime_ns()
        self._server = (to_unix_ns(server_time) + half_ns - now_ns, now_ns, half_ns)
        self.follow()
        offset_ns = self._server[0] - self._wall_ns
        SERVER_OFFSET.set(offset_ns / _NS_PER_S)
        doubted = abs(offset_ns) - half_ns > SERVER_NS_MAX
        if doubted and not self._doubted:
            log.warning("the wall clock is not the NATS server's", offset_s=round(offset_ns / _NS_PER_S, 3))
        self._doubted = doubted
        return offset_ns / _NS_PER_S

    async def wait_settled(self) -> None:
        """Wait until samples are stamped at once."""
        await self._settled.wait()

    def _measure(self) -> int:
        """Return wall time less boottime, in ns."""
        return self._source.wall_ns() - self._source.boottime_ns()

    def _evidence(self) -> Evidence | None:
        if self._trust == "always":
            return "setting"
        if self._source.synchronised():
            return "kernel"
        wall_ns = self._source.wall_ns()
        # Of the same boot the bound is this very clock, but for the time between two readings.
        if wall_ns + STEP_NS > self.floor.now_ns() and self._source.has_rtc():
            return "battery"
        return "server" if wall_ns > BUILD_NS and self._server_agrees() else None

    def _server_agrees(self) -> bool:
        if self._server is None:
            return False
        anchor_ns, heard_ns, half_ns = self._server
        drift_ns = (self._source.boottime_ns() - heard_ns) * SERVER_DRIFT_PPM // 1_000_000
        return abs(anchor_ns - self._measure()) + half_ns + drift_ns <= SERVER_NS_MAX

    def _go_on(self, evidence: Evidence | None) -> None:
        """Enter the state that the evidence allows, and anchor by it."""
        if evidence is not None:
            self.evidence = evidence
            self._settle(self._wall_ns)
            log.info("wall time is known", by=evidence, time=from_unix_ns(self._source.wall_ns()).isoformat())
        if self.known:
            self._anchor_ns = self._wall_ns
            self.floor.known(self._anchor_ns)
            return
        # A server's time is a better guess than a clock that nothing vouches for; without one, the later bound.
        self._anchor_ns = self._server[0] if self._server else max(self._wall_ns, self.floor.base_ns)
        if not self.settled and self._given_up():
            self._settle(self._anchor_ns)
            log.warning("wall time is not known: samples are stamped and flagged", waited_s=self._waited_ns / _NS_PER_S)

    def _given_up(self) -> bool:
        self.go(online=self._online_since_ns is not None)
        return self._waited_ns >= self._wait_ns_max

    def _settle(self, anchor_ns: int) -> None:
        self.settled_anchor_ns = anchor_ns
        self._settled.set()
        KNOWN.set(self.known)
