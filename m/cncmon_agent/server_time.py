"""Asks a NATS server what time it is."""

import time
from datetime import datetime
from typing import Final

import msgspec
import nats.errors
from nats.aio.client import Client

from cncmon_core import names

TIMEOUT_S: Final = 5.0


class _StreamInfo(msgspec.Struct):
    """The one field of JetStream's STREAM.INFO answer that is wanted; there since nats-server 2.10."""

    ts: datetime | None = None


async def ask_time(client: Client) -> tuple[datetime, float] | None:
    """Return (the server's time when it answered, round trip in seconds), or None where it does not say."""
    began_s = time.monotonic()
    try:
        answer = await client.request(f"$JS.API.STREAM.INFO.{names.STREAM}", timeout=TIMEOUT_S)
        said = msgspec.json.decode(answer.data, type=_StreamInfo).ts
    except (nats.errors.Error, TimeoutError, msgspec.MsgspecError):
        return None
    return None if said is None or said.tzinfo is None else (said, time.monotonic() - began_s)
