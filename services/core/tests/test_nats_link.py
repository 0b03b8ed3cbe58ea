"""The supervised connection against a real nats-server that is stopped, killed, restarted, and provoked."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from nats.aio.client import Client

from cncmon_core.nats_link import CONNECTED, NatsLink, NatsSettings, TolerantClient
from testkit.servers import Server, running_nats
from testkit.waiting import WAIT_S_MAX


def link_to(server: Server | int, **changes: Any) -> NatsLink:
    port = server if isinstance(server, int) else server.port
    defaults = {"servers": (f"nats://127.0.0.1:{port}",), "retry_delay_ms_base": 10, "retry_delay_ms_max": 100}
    return NatsLink(NatsSettings(**(defaults | changes)), "test")


async def until(condition: Callable[[], Any], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


class Sessions:
    """A session that stays, and counts how often it began and how it ended."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.client: Client | None = None

    async def __call__(self, client: Client) -> None:
        self.begun += 1
        self.client = client
        await client.flush()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


@contextlib.asynccontextmanager
async def running(link: NatsLink, session: Sessions) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(link.run(session))
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_connects_once_the_server_is_there(own_nats: Server) -> None:
    own_nats.stop()
    link, session = link_to(own_nats), Sessions()
    said = link.check()
    assert said is not None
    assert "not connected yet" in said
    async with running(link, session):
        await until(lambda: "refused" in (link.check() or "") or "Connect call failed" in (link.check() or ""))
        assert f"nats://127.0.0.1:{own_nats.port}" in (link.check() or "")
        assert CONNECTED._value.get() == 0
        await asyncio.to_thread(own_nats.start)
        await until(lambda: session.begun == 1)
        assert link.check() is None
        assert CONNECTED._value.get() == 1
        assert link.client is session.client


async def test_survives_kill_9_and_restart_again_and_again(own_nats: Server) -> None:
    link, session = link_to(own_nats), Sessions()
    async with running(link, session) as task:
        for round_ in range(1, 4):
            await until(lambda round_=round_: session.begun == round_)
            await asyncio.to_thread(own_nats.kill)
            await until(lambda round_=round_: session.cancelled == round_)
            assert link.client is None
            assert link.check() is not None
            await asyncio.to_thread(own_nats.start)
        await until(lambda: session.begun == 4)
        assert link.check() is None
        assert not task.done()


async def test_a_server_that_hangs_is_noticed_by_pings(own_nats: Server) -> None:
    link, session = link_to(own_nats, ping_interval_ms=500, connect_timeout_ms=300), Sessions()
    async with running(link, session):
        await until(lambda: session.begun == 1)
        own_nats.pause()
        try:
            await until(lambda: session.cancelled == 1)
        finally:
            own_nats.resume()
        await until(lambda: session.begun == 2)


async def provoke_with_nonsense(client: Client) -> None:
    assert client._transport is not None
    client._transport.write(b"NONSENSE\r\n")
    await client._transport.drain()


async def provoke_with_too_much(client: Client) -> None:
    client._max_payload = 1 << 30
    await client.publish("x", bytes((1 << 20) + 1))
    await client.flush()


@pytest.mark.parametrize(
    ("provoke", "says"),
    [(provoke_with_nonsense, "Unknown Protocol"), (provoke_with_too_much, "Maximum Payload Violation")],
)
async def test_a_server_error_that_closes_the_client_for_good(nats_url: str, provoke: Any, says: str) -> None:
    port = int(nats_url.rsplit(":", 1)[1])
    link, session = link_to(port, retry_delay_ms_base=300, retry_delay_ms_max=300), Sessions()
    async with running(link, session):
        await until(lambda: session.begun == 1)
        first = session.client
        assert first is not None
        # The server may hang up before the client has flushed.
        with contextlib.suppress(nats.errors.Error, OSError):
            await provoke(first)
        await until(lambda: session.cancelled == 1 and link.client is None)
        assert says.lower() in (link.check() or "").lower()
        await until(lambda: session.begun == 2)
        assert session.client is not first
        assert first.is_closed


async def test_run_returns_when_the_session_does(nats_url: str) -> None:
    link = link_to(int(nats_url.rsplit(":", 1)[1]))
    clients: list[Client] = []

    async def session(client: Client) -> None:
        clients.append(client)
        await client.flush()

    await asyncio.wait_for(link.run(session), WAIT_S_MAX)
    assert len(clients) == 1
    assert clients[0].is_closed
    assert link.client is None


