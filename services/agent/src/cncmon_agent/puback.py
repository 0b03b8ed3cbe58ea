"""What JetStream answers to a publish, refusals included."""

import nats.js.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext


class PubAcks(JetStreamContext):
    """A JetStream context whose `publish_async` reports a refusal to whoever waits for the PubAck.

    `APIError.from_error` of nats-py 2.16 raises the error that its caller means to set as the result, so that a refusal
    (a full stream, an edge above its share) ended in the client's log and looked like a PubAck that never came.
    """

    async def _handle_async_reply(self, msg: Msg) -> None:
        try:
            await super()._handle_async_reply(msg)
        except nats.js.errors.APIError as error:
            future = self._publish_async_futures.get(msg.subject.rpartition(".")[2])
            if future is not None and not future.done():
                future.set_exception(error)
