"""A supervised NATS connection: never gives up, and exactly one layer reconnects.

nats-py's own reconnection is off. It gives up after a count, has no jitter, keeps a buffer that publishes again what
its owner has already retried, and closes the client for good on most server errors. Here each connection is a session:
a coroutine that is given a connected client, and cancelled when that client closes. What must be subscribed or resent
is therefore written once, at the start of the session.
"""

import asyncio
import contextlib
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final

import nats
import nats.errors
from msgspec import Meta, Struct
from nats.aio.client import Client
from prometheus_client import Counter, Gauge

from cncmon_core import logs
from cncmon_core.backoff import Backoff
from cncmon_core.errors import CncmonError

log = logs.get(__name__)

CONNECTED = Gauge("cncmon_nats_connected", "1 while the service is connected to NATS.")
CONNECTS = Counter("cncmon_nats_connects", "Connections made to NATS.")

SETTLED_S: Final = 5.0
"""A session that lived so long has succeeded: the next back-off begins from the start."""

Session = Callable[[Client], Awaitable[None]]


class NatsSettings(Struct, frozen=True):
    """How to reach NATS (`CNCMON_NATS_…`)."""

    servers: Annotated[tuple[str, ...], Meta(min_length=1, description="URLs, comma-separated.")] = (
        "nats://127.0.0.1:4222",
    )
    user: Annotated[str, Meta(description="User name, where the server asks for one.")] = ""
    password: Annotated[str, Meta(description="Password of `user`.")] = ""
    tls_ca_file: Annotated[str, Meta(description="CA bundle; switches TLS on.")] = ""
    tls_cert_file: Annotated[str, Meta(description="Client certificate for mutual TLS.")] = ""
    tls_key_file: Annotated[str, Meta(description="Key of the client certificate.")] = ""
    connect_timeout_ms: Annotated[int, Meta(ge=100, description="One connection attempt.")] = 5000
    ping_interval_ms: Annotated[int, Meta(ge=500, description="A dead peer is noticed after three of these.")] = 5000
    retry_delay_ms_base: Annotated[int, Meta(ge=1, description="First bound of the jittered back-off.")] = 250
    retry_delay_ms_max: Annotated[int, Meta(ge=1, description="Last bound of the jittered back-off.")] = 10_000


class TolerantClient(Client):
    """nats-py's client, mended where it ends its read loop without closing: it is deaf then, and looks connected.

    It does so at a subject that is not UTF-8, which the server allows, and at the PONG for a flush that was given up:
    cancelled, or timed out. And where a connection is reset while something is written, what the event loop says of it
    (RuntimeError by uvloop, AttributeError by asyncio's transports) is a lost connection and no fault in the code.
    """

    async def _flush_pending(self, force_flush: bool = False) -> Any:
        try:
            return await super()._flush_pending(force_flush)
        except (RuntimeError, AttributeError) as error:
            raise ConnectionResetError(f"the connection was reset: {error}") from error

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():
            # Nobody waits for it any more, but the PONGs come in the order of the PINGs.
            self._pongs[0] = asyncio.Future()
        await super()._process_pong()

    def _build_message(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: Any) -> Any:
        readable = subject.decode("utf-8", "backslashreplace").encode()
        return super()._build_message(sid, readable, reply, data, headers)


