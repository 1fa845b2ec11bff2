"""Limit the sessions of MCP's older protocols, and serialise requests with the same id, so that each is answered.

The SDK holds the sessions, each with its own memory and tasks, and ends idle ones. The modern protocol has none.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

from mcp.server.streamable_http import GET_STREAM_KEY, MCP_SESSION_ID_HEADER
from mcp.shared.inbound import MCP_PROTOCOL_VERSION_HEADER
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.types import Message as Event

from engine.settings import LimitSettings
from gateway.mcp.transport.admitted_request import AdmittedRequest, attach_admitted_request
from gateway.mcp.transport.messages import JsonRpcMessage, MessageRefused

_LEGACY_VERSIONS: Final = {None, *HANDSHAKE_PROTOCOL_VERSIONS}
_EMPTY_BODY_EVENT: Final = {"type": "http.request", "body": b"", "more_body": False}


@dataclass(slots=True)
class _LegacySession:
    principal_id: str
    endpoint_app: ASGIApp
    deletion_scope: Scope
    """The DELETE request by which the session's own client would end it."""
    running_requests: int = 0


class LegacySessions:
    """The sessions of all endpoints. Opening one beyond the limit ends the session that was idle longest.

    So abandoned sessions do not block new ones. A client that uses an ended session gets 404 and initializes another,
    as the protocol requires. Its runs continue, and the same call attaches to them.
    """

    def __init__(self, limit_settings: LimitSettings) -> None:
        self._max_sessions = limit_settings.sessions
        self._max_principal_sessions = limit_settings.sessions_per_principal
        self._open_sessions: dict[str, _LegacySession] = {}
        self._answering_events: dict[tuple[str, str], asyncio.Event] = {}

    async def serve_request(
        self,
        endpoint_app: ASGIApp,
        scope: Scope,
        receive: Receive,
        send: Send,
        admitted_request: AdmittedRequest,
    ) -> None:
        """Serve an admitted request, which may open, use or end a session. Raises MessageRefused."""
        headers = Headers(scope=scope)
        session_id = headers.get(MCP_SESSION_ID_HEADER)
        if headers.get(MCP_PROTOCOL_VERSION_HEADER) not in _LEGACY_VERSIONS:
            await endpoint_app(scope, receive, send)
        elif session_id is None:
            await self._open_session(endpoint_app, scope, receive, send, admitted_request)
        else:
            with self._use_session(session_id, admitted_request.principal_id):
                async with self._wait_for_turn(session_id, admitted_request.message):
                    response_session_id = await _serve_and_find_session(endpoint_app, scope, receive, send)
            if response_session_id is not None and scope["method"] == "DELETE":
                self._open_sessions.pop(session_id, None)

    async def _open_session(
        self,
        endpoint_app: ASGIApp,
        scope: Scope,
        receive: Receive,
        send: Send,
        admitted_request: AdmittedRequest,
    ) -> None:
        new_session_id = await _serve_and_find_session(endpoint_app, scope, receive, send)
        if new_session_id is None:
            return
        deletion_headers = [
            (MCP_SESSION_ID_HEADER.encode(), new_session_id.encode()),
            (b"host", Headers(scope=scope)["host"].encode()),
        ]
        deletion_scope = attach_admitted_request(
            {**scope, "method": "DELETE", "headers": deletion_headers},
            AdmittedRequest(admitted_request.token, message=None),
        )
        principal_id = admitted_request.principal_id
        self._open_sessions[new_session_id] = _LegacySession(principal_id, endpoint_app, deletion_scope)
        own_session_ids = [
            session_id
            for session_id, open_session in self._open_sessions.items()
            if open_session.principal_id == principal_id
        ]
        if len(own_session_ids) > self._max_principal_sessions:
            await self._end_session(self._find_longest_idle(own_session_ids))
        if len(self._open_sessions) > self._max_sessions:
            await self._end_session(self._find_longest_idle(self._open_sessions))

    def _find_longest_idle(self, session_ids: Iterable[str]) -> str:
        """Return the longest idle of sessions in the order of their last requests, and the first if all are busy.

        The last session, which was just opened, is left out.
        """
        *earlier_session_ids, _ = session_ids
        return next(
            (
                session_id
                for session_id in earlier_session_ids
                if not self._open_sessions[session_id].running_requests
            ),
            earlier_session_ids[0],
        )

    async def _end_session(self, session_id: str) -> None:
        async def receive() -> Event:
            return dict(_EMPTY_BODY_EVENT)

        async def ignore_response(_event: Event) -> None:
            return

        legacy_session = self._open_sessions.pop(session_id)
        await legacy_session.endpoint_app(legacy_session.deletion_scope, receive, ignore_response)

    @contextmanager
    def _use_session(self, session_id: str, principal_id: str) -> Iterator[None]:
        legacy_session = self._open_sessions.get(session_id)
        if legacy_session is None or legacy_session.principal_id != principal_id:
            yield
            return
        self._open_sessions[session_id] = self._open_sessions.pop(session_id)
        legacy_session.running_requests += 1
        try:
            yield
        finally:
            legacy_session.running_requests -= 1

    @asynccontextmanager
    async def _wait_for_turn(self, session_id: str, message: JsonRpcMessage | None) -> AsyncIterator[None]:
        """Serve requests with the same id one after the other: the SDK would answer only one of two at once."""
        if message is None or not message.is_request:
            yield
            return
        if message.id == GET_STREAM_KEY:
            raise MessageRefused(
                f"{message.id!r} is no id for a request here. Use another one.", request_id=message.id
            )
        request_key = (session_id, str(message.id))
        while (earlier_event := self._answering_events.get(request_key)) is not None:
            await earlier_event.wait()
        self._answering_events[request_key] = answered_event = asyncio.Event()
        try:
            yield
        finally:
            del self._answering_events[request_key]
            answered_event.set()


async def _serve_and_find_session(
    endpoint_app: ASGIApp, scope: Scope, receive: Receive, send: Send
) -> str | None:
    """Serve a request and return the session id that a successful response names."""
    session_id: str | None = None

    async def watch_response(event: Event) -> None:
        nonlocal session_id
        if event["type"] == "http.response.start" and event["status"] < 400:
            session_id = Headers(raw=event["headers"]).get(MCP_SESSION_ID_HEADER)
        await send(event)

    await endpoint_app(scope, receive, watch_response)
    return session_id
