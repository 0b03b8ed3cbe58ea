"""The proxy does what it says: an injected fault that does nothing would make every scenario green."""

import asyncio
import time
from collections.abc import AsyncIterator

import nats.errors
import pytest
from nats.aio.client import Client
from nats.js.api import StreamConfig

from robustness.faults.proxy import Messages, Proxy, is_puback, running_proxy
from testkit.servers import Server


@pytest.fixture
async def proxy(nats_server: Server, nats_client: Client) -> AsyncIterator[Proxy]:
    await nats_client.jetstream().add_stream(StreamConfig(name="CNC_DATA", subjects=["CNC_DATA.>"]))
    async with running_proxy(("127.0.0.1", nats_server.port)) as running:
        yield running


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[Client]:
    client = Client()
    await client.connect(proxy.url, allow_reconnect=False)
    yield client
    await client.close()


WIRE = b"INFO {}\r\nPING\r\nMSG _INBOX.a.b 1 30\r\n" + b'{"stream":"CNC_DATA","seq":12}' + b"\r\nHMSG x 1 y 12 17\r\n"
WIRE += b"NATS/1.0\r\n\r\nMSG \r\n" + b"\r\n+OK\r\n"


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_messages_are_told_apart_however_they_arrive(size: int) -> None:
    messages = Messages()
    found = [m for at in range(0, len(WIRE), size) for m in messages.feed(WIRE[at : at + size])]
    assert b"".join(found) == WIRE
    assert [message.split(b" ")[0].strip() for message in found] == [b"INFO", b"PING", b"MSG", b"HMSG", b"+OK"]
    assert [is_puback(message, "CNC_DATA") for message in found] == [False, False, True, False, False]


def test_what_is_no_nats_is_refused() -> None:
    with pytest.raises(ValueError, match="no NATS"):
        Messages().feed(b"x" * 100_000)


async def test_swallowed_acknowledgements_are_of_messages_that_are_stored(proxy: Proxy, client: Client) -> None:
    proxy.swallow_acks(1.0, seed=1)
    js = client.jetstream()
    with pytest.raises((nats.errors.TimeoutError, TimeoutError)):
        await js.publish("CNC_DATA.a.b", b"x", timeout=0.5)
    assert proxy.swallowed == 1
    assert (await js.stream_info("CNC_DATA")).state.messages == 1, "other answers come through"
    proxy.swallow_acks(0.0, seed=1)
    assert (await js.publish("CNC_DATA.a.b", b"x")).seq == 2


async def test_swallowed_publishes_never_arrive_and_others_do(proxy: Proxy, client: Client) -> None:
    proxy.swallow_publishes("CNC_DATA.")
    js = client.jetstream()
    with pytest.raises((nats.errors.TimeoutError, TimeoutError)):
        await js.publish("CNC_DATA.a.b", b"x", timeout=0.3, headers={"A": "b"})
    assert (await js.stream_info("CNC_DATA")).state.messages == 0
    proxy.swallow_publishes(None)
    assert (await js.publish("CNC_DATA.a.b", b"x")).seq == 1


async def test_paused_nothing_passes_and_nothing_is_closed(proxy: Proxy, client: Client) -> None:
    proxy.pause()
    asking = asyncio.create_task(client.jetstream().stream_info("CNC_DATA"))
    await asyncio.sleep(0.3)
    assert not asking.done()
    assert client.is_connected
    proxy.resume()
    assert (await asking).state.messages == 0


async def test_refused_then_open_on_the_same_port(proxy: Proxy, client: Client) -> None:
    port = proxy.port
    await proxy.refuse()
    with pytest.raises(OSError, match=r"refused|Connect"):
        await asyncio.open_connection("127.0.0.1", port)
    await proxy.open()
    assert proxy.port == port
    again = Client()
    await again.connect(proxy.url, allow_reconnect=False)
    await again.close()
    assert proxy.connections == 2


async def test_cut_connections_are_reset(proxy: Proxy) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    await reader.readline()
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        await reader.readexactly(1)
    writer.close()


async def test_a_clock_ahead_is_seen_in_every_message_and_acknowledgements_arrive(proxy: Proxy, client: Client) -> None:
    js = client.jetstream()
    await js.publish("CNC_DATA.a.b", b"MSG in the payload 1764000000000000000.1", headers={"A": "b"})
    proxy.clock_s = 600
    subscription = await js.pull_subscribe("CNC_DATA.>", "reader")
    [message] = await subscription.fetch(1, 5)
    ahead_s = message.metadata.timestamp.timestamp() - time.time()
    assert 595 < ahead_s < 601
    assert message.data == b"MSG in the payload 1764000000000000000.1"
    await message.ack_sync()
    assert (await subscription.consumer_info()).num_ack_pending == 0
