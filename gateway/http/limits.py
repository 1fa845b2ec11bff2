"""How large a request's body may be, and how long it may take to arrive; what it says is for others to judge."""

import asyncio
import re
from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.settings import LimitSettings

# A body of usual size is always taken; what is larger shares the room for this many of the largest.
_USUAL_BODY: Final = 64 * 1024
_LARGEST_AT_ONCE: Final = 32
_DIGITS: Final = re.compile(r"[0-9]{1,18}")


class BodyLimits:
    """Raises HTTPException in whoever reads a body: 413 if it is too large, 408 if too slow, 503 without room for it.

    Nothing is read before somebody asks for it, so that a caller who is refused by their headers costs no memory.
    """

    def __init__(self, app: ASGIApp, limits: LimitSettings) -> None:
        self._app = app
        self._limits = limits
        self._room = _LARGEST_AT_ONCE * limits.body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, and hold the room that its body takes until it is served."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, Headers(scope=scope).get("content-length"), self)
        try:
            await self._app(scope, body.receive, send)
        finally:
            self._room += body.taken

    def take(self, size: int) -> None:
        """Take room for this much of a body."""
        if size > self._room:
            detail = "Many large requests are under way. Try again in a moment."
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, detail, {"Retry-After": "1"})
        self._room -= size

    @property
    def largest(self) -> int:
        """The most bytes of one body."""
        return self._limits.body

    @property
    def arrival(self) -> float:
        """The most seconds from when a body is asked for until all of it is there."""
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
            # The connection stays, so that who is still sending can read this before they find it closed.
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
