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
_UNRESERVED_BODY_BYTES: Final = 64 * 1024
_MAX_LARGEST_BODIES: Final = 32
_DIGITS_PATTERN: Final = re.compile(r"[0-9]{1,18}")


class BodyLimitMiddleware:
    """ASGI middleware that raises HTTPException where a body is read: 413 too large, 408 too slow, 503 no memory left.

    It reads nothing ahead, so a request that is refused because of its headers costs no memory.
    """

    def __init__(self, app: ASGIApp, limit_settings: LimitSettings) -> None:
        self._app = app
        self._limit_settings = limit_settings
        self._available_bytes = _MAX_LARGEST_BODIES * limit_settings.body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, and keep the memory reserved for its body until the response is complete."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limited_body = _LimitedBody(receive, Headers(scope=scope).get("content-length"), self)
        try:
            await self._app(scope, limited_body.receive_message, send)
        finally:
            self._available_bytes += limited_body.reserved_bytes

    def reserve_memory(self, requested_bytes: int) -> None:
        """Reserve memory for this many bytes of a body; raises HTTPException 503 where too little is left."""
        if requested_bytes > self._available_bytes:
            error_detail = "Many large requests are under way. Try again in a moment."
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, error_detail, {"Retry-After": "1"})
        self._available_bytes -= requested_bytes

    @property
    def max_body_bytes(self) -> int:
        """The maximum size of one body, in bytes."""
        return self._limit_settings.body

    @property
    def arrival_seconds(self) -> float:
        """The maximum time from the first read of a body until all of it has arrived, in seconds."""
        return self._limit_settings.arrival.total_seconds()


class _LimitedBody:
    def __init__(
        self, receive: Receive, content_length: str | None, body_limits: BodyLimitMiddleware
    ) -> None:
        self._receive = receive
        self._body_limits = body_limits
        self._declared_bytes = (
            int(content_length)
            if content_length is not None and _DIGITS_PATTERN.fullmatch(content_length)
            else 0
        )
        self._deadline: float | None = None
        self._received_bytes = 0
        self._is_complete = False
        self.reserved_bytes = 0

    async def receive_message(self) -> Message:
        if self._is_complete:
            return await self._receive()
        self._require_allowed_size(self._declared_bytes)
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._body_limits.arrival_seconds
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            error_detail = f"The body did not arrive within {self._body_limits.arrival_seconds:g} seconds."
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, error_detail, {"Connection": "close"}) from None
        self._is_complete = message["type"] != "http.request" or not message.get("more_body", False)
        self._received_bytes += len(message.get("body", b""))
        self._require_allowed_size(self._received_bytes)
        excess_bytes = self._received_bytes - _UNRESERVED_BODY_BYTES - self.reserved_bytes
        if excess_bytes > 0:
            self._body_limits.reserve_memory(excess_bytes)
            self.reserved_bytes += excess_bytes
        return message

    def _require_allowed_size(self, body_bytes: int) -> None:
        if body_bytes > self._body_limits.max_body_bytes:
            error_detail = f"The body is larger than {self._body_limits.max_body_bytes:,} bytes."
            # The connection stays open, so that a client that is still sending can read this response.
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, error_detail)
