"""A reverse proxy before several gateways: it passes everything on as it streams, and understands no MCP."""

import asyncio
import contextlib
import itertools
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx2
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"transfer-encoding"})
_SESSION = "mcp-session-id"


@dataclass
class Proxy:
    """Takes each gateway in turn, or where it is `sticky`, the one that made the session that a request names."""

    gateways: Sequence[int]
    sticky: bool = False
    only: int | None = None
    """The place of the one gateway that is taken now, whatever else would be."""
    served_counts: Counter[int] = field(default_factory=Counter)
    """How many requests the gateway at each place has answered."""
    under_way: int = 0
    """How many requests were passed on and not answered to their end."""
    _sessions: dict[str, int] = field(default_factory=dict)
    _turns: Iterable[int] = field(default_factory=itertools.count)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; if its gateway does not listen any more, to the next one."""
        request = Request(scope, receive)
        body = await request.body()
        first = self._place(request)
        # One after the other and a connection each: a gateway that was killed holds nobody up.
        async with httpx2.AsyncClient(
            timeout=None, limits=httpx2.Limits(max_keepalive_connections=0)
        ) as http:
            for place in range(first, first + len(self.gateways)):
                with contextlib.suppress(httpx2.ConnectError):
                    await self._pass(http, place % len(self.gateways), request, body, send)
                    return
            await Response("No gateway listens.", 502)(scope, receive, send)

    def _place(self, request: Request) -> int:
        if self.only is not None:
            return self.only
        turn = next(iter(self._turns)) % len(self.gateways)
        return self._sessions.get(request.headers.get(_SESSION, ""), turn) if self.sticky else turn

    async def _pass(
        self, http: httpx2.AsyncClient, place: int, request: Request, body: bytes, send: Send
    ) -> None:
        there = f"http://127.0.0.1:{self.gateways[place]}{request.url.path}"
        query = f"?{request.url.query}" if request.url.query else ""
        forwarded_request = http.build_request(
            request.method, there + query, headers=_drop_hop_headers(request.scope["headers"]), content=body
        )
        disconnect_task = asyncio.create_task(_wait_for_disconnect(request))
        answering = asyncio.create_task(self._answer(http, forwarded_request, place, send))
        self.under_way += 1
        try:
            await asyncio.wait({disconnect_task, answering}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
        finally:
            self.under_way -= 1
            for task in (disconnect_task, answering):
                task.cancel()
            await asyncio.gather(disconnect_task, answering, return_exceptions=True)

    async def _answer(
        self, http: httpx2.AsyncClient, forwarded_request: httpx2.Request, place: int, send: Send
    ) -> None:
        has_begun = False
        try:
            answer = await http.send(forwarded_request, stream=True)
            self.served_counts[place] += 1
            if _SESSION in answer.headers:
                self._sessions[answer.headers[_SESSION]] = place
            headers = _drop_hop_headers(answer.headers.raw)
            await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
            has_begun = True
            async for chunk in answer.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (httpx2.ReadError, httpx2.RemoteProtocolError):
            # It died in the middle: what it had begun to say ends here too.
            if has_begun:
                raise
            await Response("The gateway is gone.", 502)({"type": "http"}, _nothing, send)


def _drop_hop_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if name.lower() not in _HOP_BY_HOP]


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _nothing() -> dict[str, str]:
    return {"type": "http.disconnect"}


@asynccontextmanager
async def run_proxy(proxy: Proxy, port: int) -> AsyncIterator[None]:
    """Have the proxy listen at this port of 127.0.0.1."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        config = uvicorn.Config(proxy, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield
        finally:
            server.should_exit = True
            await serving
