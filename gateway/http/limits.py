"""Middleware that limits the size of request bodies and the time in which they have to arrive."""

import asyncio
import re
from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.settings import LimitSettings

# Bodies up to this size need no reservation. Larger ones share memory for this many bodies of the maximum size.
_USUAL_BODY: Final = 64 * 1024
_LARGEST_AT_ONCE: Final = 32
_DIGITS: Final = re.compile(r"[0-9]{1,18}")


class BodyLimits:
    """ASGI middleware that raises HTTPException where a body is read: 413 too large, 408 too slow, 503 no memory left.

    It reads nothing ahead, so a request that is refused because of its headers costs no memory.
    """

    def __init__(self, app: ASGIApp, limits: LimitSettings) -> None:
        self._app = app
        self._limits = limits
        self._room = _LARGEST_AT_ONCE * limits.body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, and keep the memory reserved for its body until the response is complete."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, Headers(scope=scope).get("content-length"), self)
        try:
            await self._app(scope, body.receive, send)
        finally:
            self._room += body.taken

    def take(self, size: int) -> None:
        """Reserve memory for this many bytes of a body; raises HTTPException 503 where too little is left."""
        if size > self._room:
            detail = "Many large requests are under way. Try again in a moment."
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, detail, {"Retry-After": "1"})
        self._room -= size

    @property
    def largest(self) -> int:
        """The maximum size of one body, in bytes."""
        return self._limits.body

    @property
    def arrival(self) -> float:
        """The maximum time from the first read of a body until all of it has arrived, in seconds."""
        return self._limits.arrival


class _Body:
    def __init__(self, receive: Receive, declared: str | None, limits: BodyLimits) -> None:
        self._receive = receive
        self._limits = limits
        self._declared = int(declared) if declared is not None and _DIGITS.fullmatch(declared) else 0
        self._deadline: float | None = None
        self._size = 0
        self._complete = False
        self.taken = 0

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        self._require_size(self._declared)
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._limits.arrival
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            detail = f"The body did not arrive within {self._limits.arrival:g} seconds."
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, detail, {"Connection": "close"}) from None
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)
        self._size += len(message.get("body", b""))
        self._require_size(self._size)
        beyond = self._size - _USUAL_BODY - self.taken
        if beyond > 0:
            self._limits.take(beyond)
            self.taken += beyond
        return message

    def _require_size(self, size: int) -> None:
        if size > self._limits.largest:
            detail = f"The body is larger than {self._limits.largest:,} bytes."
            # The connection stays open, so that a client that is still sending can read this response.
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
