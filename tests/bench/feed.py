"""Batches as agents send them, made once and published as fast as is asked: in a process of its own.

`python -m bench.feed URL FILE MESSAGES PENDING_MAX`: publishes messages of the file in turn, each time as new batches
of new epochs, and waits while more than PENDING_MAX of them wait to be stored. Prints what it did as one JSON document.
"""

import asyncio
import json
import random
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from struct import pack, unpack

import msgspec
from nats.aio.client import Client
from nats.js import JetStreamContext

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


def shop_samples(number: int) -> list[Sample]:
    """Return samples of a shop's machines as an edge reads them, oldest first, that end now."""
    fleet = Fleet(Settings(machines=MACHINES, behaviour="shop", control_port=-1))
    stories = [(name, machine.behaviour) for name, machine in fleet.machines.items()]
    polls = number // MACHINES
    began = datetime.now(UTC) - timedelta(seconds=polls / HZ)
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


def messages(samples: list[Sample], frames_each: int) -> list[Message]:
    """Return samples as batches of so many frames."""
    encoded = [encode_sample(sample) for sample in samples]
    made = []
    for start in range(0, len(encoded), frames_each):
        batch = make(1, 1, 0, "samples", encoded[start : start + frames_each], LEVEL, 0)
        made.append(Message(batch.identity.frames, batch.identity.sha256, batch.data))
    return made


async def publish(client: Client, found: list[Message], count: int, pending_max: int | None) -> float:
    """Publish so many messages, epoch by epoch; return how long that took, all PubAcks included, in seconds."""
    js = client.jetstream(publish_async_max_pending=IN_FLIGHT_MAX)
    began_s = time.monotonic()
    epoch, base = 0, 0
    for number in range(count):
        at = number % len(found)
        if at == 0:
            epoch, base = random.getrandbits(62) | 1, 0
        message = found[at]
        name = Identity(epoch, at + 1, message.frames, base, message.sha256, "samples")
        base += message.frames
        edge = f"e{number // len(found)}"
        headers = name.to_headers(SITE, edge, frames.ENCODING_ZSTD)
        await js.publish_async(names.samples_subject(SITE, edge), message.data, headers=headers)
        if pending_max is not None and number % LOOK_EVERY_MESSAGES == 0:
            while await _pending(js) > pending_max:
                await asyncio.sleep(0.002)
    await js.publish_async_completed()
    return time.monotonic() - began_s


async def _pending(js: JetStreamContext) -> int:
    info = await js.consumer_info(names.STREAM, names.DURABLE)
    return (info.num_pending or 0) + (info.num_ack_pending or 0)


async def main(url: str, file: str, count: int, pending_max: int) -> None:
    found = msgspec.msgpack.decode(Path(file).read_bytes(), type=list[Message])
    client = Client()
    await client.connect(url)
    took_s = await publish(client, found, count, pending_max if pending_max >= 0 else None)
    await client.close()
    print(json.dumps({"seconds": took_s, "messages": count}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
