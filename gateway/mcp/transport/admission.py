"""Middleware that admits one well-formed JSON-RPC message per request, within the limits of requests per principal."""

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
from gateway.bearer.principal_token import PrincipalToken
from gateway.bearer.verifiers import wait_until_invalid
from gateway.mcp.transport.admitted_request import AdmittedRequest, attach_admitted_request
from gateway.mcp.transport.legacy_sessions import LegacySessions
from gateway.mcp.transport.messages import MessageRefused, read_message

# These headers may occur once only: of two copies, a proxy could have read the one and Byline would read the other.
_ROUTING_HEADERS: Final = (MCP_PROTOCOL_VERSION_HEADER, MCP_METHOD_HEADER, MCP_NAME_HEADER)
_SINGLE_HEADERS: Final = ("authorization", "content-type", "host", "origin", MCP_SESSION_ID_HEADER)


class CallerLimits:
    """Counts the running requests and sessions of each principal, over all MCP endpoints of a gateway."""

    def __init__(self, limits: LimitSettings) -> None:
        self.legacy_sessions: Final = LegacySessions(limits)
        self._max_requests = limits.requests_per_principal
        self._running_requests = Counter[str]()

    @contextmanager
    def count_request(self, principal_id: str) -> Iterator[None]:
        """Count a request of this principal as running; raises MessageRefused (429) where too many run already."""
        if self._running_requests[principal_id] >= self._max_requests:
            msg = f"{self._max_requests} requests at once are the most. Let one of them end first."
            retry_headers = {"Retry-After": "1"}
            raise MessageRefused(
                msg, INTERNAL_ERROR, HTTPStatus.TOO_MANY_REQUESTS, response_headers=retry_headers
            )
        self._running_requests[principal_id] += 1
        try:
            yield
        finally:
            self._running_requests[principal_id] -= 1
            if not self._running_requests[principal_id]:
                del self._running_requests[principal_id]


class AdmissionMiddleware:
    """ASGI middleware between bearer authentication and an MCP endpoint.

    It passes requests without a valid token on unchanged, so that the endpoint answers them with 401.
    """

    def __init__(self, app: ASGIApp, caller_limits: CallerLimits, token_verifier: TokenVerifier) -> None:
        self._app = app
        self._caller_limits = caller_limits
        self._token_verifier = token_verifier

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with a JSON-RPC error."""
        user = scope.get("user")
        if not isinstance(user, AuthenticatedUser) or not isinstance(user.access_token, PrincipalToken):
            await self._app(scope, receive, send)
            return
        principal_token = user.access_token
        serve_request = self._serve_message if scope["method"] == "POST" else self._serve_stream
        try:
            with self._caller_limits.count_request(principal_token.principal.id):
                _require_single_headers(Headers(scope=scope))
                await serve_request(scope, receive, send, principal_token)
        except MessageRefused as error:
            await _build_refusal_response(error)(scope, receive, send)

    async def _serve_message(
        self, scope: Scope, receive: Receive, send: Send, principal_token: PrincipalToken
    ) -> None:
        """Serve a POST. Its body is read and parsed here, and passed on unchanged."""
        request_body = await _read_body(receive)
        message = read_message(request_body, Headers(scope=scope).get(MCP_PROTOCOL_VERSION_HEADER))
        unread_messages: list[Message] = [{"type": "http.request", "body": request_body, "more_body": False}]

        async def replay_body() -> Message:
            return unread_messages.pop() if unread_messages else await receive()

        await self._serve_admitted(scope, replay_body, send, AdmittedRequest(principal_token, message))

    async def _serve_stream(
        self, scope: Scope, receive: Receive, send: Send, principal_token: PrincipalToken
    ) -> None:
        """Serve any other method, such as the GET of a session's stream, which ends when its token does."""
        # No event is stored for redelivery, and the SDK sends no response at all to a request with Last-Event-ID.
        remaining_headers = [
            header_pair for header_pair in scope["headers"] if header_pair[0] != LAST_EVENT_ID_HEADER.encode()
        ]
        token_invalid_task = asyncio.create_task(
            wait_until_invalid(self._token_verifier, principal_token.token)
        )
        try:
            await self._serve_admitted(
                {**scope, "headers": remaining_headers},
                _receive_until(token_invalid_task, receive),
                send,
                AdmittedRequest(principal_token, message=None),
            )
        finally:
            token_invalid_task.cancel()

    async def _serve_admitted(
        self, scope: Scope, receive: Receive, send: Send, admitted_request: AdmittedRequest
    ) -> None:
        admitted_scope = attach_admitted_request(scope, admitted_request)
        await self._caller_limits.legacy_sessions.serve_request(
            self._app, admitted_scope, receive, send, admitted_request
        )


def _require_single_headers(headers: Headers) -> None:
    for header_name in (*_ROUTING_HEADERS, *_SINGLE_HEADERS):
        if len(headers.getlist(header_name)) > 1:
            error_code = HEADER_MISMATCH if header_name in _ROUTING_HEADERS else INVALID_REQUEST
            raise MessageRefused(f"The header {header_name} is there more than once.", error_code)


def _receive_until(ending_task: asyncio.Task[None], receive: Receive) -> Receive:
    """Wrap `receive` so that it returns `http.disconnect` once the task is done."""

    async def receive_or_disconnect() -> Message:
        receive_task = asyncio.ensure_future(receive())
        try:
            await asyncio.wait({receive_task, ending_task}, return_when=asyncio.FIRST_COMPLETED)
            return receive_task.result() if receive_task.done() else {"type": "http.disconnect"}
        finally:
            receive_task.cancel()

    return receive_or_disconnect


async def _read_body(receive: Receive) -> bytes:
    """Read the whole body; raises MessageRefused where it exceeds the gateway's limits."""
    request_body = bytearray()
    while True:
        try:
            message = await receive()
        except HTTPException as error:
            raise MessageRefused(
                error.detail, status_code=error.status_code, response_headers=error.headers
            ) from error
        request_body += message.get("body", b"")
        if message["type"] != "http.request" or not message.get("more_body", False):
            return bytes(request_body)


def _build_refusal_response(refusal: MessageRefused) -> Response:
    error_data = ErrorData(code=refusal.json_rpc_code, message=str(refusal))
    error_response = JSONRPCError(jsonrpc="2.0", id=refusal.request_id, error=error_data)
    response_body = error_response.model_dump_json(by_alias=True, exclude_unset=True)
    return Response(
        response_body, refusal.status_code, dict(refusal.response_headers or {}), "application/json"
    )
