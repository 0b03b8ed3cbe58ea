"""A live stream as an HTTP response (WHATWG HTML, section 9.2, server-sent events)."""

import asyncio

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cncmon_api.live import ALIVE_S, Client, Hub, alive


class LiveResponse(Response):
    """Sends what is queued for a client until it goes, is dropped or the service stops."""

    media_type = "text/event-stream"

    def __init__(self, hub: Hub, client: Client) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._hub = hub
        self._client = client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the stream; three tasks, the first to end ends it."""
        client = self._client
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._pump(send)),
                    group.create_task(_until_gone(receive)),
                    group.create_task(client.dropped.wait()),
                ]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    task.cancel()
        finally:
            self._hub.leave(client)
        abort = scope.get("state", {}).get("abort")
        if client.dropped.is_set() and abort is not None:
            # It does not read: a polite end would wait in its full socket for ever.
            abort()

    async def _pump(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        queue = self._client.queue
        while True:
            try:
                event = await asyncio.wait_for(queue.get(), ALIVE_S)
            except TimeoutError:
                event = alive()
            await send({"type": "http.response.body", "body": event or b"", "more_body": event is not None})
            if event is None:
                return


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
