"""Stands between Byline and its upstreams, passes everything on, and remembers every secret that went by."""

import asyncio
import base64
import socket
from collections.abc import AsyncIterator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote_plus

import httpx2
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

SECRET_FIELDS = frozenset(
    {"access_token", "client_secret", "code", "code_verifier", "id_token", "password", "refresh_token"}
)
HOP_BY_HOP = frozenset({"connection", "content-encoding", "content-length", "host", "transfer-encoding"})


@dataclass
class CapturedSecrets:
    """What nobody but the two ends of a request may ever know, by what it is called on the wire."""

    name_by_secret: dict[str, str] = field(default_factory=dict)

    def capture(self, request: httpx2.Request, response: httpx2.Response) -> None:
        """Take the secrets out of a request and its answer, both read to their end."""
        scheme, _, credential = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            self.name_by_secret[credential] = "access_token"
        elif scheme.lower() == "basic":
            self.name_by_secret[credential] = "basic credential"
            _, _, secret = base64.b64decode(credential).decode().partition(":")
            self.name_by_secret[unquote_plus(secret)] = "client_secret"
        if request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            self.capture_fields(dict(parse_qsl(request.content.decode())))
        if response.headers.get("content-type", "").startswith("application/json"):
            response_document = response.json()
            if isinstance(response_document, dict):
                self.capture_fields(response_document)

    def capture_fields(self, fields: Mapping[str, Any]) -> None:
        """Remember those fields that are secrets."""
        self.name_by_secret |= {
            value: name for name, value in fields.items() if name in SECRET_FIELDS and isinstance(value, str)
        }


class CapturingTransport(httpx2.AsyncBaseTransport):
    """A client's transport that remembers the secrets that it carries."""

    def __init__(self, secrets: CapturedSecrets) -> None:
        self._secrets = secrets
        self._wire = httpx2.AsyncHTTPTransport(limits=httpx2.Limits(max_keepalive_connections=0))

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._wire.handle_async_request(request)
        await request.aread()
        await response.aread()
        self._secrets.capture(request, response)
        return response

    async def aclose(self) -> None:
        await self._wire.aclose()


class Wiretap:
    """The application that passes what comes to `/name/…` on to the upstream of that name."""

    def __init__(
        self, upstreams: Mapping[str, str], secrets: CapturedSecrets, client: httpx2.AsyncClient
    ) -> None:
        self._upstreams = upstreams
        self._secrets = secrets
        self._client = client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        incoming_request = Request(scope, receive)
        _, name, path = incoming_request.url.path.split("/", 2)
        headers = {name: value for name, value in incoming_request.headers.items() if name not in HOP_BY_HOP}
        request = self._client.build_request(
            incoming_request.method,
            f"{self._upstreams[name]}/{path}",
            params=incoming_request.url.query or None,
            headers=headers,
            content=await incoming_request.body(),
        )
        response = await self._client.send(request)
        self._secrets.capture(request, response)
        kept_headers = {name: value for name, value in response.headers.items() if name not in HOP_BY_HOP}
        await Response(response.content, response.status_code, kept_headers)(scope, receive, send)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave Ctrl-C to the test run."""
        yield


@asynccontextmanager
async def run_wiretap(upstreams: Mapping[str, str], secrets: CapturedSecrets) -> AsyncIterator[str]:
    """The address under which each upstream is reached by its name."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with httpx2.AsyncClient(timeout=60) as client:
            tap = Wiretap(upstreams, secrets, client)
            server = _Server(uvicorn.Config(tap, log_level="warning", lifespan="off"))
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                server.should_exit = True
                await serving
