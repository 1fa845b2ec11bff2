"""Middleware that admits one well-formed JSON-RPC message a request, within the limits of requests per principal."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Final

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import TokenVerifier
from mcp.server.streamable_http import LAST_EVENT_ID_HEADER, MCP_SESSION_ID_HEADER
from mcp.shared.inbound import MCP_METHOD_HEADER, MCP_NAME_HEADER, MCP_PROTOCOL_VERSION_HEADER
from mcp_types import HEADER_MISMATCH, INTERNAL_ERROR, INVALID_REQUEST, ErrorData, JSONRPCError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.settings import LimitSettings
from gateway.bearer import PersonalToken, refused
from gateway.mcp.legacy_sessions import LegacySessions
from gateway.mcp.messages import MessageRefused, read_message

# These headers may occur once only: of two copies, a proxy could have read the one and Byline would read the other.
_ROUTING: Final = (MCP_PROTOCOL_VERSION_HEADER, MCP_METHOD_HEADER, MCP_NAME_HEADER)
_SINGLE: Final = ("authorization", "content-type", "host", "origin", MCP_SESSION_ID_HEADER)


class Bounds:
    """Counts the running requests and sessions of each principal, over all MCP endpoints of a gateway."""

    def __init__(self, limits: LimitSettings) -> None:
        self.sessions: Final = LegacySessions(limits)
        self._most = limits.requests_per_principal
        self._under_way = Counter[str]()

    @contextmanager
    def request(self, principal: str) -> Iterator[None]:
        """Count a request of this principal as running; raises MessageRefused (429) where too many run already."""
        if self._under_way[principal] >= self._most:
            msg = f"{self._most} requests at once are the most. Let one of them end first."
            again = {"Retry-After": "1"}
            raise MessageRefused(msg, INTERNAL_ERROR, HTTPStatus.TOO_MANY_REQUESTS, headers=again)
        self._under_way[principal] += 1
        try:
            yield
        finally:
            self._under_way[principal] -= 1
            if not self._under_way[principal]:
                del self._under_way[principal]


class Admission:
    """ASGI middleware between bearer authentication and an MCP endpoint.

    It passes requests without a valid token on unchanged, so that the endpoint answers them with 401.
    """

    def __init__(self, app: ASGIApp, bounds: Bounds, tokens: TokenVerifier) -> None:
        self._app = app
        self._bounds = bounds
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with a JSON-RPC error."""
        user = scope.get("user")
        if not isinstance(user, AuthenticatedUser) or not isinstance(user.access_token, PersonalToken):
            await self._app(scope, receive, send)
            return
        token = user.access_token
        try:
            with self._bounds.request(token.principal.id):
                await self._admit(scope, receive, send, token)
        except MessageRefused as error:
            await _refusal(error)(scope, receive, send)

    async def _admit(self, scope: Scope, receive: Receive, send: Send, token: PersonalToken) -> None:
        principal = token.principal.id
        headers = Headers(scope=scope)
        _require_single(headers)
        if scope["method"] != "POST":
            # No event is stored for redelivery, and the SDK sends no response at all to a request with Last-Event-ID.
            rest = [each for each in scope["headers"] if each[0] != LAST_EVENT_ID_HEADER.encode()]
            ended = asyncio.create_task(refused(self._tokens, token.token))
            try:
                await self._bounds.sessions.serve(
                    self._app, {**scope, "headers": rest}, _received_until(ended, receive), send, principal
                )
            finally:
                ended.cancel()
            return
        body = await _read(receive)
        message = read_message(body, headers.get(MCP_PROTOCOL_VERSION_HEADER))
        unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return unread.pop() if unread else await receive()

        await self._bounds.sessions.serve(self._app, scope, replay, send, principal, message)


def _require_single(headers: Headers) -> None:
    for name in (*_ROUTING, *_SINGLE):
        if len(headers.getlist(name)) > 1:
            code = HEADER_MISMATCH if name in _ROUTING else INVALID_REQUEST
            raise MessageRefused(f"The header {name} is there more than once.", code)


def _received_until(ended: asyncio.Task[None], receive: Receive) -> Receive:
    """Wrap `receive` so that it returns `http.disconnect` once the task `ended` is done."""

    async def received() -> Message:
        coming = asyncio.ensure_future(receive())
        try:
            await asyncio.wait({coming, ended}, return_when=asyncio.FIRST_COMPLETED)
            return coming.result() if coming.done() else {"type": "http.disconnect"}
        finally:
            coming.cancel()

    return received


async def _read(receive: Receive) -> bytes:
    """Read the whole body; raises MessageRefused where it exceeds the gateway's limits."""
    body = bytearray()
    while True:
        try:
            message = await receive()
        except HTTPException as error:
            raise MessageRefused(error.detail, status=error.status_code, headers=error.headers) from error
        body += message.get("body", b"")
        if message["type"] != "http.request" or not message.get("more_body", False):
            return bytes(body)


def _refusal(refusal: MessageRefused) -> Response:
    error = ErrorData(code=refusal.code, message=str(refusal))
    answer = JSONRPCError(jsonrpc="2.0", id=refusal.answers, error=error)
    body = answer.model_dump_json(by_alias=True, exclude_unset=True)
    return Response(body, refusal.status, dict(refusal.headers or {}), "application/json")