class NatsLink:
    """Keeps a session running on a live client for as long as `run` runs."""

    def __init__(self, settings: NatsSettings, name: str, inbox_prefix: str = "_INBOX") -> None:
        self._settings = settings
        self._name = name
        self._inbox_prefix = inbox_prefix
        self._last_error = "not connected yet"
        self.client: Client | None = None

    def check(self) -> str | None:
        """Readiness: connected?"""
        return None if self.client is not None else f"NATS {', '.join(self._settings.servers)}: {self._last_error}"

    async def run(self, session: Session) -> None:
        """Connect and run `session(client)`; when the client closes or the session fails, connect again.

        Never gives up; returns only when the session returns by itself.
        """
        settings = self._settings
        backoff = Backoff(settings.retry_delay_ms_base / 1000, settings.retry_delay_ms_max / 1000)
        while True:
            closed = asyncio.Event()
            try:
                client = await self._connect(closed)
            except (OSError, TimeoutError, nats.errors.Error) as error:
                self._tell(error, backoff.tries)
                await asyncio.sleep(backoff.next_s())
                continue
            began_s = time.monotonic()
            CONNECTS.inc()
            CONNECTED.set(1)
            self.client = client
            log.info("connected to NATS", server=client.connected_url.netloc if client.connected_url else "")
            try:
                if await self._run_session(session, client, closed):
                    return
            finally:
                self.client = None
                CONNECTED.set(0)
                with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                    await asyncio.wait_for(client.close(), 2)
            # A session that ends as soon as it begins must not become a storm of connections.
            if time.monotonic() - began_s >= SETTLED_S:
                backoff.reset()
            await asyncio.sleep(backoff.next_s())

    async def _run_session(self, session: Session, client: Client, closed: asyncio.Event) -> bool:
        """Return whether the session came to its own end."""
        running = asyncio.ensure_future(session(client))
        ending = asyncio.ensure_future(closed.wait())
        try:
            # Its read loop ends without closing the client where the client's own code fails.
            reading = {client._reading_task} if client._reading_task else set()
            await asyncio.wait({running, ending, *reading}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (running, ending):
                task.cancel()
            results = await asyncio.gather(running, ending, return_exceptions=True)
        if closed.is_set():
            self._last_error = str(client.last_error or "connection closed")
            log.warning("NATS connection lost", error=self._last_error)
        for error in _leaves(results[0]):
            # What a session meets when its client dies under it; anything else is a fault of ours and must be seen.
            if not isinstance(error, (nats.errors.Error, OSError, TimeoutError, CncmonError)):
                raise error
            log.warning("NATS session ended", error=str(error) or type(error).__name__)
        return results[0] is None

    async def _connect(self, closed: asyncio.Event) -> Client:
        settings = self._settings
        options: dict[str, Any] = {}
        if settings.user:
            options |= {"user": settings.user, "password": settings.password}
        if settings.tls_ca_file:
            context = ssl.create_default_context(cafile=settings.tls_ca_file)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            if settings.tls_cert_file:
                context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file or None)
            options["tls"] = context

        async def on_closed() -> None:
            closed.set()

        async def on_error(error: Exception) -> None:
            self._last_error = str(error) or type(error).__name__

        # Its annotations say int, its code takes seconds of any kind.
        options |= {
            "connect_timeout": settings.connect_timeout_ms / 1000,
            "ping_interval": settings.ping_interval_ms / 1000,
        }
        timeout_s = settings.connect_timeout_ms / 1000 + 1
        client = TolerantClient()
        try:
            await asyncio.wait_for(
                client.connect(
                    list(settings.servers),
                    name=self._name,
                    allow_reconnect=False,
                    # 1 and 0: each server is tried twice at once, then it is our turn to wait, with jitter. Its own
                    # way is 60 tries, 2 s apart, within this one call.
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    max_outstanding_pings=2,
                    inbox_prefix=self._inbox_prefix.encode(),
                    closed_cb=on_closed,
                    error_cb=on_error,
                    **options,
                ),
                timeout_s,
            )
        except BaseException as error:
            if client.is_connecting:
                # It has a socket by now, which nobody else would close.
                with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                    await asyncio.wait_for(client.close(), 2)
            if isinstance(error, nats.errors.NoServersError):
                # `on_error` was told why, for each of them.
                raise ConnectionError(self._last_error) from error
            if isinstance(error, TimeoutError) and not str(error):
                raise TimeoutError(f"no answer within {timeout_s:g} s") from error
            raise
        return client

    def _tell(self, error: Exception, tries: int) -> None:
        self._last_error = str(error) or type(error).__name__
        # The first failure is news; after that once in a while is enough for a log that runs for days.
        if tries == 0 or tries % 30 == 0:
            log.warning(
                "can't connect to NATS", servers=self._settings.servers, error=self._last_error, tries=tries + 1
            )


def _leaves(result: Any) -> list[BaseException]:
    """Return the single exceptions of a task's result, out of any groups; cancellations are no faults."""
    if isinstance(result, BaseExceptionGroup):
        return [leaf for inner in result.exceptions for leaf in _leaves(inner)]
    if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
        return [result]
    return []
