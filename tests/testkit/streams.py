"""A stream's snapshot taken and restored by JetStream's own API, as `nats stream backup` and `nats stream restore` do.

Source: nats-server, `server/jetstream_api.go`, JSApiStreamSnapshotT and JSApiStreamRestoreT.
"""

import asyncio
import json
from typing import Any, NamedTuple

from nats.aio.client import Client
from nats.aio.msg import Msg

ANSWER_S_MAX = 30.0


class Snapshot(NamedTuple):
    """A stream's configuration and state, and its messages as the server packs them."""

    config: dict[str, Any]
    state: dict[str, Any]
    chunks: list[bytes]


async def take_snapshot(client: Client, stream: str) -> Snapshot:
    """Return a snapshot of a stream, without its consumers."""
    inbox = client.new_inbox()
    chunks: list[bytes] = []
    done = asyncio.Event()

    async def on_chunk(message: Msg) -> None:
        if not message.data:
            done.set()
            return
        chunks.append(message.data)
        if message.reply:
            # The server sends no more than its window until chunks are acknowledged.
            await message.respond(b"")

    subscription = await client.subscribe(inbox, cb=on_chunk)
    wanted = {"deliver_subject": inbox, "no_consumers": True, "chunk_size": 64 << 10}
    answer = await _asked(client, f"$JS.API.STREAM.SNAPSHOT.{stream}", json.dumps(wanted).encode())
    await asyncio.wait_for(done.wait(), ANSWER_S_MAX)
    await subscription.unsubscribe()
    return Snapshot(answer["config"], answer["state"], chunks)


async def restore_snapshot(client: Client, snapshot: Snapshot) -> None:
    """Create the stream of a snapshot; there must be none of its name."""
    name = snapshot.config["name"]
    wanted = {"config": snapshot.config, "state": snapshot.state}
    answer = await _asked(client, f"$JS.API.STREAM.RESTORE.{name}", json.dumps(wanted).encode())
    for chunk in snapshot.chunks:
        await client.request(answer["deliver_subject"], chunk, timeout=ANSWER_S_MAX)
    end = await client.request(answer["deliver_subject"], b"", timeout=ANSWER_S_MAX)
    _check(json.loads(end.data))


async def _asked(client: Client, subject: str, request: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads((await client.request(subject, request, timeout=ANSWER_S_MAX)).data)
    _check(answer)
    return answer


def _check(answer: dict[str, Any]) -> None:
    if "error" in answer:
        raise AssertionError(f"the server refuses: {answer['error']}")
