"""What consumers' clients answer to deliveries, as the server receives it."""

import asyncio
from collections import Counter

from nats.aio.client import Client
from nats.aio.msg import Msg

from testkit.waiting import WAIT_S_MAX

KEPT = "+WPI"


class Acks:
    """Records every acknowledgement of an account: stream sequence and kind (+ACK, +WPI, -NAK, +TERM), in order."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, str]] = []
        self._changed = asyncio.Event()

    @classmethod
    async def of(cls, client: Client) -> "Acks":
        """Begin to record."""
        acks = cls()
        await client.subscribe("$JS.ACK.>", cb=acks._on_ack)
        await client.flush()
        return acks

    async def _on_ack(self, message: Msg) -> None:
        # $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>
        seq = int(message.subject.split(".")[5])
        self.heard.append((seq, (message.data.split(b" ")[0] or b"+ACK").decode()))
        self._changed.set()

    def final(self, seq: int) -> list[str]:
        """Return what was answered to the deliveries of a message, other than that it is worked on."""
        return [kind for one, kind in self.heard if one == seq and kind != KEPT]

    def count(self, kind: str) -> int:
        """Return how many answers of a kind were heard."""
        return Counter(kind for _, kind in self.heard)[kind]

    async def more(self, kind: str, number: int, timeout_s: float = WAIT_S_MAX) -> None:
        """Wait until so many more of a kind were heard."""
        wanted = self.count(kind) + number
        async with asyncio.timeout(timeout_s):
            while self.count(kind) < wanted:
                self._changed.clear()
                await self._changed.wait()
