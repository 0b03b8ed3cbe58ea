"""Fan-out of live news: bounded clients, bounded queues, each distinct subscription encoded once a tick."""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from cncmon_api import metrics
from cncmon_api.errors import TooBusyError
from cncmon_api.fleet import Fleet
from cncmon_api.models import LiveAlive, LiveEdge, LiveSamples, LiveStatus, Sample, encode

RETRY_MS: Final = 2_000
"""What a browser waits before it reconnects."""
ALIVE_S: Final = 2.0
"""Silence after which a stream is told that there is nothing to tell: who hears nothing for 5 s knows it is cut off."""


@dataclass(frozen=True)
class Subscription:
    """What a client wants: `machines` None for all; `whole`: every new sample, else the newest of each machine."""

    machines: frozenset[str] | None
    whole: bool


@dataclass(eq=False)
class Client:
    """One live stream. `queue` holds encoded events; None ends the stream. `dropped`: it read too slowly."""

    subscription: Subscription
    queue: asyncio.Queue[bytes | None]
    dropped: asyncio.Event = field(default_factory=asyncio.Event)
    machines_sent: bytes = b""
    edges_sent: bytes = b""


class Hub:
    """The open streams and what each is told."""

    def __init__(self, clients_max: int, queue_max: int) -> None:
        self.clients: set[Client] = set()
        self.arrived = asyncio.Event()
        self.fleet = Fleet(timedelta())
        self._clients_max = clients_max
        self._queue_max = queue_max
        self._trouble: str | None = None
        self._edges = b"[]"
        self._known: datetime | None = None
        self._closed = False

    def join(self, subscription: Subscription) -> Client:
        """Add a stream and queue what it is told first.

        Raises:
            TooBusyError: there are as many as may be, or the service is stopping.
        """
        if self._closed or len(self.clients) >= self._clients_max:
            metrics.REFUSED.labels("live_clients").inc()
            raise TooBusyError(f"There are {self._clients_max} live streams already. Close some, or try again later.")
        client = Client(subscription, asyncio.Queue(self._queue_max))
        client.queue.put_nowait(b"retry: %d\n\n" % RETRY_MS)
        if self._trouble is not None:
            client.queue.put_nowait(_unavailable(self._trouble))
        if self._known is not None:
            # While the database is away nothing grows stale: what was known then is what is known.
            self._greet(client, datetime.now(UTC) if self._trouble is None else self._known)
        self.clients.add(client)
        metrics.LIVE_CLIENTS.set(len(self.clients))
        self.arrived.set()
        return client

    def leave(self, client: Client) -> None:
        """Remove a stream."""
        self.clients.discard(client)
        metrics.LIVE_CLIENTS.set(len(self.clients))

    def close(self) -> None:
        """End every stream after what is queued for it, and take no more."""
        self._closed = True
        for client in list(self.clients):
            if client.queue.full():
                self._drop(client)
            else:
                client.queue.put_nowait(None)

    def wanted_whole(self) -> set[str]:
        """Return the machines of which some client wants every sample."""
        whole = [c.subscription.machines for c in self.clients if c.subscription.whole]
        return {machine_id for machines in whole if machines for machine_id in machines}

    def tell_unavailable(self, why: str) -> None:
        """Tell every stream, once, that the database is away."""
        if self._trouble != why:
            self._trouble = why
            self._tell_all(_unavailable(why))

    def tell_news(self, now: datetime, news: dict[str, list[Sample]], edges: list[LiveEdge]) -> None:
        """Tell every stream what changed: that the database is back, edges, machines, samples, in this order."""
        if self._trouble is not None:
            self._trouble = None
            self._tell_all(_event(b"status", encode(LiveStatus("ok", ""))))
        first, self._known, self._edges = self._known is None, now, encode(edges)
        lists: dict[frozenset[str] | None, bytes] = {}
        samples: dict[Subscription, bytes | None] = {}
        for client in list(self.clients):
            wants = client.subscription
            if first:
                self._greet(client, now)
                continue
            self._offer_edges(client, now)
            if wants.machines not in lists:
                lists[wants.machines] = encode(self.fleet.infos(now, wants.machines))
            self._offer_machines(client, now, lists[wants.machines])
            if wants not in samples:
                samples[wants] = _samples_event(now, wants, news)
            if (data := samples[wants]) is not None:
                self._offer(client, data)

    def _greet(self, client: Client, now: datetime) -> None:
        """Tell a new stream the machines, and the newest sample of each unless it wants every sample from now on."""
        wants = client.subscription
        self._offer_edges(client, now)
        self._offer_machines(client, now, encode(self.fleet.infos(now, wants.machines)))
        if not wants.whole:
            last = {m.id: [m.last] for m in self.fleet.by_id.values() if m.last is not None}
            if (data := _samples_event(now, wants, last)) is not None:
                self._offer(client, data)

    def _offer_machines(self, client: Client, now: datetime, machines: bytes) -> None:
        if client.machines_sent != machines:
            client.machines_sent = machines
            self._offer(client, _event(b"machines", b'{"now":%b,"machines":%b}' % (encode(now), machines)))

    def _offer_edges(self, client: Client, now: datetime) -> None:
        if client.edges_sent != self._edges:
            client.edges_sent = self._edges
            self._offer(client, _event(b"edges", b'{"now":%b,"edges":%b}' % (encode(now), self._edges)))

    def _tell_all(self, event: bytes) -> None:
        for client in list(self.clients):
            self._offer(client, event)

    def _offer(self, client: Client, event: bytes) -> None:
        if client.queue.full():
            self._drop(client)
        elif not client.dropped.is_set():
            client.queue.put_nowait(event)

    def _drop(self, client: Client) -> None:
        if not client.dropped.is_set():
            client.dropped.set()
            metrics.LIVE_DROPPED.inc()
        self.leave(client)


def alive() -> bytes:
    """Return the event that says that there is nothing else to tell."""
    return _event(b"alive", encode(LiveAlive(datetime.now(UTC))))


def _event(name: bytes, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name, data)


def _unavailable(why: str) -> bytes:
    return _event(b"status", encode(LiveStatus("unavailable", why)))


def _samples_event(now: datetime, wants: Subscription, news: dict[str, list[Sample]]) -> bytes | None:
    chosen = news.items() if wants.machines is None else [(m, news[m]) for m in sorted(wants.machines) if m in news]
    samples = [sample for _, new in chosen for sample in (new if wants.whole else new[-1:])]
    return _event(b"samples", encode(LiveSamples(now, samples))) if samples else None
