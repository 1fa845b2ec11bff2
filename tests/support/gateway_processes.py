"""Gateways as processes of their own on a platform, which can be killed, and what clients send them by hand."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
from mcp.shared.inbound import encode_header_value

from gateway.dev.readiness import is_ready
from gateway.toolsets import MCP_PATH
from tests.support.api_server import ApiServer
from tests.support.foreign.process import free_port
from tests.support.mcp_requests import ENVELOPE, VERSION
from tests.support.platform import Platform, variables, wait_until
from tests.support.sandbox_systems import ROOT

LEGACY = "2025-11-25"
INITIALIZE = {
    "protocolVersion": LEGACY,
    "capabilities": {},
    "clientInfo": {"name": "by hand", "version": "1"},
}


@dataclass(frozen=True)
class GatewayProcess(ApiServer):
    """A gateway process, and its port of 127.0.0.1."""

    port: int
    process: asyncio.subprocess.Process

    def read_memory_bytes(self) -> int:
        """The memory that it holds now, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        memory_line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(memory_line.split()[1]) * 1024

    @asynccontextmanager
    async def connect_mcp(self, subject: str, path: str = MCP_PATH) -> AsyncIterator["RawMcpClient"]:
        """Somebody at an MCP endpoint who sends what they like."""
        token = await self.issue_token(await self.add_person(subject, subject.title()), path)
        async with httpx2.AsyncClient(timeout=60) as http:
            yield RawMcpClient(http, f"{self.url}{path}", token)


@asynccontextmanager
async def run_gateway_process(
    platform: Platform, log: Path, **environment: str
) -> AsyncIterator[GatewayProcess]:
    """A gateway of the platform at a port of its own; `environment` says what is different about it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    platform_variables = {
        **platform.environment,
        **variables(platform.settings, platform.settings.temporal.task_queue),
    }
    own = {"BYLINE_GATEWAY__PORT": str(port), "BYLINE_GATEWAY__PUBLIC_URL": url}
    async with start_gateway({**os.environ, **platform_variables, **own, **environment}, log) as process:
        gateway = platform.settings.gateway.model_copy(update={"public_url": url})
        settings = platform.settings.model_copy(update={"gateway": gateway})
        yield GatewayProcess(url, replace(platform.services, settings=settings), port, process)


@asynccontextmanager
async def start_gateway(
    environment: Mapping[str, str], log: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A gateway as this environment says, from when it answers at its port."""
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway.cli", "gateway"),
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
        )

    async def answers() -> bool:
        assert process.returncode is None, log.read_text()
        return await is_ready(f"http://127.0.0.1:{environment['BYLINE_GATEWAY__PORT']}/healthz")

    try:
        await wait_until(answers)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@dataclass(frozen=True)
class RawMcpClient:
    """Sends single messages with a bearer token, each with the headers that belong to it and others besides."""

    http: httpx2.AsyncClient
    url: str
    token: str

    async def post(
        self, body: bytes | Any, headers: Mapping[str, str] | Sequence[tuple[str, str]]
    ) -> httpx2.Response:
        """Send a body of bytes, or of JSON."""
        pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
        content = json.dumps(body) if isinstance(body, dict) else body
        return await self.http.post(self.url, content=content, headers=[*self.usual_headers.items(), *pairs])

    async def send_modern(
        self, method: str, params: Mapping[str, Any] | None = None, *, number: Any = 1, **headers: str
    ) -> httpx2.Response:
        """One request of 2026-07-28."""
        params_with_envelope = {"_meta": ENVELOPE, **(params or {})}
        body = {"jsonrpc": "2.0", "id": number, "method": method, "params": params_with_envelope}
        return await self.post(
            body, {**build_routing_headers(method, params_with_envelope), **name_headers(headers)}
        )

    async def call_tool(self, tool: str, arguments: Any, **more: Any) -> httpx2.Response:
        """One round of a tool call of 2026-07-28."""
        return await self.send_modern("tools/call", {"name": tool, "arguments": arguments, **more})

    async def open_session(self) -> str:
        """A new session of 2025-11-25."""
        body = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": INITIALIZE}
        initialize_response = await self.post(body, {})
        assert initialize_response.status_code == 200, initialize_response.text
        session = initialize_response.headers["Mcp-Session-Id"]
        notification_response = await self.post(
            {"jsonrpc": "2.0", "method": "notifications/initialized"}, self.session_headers(session)
        )
        assert notification_response.status_code == 202, notification_response.text
        return str(session)

    async def send_legacy(
        self, session: str, method: str, params: Any = None, *, number: Any = 1, **headers: str
    ) -> httpx2.Response:
        """One request of a session."""
        params_member = {} if params is None else {"params": params}
        body = {"jsonrpc": "2.0", "id": number, "method": method, **params_member}
        return await self.post(body, {**self.session_headers(session), **name_headers(headers)})

    @asynccontextmanager
    async def open_stream(self, session: str, **headers: str) -> AsyncIterator[httpx2.Response]:
        """What a session is told of its own accord, for as long as somebody listens."""
        request_headers = {**self.usual_headers, **self.session_headers(session), **name_headers(headers)}
        async with self.http.stream("GET", self.url, headers=request_headers) as response:
            yield response

    @asynccontextmanager
    async def open_listener(self) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """What a stream of 2026-07-28 tells of changes to the lists of tools, from when it has begun to."""
        params = {"_meta": ENVELOPE, "notifications": {"toolsListChanged": True}}
        body = {"jsonrpc": "2.0", "id": 1, "method": "subscriptions/listen", "params": params}
        request_headers = {**self.usual_headers, **build_routing_headers("subscriptions/listen")}
        async with self.http.stream("POST", self.url, json=body, headers=request_headers) as response:
            notifications = read_messages(response)
            acknowledgement = await anext(notifications)
            assert acknowledgement["method"] == "notifications/subscriptions/acknowledged", acknowledgement
            yield notifications

    @property
    def usual_headers(self) -> dict[str, str]:
        """What every request has."""
        return {
            "Accept": "application/json, text/event-stream",
            "Content-Type": "application/json",
            "Authorization": f"Bearer {self.token}",
        }

    def session_headers(self, session: str) -> dict[str, str]:
        """What every request of a session has."""
        return {"Mcp-Session-Id": session, "MCP-Protocol-Version": LEGACY}


def build_routing_headers(method: str, params: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The headers that repeat what a body of 2026-07-28 says."""
    name = (params or {}).get("name")
    routing = {"MCP-Protocol-Version": VERSION, "Mcp-Method": method}
    return {**routing, "Mcp-Name": encode_header_value(name)} if isinstance(name, str) else routing


def name_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers as Python can name them."""
    return {name.replace("_", "-"): value for name, value in headers.items()}


async def read_messages(response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    """The messages of an event stream, as they come."""
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))
