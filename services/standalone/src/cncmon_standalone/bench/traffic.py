"""Batches as agents send them, made once and published as fast as is asked: in a process of its own.

`python -m cncmon_standalone.bench.traffic URL FILE MESSAGES PENDING_MAX [DSN MARKS_MAX [RATE]]`: publishes messages
of the file in turn, each time as new batches of new epochs, and waits while more than PENDING_MAX of them wait to be
stored (-1: does not), or more than MARKS_MAX ranges to be computed; RATE: samples a second at most. Prints what it did
as one JSON document.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from struct import pack, unpack
from typing import Protocol

import asyncpg
import msgspec
from nats.aio.client import Client

from cncmon_agent.batch import make
from cncmon_core import frames, names
from cncmon_core.identity import Identity
from cncmon_core.sample import FIELDS, Sample, encode_sample
from cncmon_simulator.fleet import Fleet
from cncmon_simulator.settings import Settings

MACHINES, HZ = 100, 10
LEVEL = 3
"""Of zstd: what an agent uses while it is online."""

IN_FLIGHT_MAX = 256
LOOK_EVERY_MESSAGES = 50
SITE = "hall"


class Message(msgspec.Struct):
    """One batch, but for its epoch and seq."""

    frames: int
    sha256: str
    data: bytes


def shop_samples(number: int, machines: int = MACHINES, end: datetime | None = None) -> list[Sample]:
    """Return samples of a shop's machines as an edge reads them, oldest first, that end now or at `end`."""
    fleet = Fleet(Settings(machines=machines, behaviour="shop", control_port=-1))
    stories = [(name, machine.behaviour) for name, machine in fleet.machines.items()]
    polls = number // machines
    began = (end or datetime.now(UTC)) - timedelta(seconds=polls / HZ)
    found = []
    for poll in range(polls):
        for index, (name, behaviour) in enumerate(stories):
            values = dict(behaviour.at(poll / HZ))
            moment = began + timedelta(seconds=poll / HZ, microseconds=1000 * index)
            # As read from registers of 32 bits.
            values = {
                name: unpack(">f", pack(">f", value))[0] if isinstance(value, float) else value
                for name, value in values.items()
            }
            ours = {field: values.pop(field) for field in FIELDS if field in values}
            values["poll_counter"] = poll
            found.append(msgspec.convert(
                {"machine_id": name, "timestamp": moment, "extras": values, "temperature": None, "spindle_speed": None}
                | ours, Sample, strict=False,
            ))  # fmt: skip
    return found


def messages(samples: list[Sample], frames_each: int, times: int = 1) -> list[Message]:
    """Return samples as batches of so many frames; again and again, each time earlier than before, oldest first."""
    took = timedelta(seconds=len(samples) / MACHINES / HZ)
    made = []
    for earlier in reversed(range(times)):
        shifted = (msgspec.structs.replace(one, timestamp=one.timestamp - earlier * took) for one in samples)
        encoded = [encode_sample(sample) for sample in (shifted if earlier else samples)]
        for start in range(0, len(encoded), frames_each):
            batch = make(1, 1, 0, "samples", encoded[start : start + frames_each], LEVEL, 0)
            made.append(Message(batch.identity.frames, batch.identity.sha256, batch.data))
    return made


def headers_of(message: Message, epoch: int, seq: int, base: int = 0, edge: str = "e1") -> dict[str, str]:
    """Return the headers that a batch has as this seq of an epoch."""
    name = Identity(epoch, seq, message.frames, base, message.sha256, "samples")
    return name.to_headers(SITE, edge, frames.ENCODING_ZSTD)


class Waiting(Protocol):
    """Says whether to wait before more is published."""

    async def __call__(self) -> bool:
        """Whether to wait."""


async def publish(
    client: Client,
    found: list[Message],
    count: int,
    waits: Sequence[Waiting] = (),
    look_every: int = LOOK_EVERY_MESSAGES,
) -> float:
    """Publish so many messages, epoch by epoch; return how long that took, all PubAcks included, in seconds.

    waits: asked before every so many messages.
    """
    js = client.jetstream(publish_async_max_pending=IN_FLIGHT_MAX)
    began_s = time.monotonic()
    epoch, base = 0, 0
    for number in range(count):
        at = number % len(found)
        if at == 0:
            epoch, base = random.getrandbits(62) | 1, 0
        message = found[at]
        edge = f"e{number // len(found)}"
        headers = headers_of(message, epoch, at + 1, base, edge)
        base += message.frames
        await js.publish_async(names.samples_subject(SITE, edge), message.data, headers=headers)
        if number % look_every == 0:
            for wait in waits:
                while await wait():  # noqa: ASYNC110 two servers are asked, neither of which would tell
                    await asyncio.sleep(0.002)
    await js.publish_async_completed()
    return time.monotonic() - began_s


def stream_waits(client: Client, pending_max: int) -> Waiting:
    """Wait while more messages than this wait to be stored."""
    js = client.jetstream()

    async def waits() -> bool:
        info = await js.consumer_info(names.STREAM, names.DURABLE)
        return (info.num_pending or 0) + (info.num_ack_pending or 0) > pending_max

    return waits


def rollups_wait(connection: asyncpg.Connection, marks_max: int) -> Waiting:
    """Wait while more ranges than this wait to be computed; looked at every quarter of a second."""
    looked_s, found = 0.0, False

    async def waits() -> bool:
        nonlocal looked_s, found
        if time.monotonic() - looked_s > 0.25:
            found = await connection.fetchval("SELECT count(*) FROM dirty_ranges") > marks_max
            looked_s = time.monotonic()
        return found

    return waits


def paced(rate: float, frames_each: int) -> Waiting:
    """Wait while more samples a second are published than this, in messages of so many."""
    began_s, asked = time.monotonic(), 0

    async def waits() -> bool:
        nonlocal asked
        if time.monotonic() - began_s < asked * frames_each / rate:
            return True
        asked += 1
        return False

    return waits


async def _main(
    url: str, found: list[Message], count: int, pending_max: int, dsn: str, marks_max: int, rate: float
) -> None:
    client = Client()
    await client.connect(url)
    waits = [stream_waits(client, pending_max)] if pending_max >= 0 else []
    if dsn:
        waits.append(rollups_wait(await asyncpg.connect(dsn), marks_max))
    if rate:
        waits.append(paced(rate, found[0].frames))
    before_s = time.process_time()
    took_s = await publish(client, found, count, waits, look_every=1 if rate else LOOK_EVERY_MESSAGES)
    cpu_s = time.process_time() - before_s
    await client.close()
    print(json.dumps({"seconds": took_s, "cpu_seconds": cpu_s, "messages": count}))


def load(file: Path) -> list[Message]:
    """Return the messages of a file."""
    return msgspec.msgpack.decode(file.read_bytes(), type=list[Message])


def save(file: Path, found: list[Message]) -> None:
    """Write messages to a file."""
    file.write_bytes(msgspec.msgpack.encode(found))


def main() -> None:
    """Publish as the command line says."""
    url, file, count, pending_max, *rest = sys.argv[1:]
    dsn, marks_max, rate = (*rest, *("", "0", "0")[len(rest) :])
    asyncio.run(_main(url, load(Path(file)), int(count), int(pending_max), dsn, int(marks_max), float(rate)))


if __name__ == "__main__":
    main()
