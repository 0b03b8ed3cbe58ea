"""The client connection against a server that says, byte by byte, what a test wants it to say."""

import asyncio
import contextlib
import struct
import time
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cncmon_agent.drivers.modbus.client import EARLIER_MAX, AnsweredError, Client, Question, connect
from cncmon_agent.drivers.modbus.plan import Block
from cncmon_agent.errors import DriverError, ProtocolError, UnreachableError

pytestmark = pytest.mark.virtual_time

TWO = Question.of(Block("holding", 10, 2, ()), 1)
BITS = Question.of(Block("coil", 10, 11, ()), 1)
DATA = bytes((0, 7, 0, 8))


def answer(number: int, data: bytes = DATA, unit: int = 1, function: int = 3) -> bytes:
    return struct.pack(">HHHBBB", number & 0xFFFF, 0, 3 + len(data), unit, function, len(data)) + data


class Server:
    """Keeps what it was asked; says what it is told to."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.asked = asyncio.Event()
        self.writer: asyncio.StreamWriter
        self.on_request: Callable[[int], bytes] | None = None
        self.hung_up = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                self.requests.append(await reader.readexactly(12))
                self.asked.set()
                if self.on_request is not None:
                    writer.write(self.on_request(int.from_bytes(self.requests[-1][:2], "big")))
        self.hung_up.set()
        writer.close()

    async def say(self, *pieces: bytes) -> None:
        """Send pieces, so far apart that they arrive as such."""
        await self.asked.wait()
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def connected(timeout_s: float = 0.5, host: str = "127.0.0.1") -> AsyncIterator[tuple[Server, Client]]:
    server = Server()
    async with await asyncio.start_server(server.serve, host, 0) as listening:
        client = await connect(host, listening.sockets[0].getsockname()[1], timeout_s)
        try:
            yield server, client
        finally:
            client.close()
            await asyncio.wait_for(server.hung_up.wait(), 2)


async def test_a_request_is_what_the_protocol_says() -> None:
    async with connected() as (server, client):
        server.on_request = answer
        assert await client.ask(TWO) == DATA
        server.on_request = lambda number: answer(number, b"\x05\x04", function=1)
        assert await client.ask(BITS) == b"\x05\x04"
    # Application Protocol V1.1b3, sections 6.3 and 6.1, behind the MBAP header.
    assert server.requests == [
        bytes.fromhex("000100000006 01 03 000a 0002"),
        bytes.fromhex("000200000006 01 01 000a 000b"),
    ]


@pytest.mark.parametrize("cut", range(1, 13))
async def test_an_answer_in_two_pieces(cut: int) -> None:
    async with connected() as (server, client):
        waiting = client.ask(TWO)
        await server.say(answer(1)[:cut], answer(1)[cut:])
        assert await waiting == DATA
        server.on_request = answer
        assert await client.ask(TWO) == DATA


async def test_an_answer_byte_by_byte() -> None:
    async with connected() as (server, client):
        waiting = client.ask(TWO)
        await server.say(*(bytes((byte,)) for byte in answer(1)))
        assert await waiting == DATA


async def test_answers_to_earlier_transactions_are_dropped() -> None:
    old = b"\xff\xff\xff\xff"
    async with connected() as (server, client):
        first = client.ask(TWO)
        await server.asked.wait()
        first.cancel()
        second = client.ask(TWO)
        # Late, doubled, and in one segment with the one that is waited for.
        await server.say(answer(1, old), answer(1, old) + answer(2) + answer(2, old), answer(2, old))
        assert await second == DATA
        assert client.connected
        server.on_request = answer
        assert await client.ask(TWO) == DATA


async def test_what_comes_unasked_ends_the_connection() -> None:
    async with connected() as (server, client):
        server.on_request = answer
        await client.ask(TWO)
        await server.say(answer(2))
        await asyncio.wait_for(server.hung_up.wait(), 2)
        assert not client.connected
        with pytest.raises(UnreachableError, match="closed"):
            await client.ask(TWO)


async def test_transaction_ids_begin_again_after_the_last() -> None:
    async with connected() as (server, client):
        server.on_request = answer
        client._asked = 0xFFFE
        for _ in range(3):
            assert await client.ask(TWO) == DATA
        assert [request[:2].hex() for request in server.requests] == ["ffff", "0000", "0001"]
        server.on_request = lambda number: answer(number - EARLIER_MAX)
        with pytest.raises(ProtocolError, match="an answer to transaction"):
            await client.ask(TWO)


WRONG = {
    "another transaction": (answer(2), "transaction 2, asked was 1"),
    "transaction 0": (answer(0), "transaction 0"),
    "another unit": (answer(1, unit=9), "unit 9 answered"),
    "another function": (answer(1, function=4), "answered with 4"),
    "an exception to another function": (struct.pack(">HHHBBB", 1, 0, 3, 1, 0x84, 2), "answered with 132"),
    "an exception that is too long": (struct.pack(">HHHBBBB", 1, 0, 4, 1, 0x83, 2, 0), "answered with 131"),
    "an exception without a code": (struct.pack(">HHHBB", 1, 0, 2, 1, 0x83), "answered with 131"),
    "too few": (answer(1, DATA[:2]), "asked for 2 of holding from 10, got 2 bytes"),
    "too many": (answer(1, DATA + DATA), "got 8 bytes"),
    "no byte count": (struct.pack(">HHHBB", 1, 0, 2, 1, 3), "got 0 bytes"),
    "a byte count that is not the length": (answer(1)[:8] + b"\x06" + DATA, "got 4 bytes"),
    "another protocol": (b"\0\1\0\1" + answer(1)[4:], "protocol 1"),
    "a length of 1": (b"\0\1\0\0\0\1\1", "length 1"),
    "a length of 255": (b"\0\1\0\0\0\xff\1", "length 255"),
    "text": (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no Modbus"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_wrong_answer_ends_the_connection_and_says_why(name: str) -> None:
    sent, said = WRONG[name]
    async with connected() as (server, client):
        waiting = client.ask(TWO)
        started = time.monotonic()
        await server.say(sent)
        with pytest.raises(ProtocolError, match=said):
            await waiting
        assert time.monotonic() - started < 0.3
        assert not client.connected


async def test_an_exception_leaves_the_connection_as_it_is() -> None:
    async with connected() as (server, client):
        server.on_request = lambda number: struct.pack(">HHHBBB", number, 0, 3, 1, 0x83, 2)
        with pytest.raises(AnsweredError, match=r"Modbus exception 2 \(illegal data address\)") as caught:
            await client.ask(TWO)
        assert caught.value.code == 2
        server.on_request = answer
        assert await client.ask(TWO) == DATA


async def test_a_hang_up_in_the_middle_of_an_answer() -> None:
    async with connected() as (server, client):
        waiting = client.ask(TWO)
        await server.say(answer(1)[:9])
        server.writer.close()
        with pytest.raises(UnreachableError, match="it hung up"):
            await waiting
        assert not client.connected


async def test_silence_costs_the_time_out_and_the_connection() -> None:
    async with connected(timeout_s=0.1) as (server, client):
        server.on_request = answer
        assert await client.ask(TWO) == DATA
        await asyncio.sleep(0.07)
        server.on_request = None
        started = time.monotonic()
        with pytest.raises(UnreachableError, match="silent"):
            await client.ask(TWO)
        # From its own request on, not from the one for which the timer was set.
        assert 0.09 < time.monotonic() - started < 0.25
        await asyncio.wait_for(server.hung_up.wait(), 2)


async def test_a_slow_answer_within_the_time_is_taken() -> None:
    async with connected(timeout_s=0.3) as (server, client):
        for number in (1, 2, 3):
            waiting = client.ask(TWO)
            await asyncio.sleep(0.15)
            await server.say(answer(number))
            assert await waiting == DATA


async def test_close_ends_what_is_waited_for() -> None:
    async with connected() as (server, client):
        waiting = client.ask(TWO)
        await server.asked.wait()
        client.close()
        with pytest.raises(UnreachableError, match="was closed"):
            await waiting
        client.close()


@pytest.mark.parametrize("host", ["::1", "localhost"])
async def test_addresses_and_names(host: str) -> None:
    async with connected(host=host) as (server, client):
        server.on_request = answer
        assert await client.ask(TWO) == DATA


async def test_a_refused_connection_says_so() -> None:
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
    with pytest.raises(UnreachableError, match=rf"can't connect to 127\.0\.0\.1:{port}: .*refused|Connect call failed"):
        await connect("127.0.0.1", port, 1)


async def test_who_does_not_accept_costs_the_time_out() -> None:
    # 192.0.2.0/24 is for documentation (RFC 5737): nobody answers, or the network says at once that it is not there.
    started = time.monotonic()
    with pytest.raises(UnreachableError, match="can't connect to"):
        await connect("192.0.2.1", 502, 0.1)
    assert time.monotonic() - started < 1


@settings(max_examples=60)
@given(
    before=st.lists(st.sampled_from([1, 2]), max_size=3),
    after=st.binary(max_size=40),
    cuts=st.lists(st.integers(1, 60), max_size=6),
)
def test_however_it_is_cut_the_answer_is_the_answer(before: list[int], after: bytes, cuts: list[int]) -> None:
    """Doubled answers to the first two requests, the third's answer, then anything at all."""

    async def play() -> None:
        client = Client(1)
        written: list[bytes] = []

        class Transport(asyncio.Transport):
            def write(self, data: object) -> None:
                written.append(bytes(data))  # type: ignore[call-overload]  # it is bytes

            def abort(self) -> None:
                pass

        client.connection_made(Transport())
        for number in (1, 2):
            waiting = client.ask(TWO)
            client.data_received(answer(number, b"\1\1\1\1"))
            await waiting
        waiting = client.ask(TWO)
        stream = b"".join(answer(number, b"\2\2\2\2") for number in before) + answer(3) + after
        at = 0
        for cut in [*cuts, len(stream)]:
            if at < len(stream):
                client.data_received(stream[at : at + cut])
            at += cut
        assert await waiting == DATA
        client.close()

    asyncio.run(play())


@settings(max_examples=200)
@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=5))
def test_garbage_is_never_an_answer(pieces: list[bytes]) -> None:
    async def play() -> None:
        client = Client(0.01)

        class Transport(asyncio.Transport):
            def write(self, data: object) -> None:
                pass

            def abort(self) -> None:
                pass

        client.connection_made(Transport())
        waiting = client.ask(TWO)
        for piece in pieces:
            if not piece.startswith(answer(1)[:8]):
                client.data_received(piece)
        assert len(client._rest) < 260
        client.close()
        with pytest.raises(DriverError):
            await waiting

    asyncio.run(play())