@pytest.mark.parametrize("error", [ValueError("ours"), AssertionError("ours"), KeyError("ours")])
@pytest.mark.parametrize("in_group", [False, True])
async def test_a_bug_in_a_session_is_not_swallowed(nats_url: str, error: Exception, in_group: bool) -> None:
    async def session(client: Client) -> None:
        if not in_group:
            raise error
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(5))
            async with asyncio.TaskGroup() as inner:
                inner.create_task(fail(nats.errors.TimeoutError()))
                inner.create_task(fail(error))

    link = link_to(int(nats_url.rsplit(":", 1)[1]))
    with pytest.raises(type(error), match="ours"):
        await asyncio.wait_for(link.run(session), WAIT_S_MAX)
    assert link.client is None


async def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("error", [nats.errors.ConnectionClosedError(), OSError("gone"), TimeoutError()], ids=repr)
async def test_what_a_lost_connection_causes_only_ends_the_session(nats_url: str, error: Exception) -> None:
    begun = 0

    async def session(client: Client) -> None:
        nonlocal begun
        begun += 1
        if begun < 3:
            raise error

    await asyncio.wait_for(link_to(int(nats_url.rsplit(":", 1)[1])).run(session), WAIT_S_MAX)
    assert begun == 3


async def test_cancelling_run_cancels_the_session_and_closes_the_client(nats_url: str) -> None:
    link, session = link_to(int(nats_url.rsplit(":", 1)[1])), Sessions()
    async with running(link, session) as task:
        await until(lambda: session.begun == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, WAIT_S_MAX)
    assert session.cancelled == 1
    assert session.client is not None
    assert session.client.is_closed


@pytest.fixture
def guarded_nats(tmp_path: Path) -> Iterator[Server]:
    """A server that asks for a name and password."""
    with running_nats(tmp_path) as server:
        server.stop()
        server.command.argv[1:1] = ["--user", "edge", "--pass", "right"]
        server.start()
        yield server


async def test_a_wrong_password_keeps_trying_and_says_so(guarded_nats: Server) -> None:
    wrong, session = link_to(guarded_nats, user="edge", password="wrong"), Sessions()
    async with running(wrong, session) as task:
        await until(lambda: "uthoriz" in (wrong.check() or ""))
        await asyncio.sleep(0.5)
        assert not task.done()
        assert session.begun == 0
        assert "uthoriz" in (wrong.check() or "")
        assert "wrong" not in (wrong.check() or "")
    right, session = link_to(guarded_nats, user="edge", password="right"), Sessions()
    async with running(right, session):
        await until(lambda: session.begun == 1)


@pytest.mark.parametrize("server", ["nats://127.0.0.1:99999", "no url::", f"nats://{'a' * 70}.local:4222"])
async def test_an_address_that_can_not_be_one_keeps_trying_and_says_so(server: str) -> None:
    link, session = link_to(1, servers=(server,)), Sessions()
    async with running(link, session) as task:
        await until(lambda: "not connected yet" not in (link.check() or ""))
        assert server in (link.check() or "")
        assert not task.done()


async def test_tries_are_spaced(own_nats: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    own_nats.stop()
    link = link_to(own_nats, retry_delay_ms_base=100, retry_delay_ms_max=100)
    tries = 0
    connect = asyncio.open_connection

    async def counting(*args: Any, **options: Any) -> Any:
        nonlocal tries
        tries += 1
        return await connect(*args, **options)

    monkeypatch.setattr(asyncio, "open_connection", counting)
    async with running(link, Sessions()):
        await asyncio.sleep(1)
    # Two at once each 10 to 100 ms.
    assert 10 <= tries <= 100


async def test_a_server_that_never_speaks_is_left_without_a_leak() -> None:
    left = 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal left
        await reader.read()
        left += 1
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        link = link_to(port, connect_timeout_ms=100)
        async with running(link, Sessions()) as task:
            await until(lambda: left >= 2)
            assert not task.done()
            assert link.check() != f"NATS nats://127.0.0.1:{port}: "


async def test_a_flush_that_was_given_up_does_not_make_the_client_deaf(nats_server: Server) -> None:
    client = TolerantClient()
    await client.connect(f"nats://127.0.0.1:{nats_server.port}", allow_reconnect=False)
    try:
        given_up = asyncio.create_task(client.flush())
        await asyncio.sleep(0)
        given_up.cancel()
        # Its PONG comes before this one's.
        await client.flush(timeout=30)
        assert given_up.cancelled()
        assert client._pongs == []
    finally:
        await client.close()
