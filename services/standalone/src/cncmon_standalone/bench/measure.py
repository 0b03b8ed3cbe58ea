"""What workers make of a stream: messages a second, processor time, memory."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import psutil
from nats.aio.client import Client

from cncmon_core import names
from cncmon_standalone.errors import UnusableError

LOOK_S = 0.02


class Cost(NamedTuple):
    """Processor seconds, user and system, of each part with all its processes."""

    nats: float
    ingest: float
    postgres: float

    def since(self, before: "Cost") -> "Cost":
        """Return what was spent since then."""
        return Cost(*(now - then for now, then in zip(self, before, strict=True)))


class Pids(NamedTuple):
    """The processes of the parts."""

    nats: int
    postgres: int
    ingest: Sequence[int]

    def cost(self) -> Cost:
        """Return what they have spent so far."""
        return Cost(cpu_s(self.nats), sum(map(cpu_s, self.ingest)), cpu_s(self.postgres))

    def rss_mb(self) -> float:
        """Return the resident memory of the largest worker."""
        return max((psutil.Process(pid).memory_info().rss / 2**20 for pid in self.ingest), default=0.0)


def cpu_s(pid: int) -> float:
    """Return the processor seconds of a process and all that it started, also of what has ended since."""
    parent, total = psutil.Process(pid), 0.0
    for child in parent.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            total += times.user + times.system
    # Last, since what has ended by then is in the parent's sum.
    own = parent.cpu_times()
    return float(total + own.user + own.system + own.children_user + own.children_system)


class Drained(NamedTuple):
    """messages: stored after the first look that found some stored; rate: of these a second; cost: of these alone.

    rss_mb: the most of a worker. growth_mb: how much of that came after the first tenth.
    """

    messages: int
    rate: float
    cost: Cost
    rss_mb: float
    growth_mb: float


async def floor(client: Client) -> tuple[int, int]:
    """Return the stream sequence up to which everything is acknowledged for good, and the last one there is."""
    js = client.jetstream()
    info = await js.consumer_info(names.STREAM, names.DURABLE)
    state = (await js.stream_info(names.STREAM)).state
    return (info.ack_floor.stream_seq if info.ack_floor else 0), state.last_seq


async def drain(
    client: Client, begin: int, pids: Pids, done: Callable[[int], None] = lambda _messages: None
) -> Drained:
    """Watch workers that have just been started drain the stream, whose floor was `begin` before.

    done: called with how many more messages are stored.

    Raises:
        UnusableError: all was stored before it could be looked at: there is nothing to be measured.
    """
    first: tuple[float, int] | None = None
    before, rss_mb, tenth_mb, said = pids.cost(), 0.0, 0.0, begin
    while True:
        reached, last = await floor(client)
        now_s = time.monotonic()
        done(reached - said)
        said = reached
        if first is None and reached > begin:
            # The workers have started by now: what they take for that is not what is measured.
            first, before = (now_s, reached), pids.cost()
        rss_mb = max(rss_mb, pids.rss_mb())
        if reached - begin <= (last - begin) / 10:
            tenth_mb = rss_mb
        if reached >= last and first is not None:
            break
        await asyncio.sleep(LOOK_S)
    messages = last - first[1]
    if not messages:
        raise UnusableError("everything was stored before it could be measured: take more samples")
    return Drained(messages, messages / (now_s - first[0]), pids.cost().since(before), rss_mb, rss_mb - tenth_mb)
