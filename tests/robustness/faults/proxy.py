"""A TCP proxy in front of NATS that pauses, cuts, refuses, or swallows acknowledgements or publishes."""

import asyncio
import contextlib
import random
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import Final

_HEAD: Final = re.compile(rb"H?(MSG|PUB) ", re.IGNORECASE)
_NO_LINGER: Final = struct.pack("ii", 1, 0)
LINE_BYTES_MAX: Final = 64 << 10
"""INFO is the longest line of the protocol, some hundreds of bytes; more without an end is no NATS server."""


class Messages:
    """Splits what NATS server and client say into messages: a line, and for some of them the payload behind it.

    Client protocol, https://docs.nats.io/reference/reference-protocols/nats-protocol: `MSG subject sid [reply] bytes`,
    `HMSG subject sid [reply] header-bytes total-bytes`, `PUB subject [reply] bytes`, `HPUB subject [reply] header-bytes
    total-bytes`, each with its payload and CR LF.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the messages that are complete by now, each with all its bytes."""
        self._buffer += data
        found = []
        while (size := self._size()) is not None and size <= len(self._buffer):
            found.append(bytes(self._buffer[:size]))
            del self._buffer[:size]
        return found

    def _size(self) -> int | None:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            if len(self._buffer) > LINE_BYTES_MAX:
                raise ValueError(f"no NATS protocol: {bytes(self._buffer[:60])!r}")
            return None
        line = bytes(self._buffer[:end])
        if not _HEAD.match(line):
            return end + 2
        return end + 2 + int(line.rsplit(b" ", 1)[1]) + 2


def is_puback(message: bytes, stream: str) -> bool:
    """Whether a message is a stream's acknowledgement of a publish (JetStream's JSON `PubAck`)."""
    return message.startswith(b"MSG _INBOX.") and b'"stream":"%s"' % stream.encode() in message and b'"seq":' in message


def is_publish(message: bytes, subject_prefix: str) -> bool:
    """Whether a message publishes under a subject that begins so."""
    return message.startswith((b"PUB %s" % subject_prefix.encode(), b"HPUB %s" % subject_prefix.encode()))


_STORED: Final = re.compile(rb"^H?MSG [^\r]*? \$JS\.ACK\.[^\r]*?\.(\d{19})\.\d+(?: [^\r]*)?\r\n")


def shifted(message: bytes, seconds: int) -> bytes:
    """Return a message of a stream as if the server that stored it had a clock so many seconds ahead.

    When it was stored stands in the subject to acknowledge it under, as Unix ns
    (https://docs.nats.io/reference/reference-protocols/nats_api_reference, "Acknowledging Messages").
    """
    found = _STORED.match(message)
    if found is None:
        return message
    start, end = found.span(1)
    return message[:start] + b"%d" % (int(found[1]) + seconds * 1_000_000_000) + message[end:]


class Proxy:
    """Listens on `port` and passes everything on to `target`, as long as it is allowed to.

    connections: how many were accepted. swallowed: how many acknowledgements never arrived. clock_s: by how much the
    server's clock is ahead, as those see it who read messages through this.
    """

    def __init__(self, target: tuple[str, int], host: str = "127.0.0.1") -> None:
        self._target = target
        self.host = host
        self.port = 0
        self.connections = 0
        self.swallowed = 0
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._drops: Callable[[bytes], bool] = lambda _message: False
        self._drops_publish: Callable[[bytes], bool] = lambda _message: False
        self.clock_s = 0

    @property
    def url(self) -> str:
        """Where NATS clients find it."""
        return f"nats://{self.host}:{self.port}"

    async def open(self) -> None:
        """Listen, on the same port as before if there was one."""
        self._server = await asyncio.start_server(self._connected, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Reset every connection and listen no more, until `open`."""
        if self._server is not None:
            server, self._server = self._server, None
            server.close()
            self.cut()
            await server.wait_closed()

    def cut(self) -> None:
        """Reset every connection; new ones are taken."""
        for writer in list(self._writers):
            # Closing with a linger time of zero sends a reset instead of an orderly end.
            with contextlib.suppress(OSError):
                # Its other end may have closed it just now.
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            writer.transport.abort()

    def pause(self) -> None:
        """Pass nothing on and answer nothing, without closing anything: a partition as either side sees it."""
        self._flowing.clear()

    def resume(self) -> None:
        """Let it flow again."""
        self._flowing.set()

    def swallow_acks(self, share: float, seed: int, stream: str = "CNC_DATA") -> None:
        """Keep a share (0 to 1) of a stream's acknowledgements back for ever."""
        dice = random.Random(seed)

        def drops(message: bytes) -> bool:
            if not is_puback(message, stream) or dice.random() >= share:
                return False
            self.swallowed += 1
            return True

        self._drops = drops

    def swallow_publishes(self, subject_prefix: str | None) -> None:
        """Pass on nothing that is published under subjects that begin so; None: everything again."""
        self._drops_publish = lambda message: subject_prefix is not None and is_publish(message, subject_prefix)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        upstream: asyncio.StreamWriter | None = None
        try:
            await self._flowing.wait()
            source, upstream = await asyncio.open_connection(*self._target)
            self._writers.add(upstream)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, upstream, lambda message: self._drops_publish(message)))
                group.create_task(self._pump(source, writer, lambda message: self._drops(message)))
        except* (OSError, asyncio.IncompleteReadError):
            pass  # either side is gone, and with it the other
        finally:
            for end in (writer, upstream):
                if end is not None:
                    self._writers.discard(end)
                    end.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, drops: Callable[[bytes], bool]
    ) -> None:
        messages = Messages()
        while data := await reader.read(64 << 10):
            await self._flowing.wait()
            passed = (message for message in messages.feed(data) if not drops(message))
            writer.write(b"".join(shifted(message, self.clock_s) if self.clock_s else message for message in passed))
            await writer.drain()
        raise ConnectionResetError("closed by the other side")


@contextlib.asynccontextmanager
async def running_proxy(target: tuple[str, int], host: str = "127.0.0.1") -> AsyncIterator[Proxy]:
    """Run a proxy until the block ends."""
    proxy = Proxy(target, host)
    await proxy.open()
    try:
        yield proxy
    finally:
        proxy.resume()
        await proxy.refuse()
