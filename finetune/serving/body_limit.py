"""Refuses requests with a body that is too large, before it is read into memory."""

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """ASGI middleware that answers 413 to bodies of more than `max_bytes`."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes
        self._detail = f"The body has more than {max_bytes:,} bytes."

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_bytes:
            headers = {"Connection": "close"}
            await JSONResponse({"detail": self._detail}, 413, headers)(scope, receive, send)
            return
        received = 0

        async def receive_limited() -> Message:
            """Also counts what is sent in chunks, whose length no header says."""
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise HTTPException(413, self._detail, {"Connection": "close"})
            return message

        await self._app(scope, receive_limited, send)
