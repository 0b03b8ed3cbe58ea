"""How much is in the stream and not yet committed to the database."""

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client

from cncmon_core import names

_TIMEOUT_S = 2


async def _quiet(_: Exception) -> None:
    """The caller gets the error; nats-py would log it too."""


async def connect(url: str) -> Client:
    """Return a connected client that doesn't reconnect.

    Raises:
        OSError, TimeoutError, nats.errors.Error: the server doesn't answer.
    """
    return await nats.connect(
        url, name="cncmon", allow_reconnect=False, connect_timeout=_TIMEOUT_S, error_cb=_quiet, max_reconnect_attempts=0
    )


async def of(url: str) -> int | None:
    """Return the messages that ingest has not acknowledged yet; None while NATS or the consumer isn't there."""
    try:
        client = await connect(url)
        try:
            info = await client.jetstream(timeout=_TIMEOUT_S).consumer_info(names.STREAM, names.DURABLE)
            return (info.num_pending or 0) + (info.num_ack_pending or 0)
        finally:
            await client.close()
    except (OSError, TimeoutError, nats.errors.Error, nats.js.errors.Error):
        return None
