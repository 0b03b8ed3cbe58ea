"""Holding: what a worker does while the database can't be used. Fetch nothing, keep what is in hand, bury nothing."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import nats.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from cncmon_core import logs, names
from cncmon_core.backoff import Backoff
from cncmon_ingest import metrics
from cncmon_ingest.errors import NotConnectedError, OutageError
from cncmon_ingest.feed import Feed
from cncmon_ingest.settings import IngestSettings

log = logs.get(__name__)

LOOKS_MIN = 2
"""So many looks in a row, a third of ack_wait apart, must find new deliveries before messages are given to others."""

Step = Callable[[], Awaitable[None]]


class Hold:
    """Runs steps until they succeed, and keeps messages from being delivered again meanwhile."""

    def __init__(
        self,
        js: JetStreamContext,
        feed: Feed,
        settings: IngestSettings,
        stop: asyncio.Event,
        durable: str = names.DURABLE,
    ) -> None:
        self._js = js
        self._feed = feed
        self._settings = settings
        self._durable = durable
        self._stop = stop
        self._tick_s = settings.ack_wait_ms / 3000
        self._ticked_s = 0.0

    async def until(self, step: Step, in_hand: Sequence[Msg] = ()) -> bool:
        """Return True once the step succeeded; False when the messages in hand were given back instead.

        They are given back when this worker is told to stop, or when others commit while it can't.
        """
        held = list(in_hand)
        ticking = asyncio.create_task(self._keep(held))
        try:
            try:
                await step()
            except OutageError as error:
                log.warning("holding: the database can't be used", error=str(error), in_hand=len(held))
            else:
                return True
            metrics.HOLDS.inc()
            metrics.HOLDING.set(1)
            return await self._hold(step, held)
        finally:
            metrics.HOLDING.set(0)
            ticking.cancel()
            await asyncio.gather(ticking, return_exceptions=True)

    async def _hold(self, step: Step, held: list[Msg]) -> bool:
        """Try the step again and again. `held` begins as what the step is about; what only waited is added to it."""
        about = len(held)
        # Without this the server would go on sending here, even what this worker gives back.
        held += await self._feed.close()
        backoff = Backoff(0.1, min(self._settings.hold_retry_ms_max / 1000, self._tick_s))
        others = _Progress(self._js, self._durable, self._tick_s)
        while not await self._stopped_within(backoff.next_s()):
            try:
                await step()
            except OutageError as error:
                # Where the connection works, the fault goes along with the messages: others would fare no better.
                if held and isinstance(error, NotConnectedError) and await others.seen():
                    log.warning("only this worker is cut off: others can have what it holds", messages=len(held))
                    await self._give_back(held)
                    if about:
                        return False
            else:
                log.info("hold is over")
                self._feed.put_back(held[about:])
                return True
        await self._give_back(held)
        return False

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def _keep(self, messages: list[Msg]) -> None:
        """Tell JetStream that messages are being worked on, however long a step or a hold takes."""
        loop = asyncio.get_running_loop()
        while True:
            # Counted from step to step: many short ones must not put off the word for ever.
            await asyncio.sleep(max(0.0, self._ticked_s + self._tick_s - loop.time()))
            for message in (*messages, *self._feed.waiting):
                await message.in_progress()
            self._ticked_s = loop.time()

    @staticmethod
    async def _give_back(messages: list[Msg]) -> None:
        while messages:
            await messages.pop().nak()


class _Progress:
    """Whether others commit. A worker that can't pulls nothing, so deliveries that go on are made to one that can.

    A worker that has not noticed the outage yet may be delivered something once; so it must go on for several looks.
    """

    def __init__(self, js: JetStreamContext, durable: str, every_s: float) -> None:
        self._js = js
        self._durable = durable
        self._every_s = every_s
        self._last: int | None = None
        self._grown = 0
        self._look_at_s = asyncio.get_running_loop().time() + every_s

    async def seen(self) -> bool:
        loop = asyncio.get_running_loop()
        if loop.time() < self._look_at_s:
            return False
        self._look_at_s = loop.time() + self._every_s
        try:
            info = await self._js.consumer_info(names.STREAM, self._durable)
        except (nats.errors.Error, TimeoutError):
            # A lost connection ends the session by itself; anything less is no reason to let go of the messages.
            return False
        before, self._last = self._last, info.delivered.consumer_seq if info.delivered else 0
        self._grown = self._grown + 1 if before is not None and self._last > before else 0
        return self._grown >= LOOKS_MIN
