"""Requests that ask about a resource instead of for it: HEAD and OPTIONS (RFC 9110, sections 9.3.2 and 9.3.7)."""

import asyncio

from fastapi import Request, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Head:
    """Answers HEAD as GET, without the bytes. FastAPI's routes do not, unless each is documented a second time."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; a stream ends with its headers."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        answered = asyncio.Event()

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                # By this the server knows that no bytes follow, whatever length the headers tell.
                scope["method"] = "HEAD"
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                answered.set()

        async def receive_end() -> Message:
            await answered.wait()
            return {"type": "http.disconnect"}

        scope["method"] = "GET"
        try:
            await self._app(scope, receive_end, send_head)
        finally:
            scope["method"] = "HEAD"


def options_of(request: Request, allowed: str) -> Response:
    """Return the answer to OPTIONS. allowed: what the path answers otherwise, as the header `Allow` has it."""
    methods = {*allowed.replace(" ", "").split(","), "HEAD"} - {request.method}
    return Response(status_code=204, headers={"Allow": ", ".join([*sorted(methods), request.method])})
