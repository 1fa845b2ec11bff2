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
from gateway.mcp.messages import Message, MessageRefused

_LEGACY: Final = {None, *HANDSHAKE_PROTOCOL_VERSIONS}
_NO_BODY: Final = {"type": "http.request", "body": b"", "more_body": False}


@dataclass(slots=True)
class _Session:
    principal: str
    endpoint: ASGIApp
    deletion: Scope
    """The DELETE request by which the session's own client would end it."""
    under_way: int = 0


class LegacySessions:
    """The sessions of all endpoints. Opening one beyond the limit ends the session that was idle longest.

    So abandoned sessions do not block new ones. A client that uses an ended session gets 404 and initializes another,
    as the protocol requires. Its runs continue, and the same call attaches to them.
    """

    def __init__(self, limits: LimitSettings) -> None:
        self._most = limits.sessions
        self._most_of_one = limits.sessions_per_principal
        self._open: dict[str, _Session] = {}
        self._answering: dict[tuple[str, str], asyncio.Event] = {}

    async def serve(
        self,
        endpoint: ASGIApp,
        scope: Scope,
        receive: Receive,
        send: Send,
        principal: str,
        message: Message | None = None,
    ) -> None:
        """Serve a principal's request, which may open, use or end a session. Raises MessageRefused."""
        headers = Headers(scope=scope)
        session = headers.get(MCP_SESSION_ID_HEADER)
        if headers.get(MCP_PROTOCOL_VERSION_HEADER) not in _LEGACY:
            await endpoint(scope, receive, send)
        elif session is None:
            await self._open_one(endpoint, scope, receive, send, principal)
        else:
            with self._use(session, principal):
                async with self._turn(session, message):
                    ended = await _served(endpoint, scope, receive, send)
            if ended is not None and scope["method"] == "DELETE":
                self._open.pop(session, None)

    async def _open_one(
        self, endpoint: ASGIApp, scope: Scope, receive: Receive, send: Send, principal: str
    ) -> None:
        opened = await _served(endpoint, scope, receive, send)
        if opened is None:
            return
        headers = [
            (MCP_SESSION_ID_HEADER.encode(), opened.encode()),
            (b"host", Headers(scope=scope)["host"].encode()),
        ]
        deletion = {**scope, "method": "DELETE", "headers": headers}
        self._open[opened] = _Session(principal, endpoint, deletion)
        own = [session for session, kept in self._open.items() if kept.principal == principal]
        if len(own) > self._most_of_one:
            await self._end(self._silent(own))
        if len(self._open) > self._most:
            await self._end(self._silent(self._open))

    def _silent(self, sessions: Iterable[str]) -> str:
        """Return the longest idle of sessions in the order of their last requests, and the first if all are busy.

        The last session, which was just opened, is left out.
        """
        *earlier, _ = sessions
        return next((session for session in earlier if not self._open[session].under_way), earlier[0])

    async def _end(self, session: str) -> None:
        async def receive() -> Event:
            return dict(_NO_BODY)

        async def send(event: Event) -> None:
            del event

        ended = self._open.pop(session)
        await ended.endpoint(ended.deletion, receive, send)

    @contextmanager
    def _use(self, session: str, principal: str) -> Iterator[None]:
        kept = self._open.get(session)
        if kept is None or kept.principal != principal:
            yield
            return
        self._open[session] = self._open.pop(session)
        kept.under_way += 1
        try:
            yield
        finally:
            kept.under_way -= 1

    @asynccontextmanager
    async def _turn(self, session: str, message: Message | None) -> AsyncIterator[None]:
        """Serve requests with the same id one after the other: the SDK would answer only one of two at once."""
        if message is None or not message.is_request:
            yield
            return
        if message.id == GET_STREAM_KEY:
            raise MessageRefused(
                f"{message.id!r} is no id for a request here. Use another one.", answers=message.id
            )
        asked = (session, str(message.id))
        while (earlier := self._answering.get(asked)) is not None:
            await earlier.wait()
        self._answering[asked] = answered = asyncio.Event()
        try:
            yield
        finally:
            del self._answering[asked]
            answered.set()


async def _served(endpoint: ASGIApp, scope: Scope, receive: Receive, send: Send) -> str | None:
    """Serve a request and return the session id that a successful response names."""
    named: str | None = None

    async def watch(event: Event) -> None:
        nonlocal named
        if event["type"] == "http.response.start" and event["status"] < 400:
            named = Headers(raw=event["headers"]).get(MCP_SESSION_ID_HEADER)
        await send(event)

    await endpoint(scope, receive, watch)
    return named
