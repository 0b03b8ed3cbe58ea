"""A steady pull from the shared durable: one request is always under way while there is room for what it brings.

nats-py's own `fetch` waits for a full batch or its time-out and does not notice a consumer that went away. Here
messages are taken as they come, so a commit holds what arrived during the commit before it: few under little load, many
under much.
"""

import asyncio
import contextlib
import time
from collections import deque

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from cncmon_core import names
from cncmon_ingest.errors import FeedError
from cncmon_ingest.settings import IngestSettings

EXPIRES_S = 30.0
HEARTBEAT_S = 5.0
"""The server sends this often while a pull request waits; three missed mean that it is gone."""

DRAIN_S_MAX = 1.0

REFUSED_PAUSE_S = 0.2
"""Before asking again after a request that was ended by a limit without bringing anything."""

_GONE = ("consumer deleted", "consumer is push based", "no responders")


class Feed:
    """Messages of a durable of the stream, inside a NATS session; `take` raises FeedError when that must end."""

    def __init__(self, client: Client, settings: IngestSettings, durable: str = names.DURABLE) -> None:
        self._client = client
        self._settings = settings
        self._durable = durable
        self._queue: deque[Msg] = deque()
        self._arrived = asyncio.Event()
        self._missing = 0
        self._heard_s = 0.0
        self._request = 0
        self._inbox = ""
        self._gone: str | None = None
        self._pause_s = 0.0
        self._subscription: Subscription | None = None

    async def open(self) -> None:
        """Subscribe for answers; the first `take` asks for messages."""
        self._inbox = self._client.new_inbox()
        self._subscription = await self._client.subscribe(
            f"{self._inbox}.*", cb=self._on_message, pending_msgs_limit=-1, pending_bytes_limit=-1
        )

    async def close(self) -> list[Msg]:
        """Withdraw the pull request; return the messages that arrived and were never taken.

        Drained, not just unsubscribed: what the server sent before it heard of it still arrives and is returned.
        """
        subscription, self._subscription = self._subscription, None
        self._request += 1
        self._missing = 0
        if subscription is not None and not self._client.is_closed:
            # A server that does not answer has nothing more to send either.
            with contextlib.suppress(TimeoutError, nats.errors.Error):
                async with asyncio.timeout(DRAIN_S_MAX):
                    await subscription.drain()  # type: ignore[no-untyped-call]  # nats-py leaves it unannotated
        left = list(self._queue)
        self._queue.clear()
        return left

    @property
    def waiting(self) -> list[Msg]:
        """The messages that arrived and are not taken yet."""
        return list(self._queue)

    def put_back(self, messages: list[Msg]) -> None:
        """Put messages back in front of the queue."""
        self._queue.extendleft(reversed(messages))

    def wake(self) -> None:
        """End a `take` that waits."""
        self._arrived.set()

    async def take(self, timeout_s: float) -> list[Msg]:
        """Return what has arrived, at most `fetch_messages`, waiting for the first up to `timeout_s`; may be empty.

        Raises:
            FeedError: the consumer or its stream is gone, or the server fell silent.
        """
        if self._pause_s:
            await asyncio.sleep(self._pause_s)
        await self._ask()
        if not self._queue:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), timeout_s)
            except TimeoutError:
                self._check_alive()
        if self._gone:
            raise FeedError(self._gone)
        return await self.take_arrived()

    async def take_arrived(self) -> list[Msg]:
        """Return what has arrived, at most `fetch_messages`, without waiting; may be empty."""
        taken = [self._queue.popleft() for _ in range(min(len(self._queue), self._settings.fetch_messages))]
        await self._ask()
        return taken

    async def _ask(self) -> None:
        """Send a pull request where none is under way and the queue has room."""
        if self._subscription is None:
            await self.open()
        if self._missing > 0 or len(self._queue) >= self._settings.fetch_messages:
            return
        self._request += 1
        self._missing = self._settings.fetch_messages
        self._heard_s = time.monotonic()
        request = {
            "batch": self._missing,
            # A request that is smaller than the next message would end at once, for ever.
            "max_bytes": max(self._settings.fetch_bytes, 2 * self._client.max_payload),
            "expires": int(EXPIRES_S * 1e9),
            "idle_heartbeat": int(HEARTBEAT_S * 1e9),
        }
        await self._client.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{names.STREAM}.{self._durable}",
            msgspec.json.encode(request),
            reply=f"{self._inbox}.{self._request}",
        )

    def _check_alive(self) -> None:
        if self._missing > 0 and time.monotonic() - self._heard_s > 3 * HEARTBEAT_S:
            raise FeedError(f"nothing heard of the pull request for {3 * HEARTBEAT_S:.0f} s")

    async def _on_message(self, message: Msg) -> None:
        self._heard_s = time.monotonic()
        status = message.headers.get("Status") if message.headers else None
        if status is None or message.reply:
            # A message keeps its own subject: only a status comes under that of its request.
            self._queue.append(message)
            self._missing = max(0, self._missing - 1)
            self._pause_s = 0.0
        elif status != "100" and message.subject.endswith(f".{self._request}"):
            self._on_end(status, (message.headers or {}).get("Description", ""))
        self._arrived.set()

    def _on_end(self, status: str, said: str) -> None:
        """The request is over. Time-out (408), nothing there (404), a limit (409): ask again; consumer gone: don't."""
        refused = status not in ("404", "408") and self._missing == self._settings.fetch_messages
        self._pause_s = REFUSED_PAUSE_S if refused else 0.0
        self._missing = 0
        if status == "503" or any(word in said.lower() for word in _GONE):
            self._gone = f"the consumer {self._durable} of stream {names.STREAM} is gone: {status} {said}"
