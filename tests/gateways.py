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
from tests.e2e.rounds import ENVELOPE, VERSION
from tests.foreign.process import free_port
from tests.platform import Platform, until, variables
from tests.rest import Rest
from tests.sandbox import ROOT

LEGACY = "2025-11-25"
INITIALIZE = {
    "protocolVersion": LEGACY,
    "capabilities": {},
    "clientInfo": {"name": "by hand", "version": "1"},
}


@dataclass(frozen=True)
class Gateway(Rest):
    """A gateway process, and its port of 127.0.0.1."""

    port: int
    process: asyncio.subprocess.Process

    def memory(self) -> int:
        """The memory that it holds now, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        held = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(held.split()[1]) * 1024

    @asynccontextmanager
    async def mcp(self, subject: str, path: str = MCP_PATH) -> AsyncIterator["ByHand"]:
        """Somebody at an MCP endpoint who sends what they like."""
        token = await self.token(await self.person(subject, subject.title()), path)
        async with httpx2.AsyncClient(timeout=60) as http:
            yield ByHand(http, f"{self.url}{path}", token)


@asynccontextmanager
async def gateway_process(platform: Platform, log: Path, **environment: str) -> AsyncIterator[Gateway]:
    """A gateway of the platform at a port of its own; `environment` says what is different about it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    known = {**platform.environment, **variables(platform.settings, platform.settings.temporal.task_queue)}
    own = {"BYLINE_GATEWAY__PORT": str(port), "BYLINE_GATEWAY__PUBLIC_URL": url}
    async with started({**os.environ, **known, **own, **environment}, log) as process:
        gateway = platform.settings.gateway.model_copy(update={"public_url": url})
        settings = platform.settings.model_copy(update={"gateway": gateway})
        yield Gateway(url, replace(platform.services, settings=settings), port, process)


@asynccontextmanager
async def started(environment: Mapping[str, str], log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
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
        await until(answers)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@dataclass(frozen=True)
class ByHand:
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
        return await self.http.post(self.url, content=content, headers=[*self.usual.items(), *pairs])

    async def modern(
        self, method: str, params: Mapping[str, Any] | None = None, *, number: Any = 1, **headers: str
    ) -> httpx2.Response:
        """One request of 2026-07-28."""
        asked = {"_meta": ENVELOPE, **(params or {})}
        body = {"jsonrpc": "2.0", "id": number, "method": method, "params": asked}
        return await self.post(body, {**routed(method, asked), **named(headers)})

    async def call(self, tool: str, arguments: Any, **more: Any) -> httpx2.Response:
        """One round of a tool call of 2026-07-28."""
        return await self.modern("tools/call", {"name": tool, "arguments": arguments, **more})

    async def open_session(self) -> str:
        """A new session of 2025-11-25."""
        body = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": INITIALIZE}
        answered = await self.post(body, {})
        assert answered.status_code == 200, answered.text
        session = answered.headers["Mcp-Session-Id"]
        told = await self.post(
            {"jsonrpc": "2.0", "method": "notifications/initialized"}, self.within(session)
        )
        assert told.status_code == 202, told.text
        return str(session)

    async def legacy(
        self, session: str, method: str, params: Any = None, *, number: Any = 1, **headers: str
    ) -> httpx2.Response:
        """One request of a session."""
        asked = {} if params is None else {"params": params}
        body = {"jsonrpc": "2.0", "id": number, "method": method, **asked}
        return await self.post(body, {**self.within(session), **named(headers)})

    @asynccontextmanager
    async def stream(self, session: str, **headers: str) -> AsyncIterator[httpx2.Response]:
        """What a session is told of its own accord, for as long as somebody listens."""
        sent = {**self.usual, **self.within(session), **named(headers)}
        async with self.http.stream("GET", self.url, headers=sent) as response:
            yield response

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """What a stream of 2026-07-28 tells of changes to the lists of tools, from when it has begun to."""
        params = {"_meta": ENVELOPE, "notifications": {"toolsListChanged": True}}
        body = {"jsonrpc": "2.0", "id": 1, "method": "subscriptions/listen", "params": params}
        sent = {**self.usual, **routed("subscriptions/listen")}
        async with self.http.stream("POST", self.url, json=body, headers=sent) as response:
            told = messages(response)
            begun = await anext(told)
            assert begun["method"] == "notifications/subscriptions/acknowledged", begun
            yield told

    @property
    def usual(self) -> dict[str, str]:
        """What every request has."""
        return {
            "Accept": "application/json, text/event-stream",
            "Content-Type": "application/json",
            "Authorization": f"Bearer {self.token}",
        }

    def within(self, session: str) -> dict[str, str]:
        """What every request of a session has."""
        return {"Mcp-Session-Id": session, "MCP-Protocol-Version": LEGACY}


def routed(method: str, params: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The headers that repeat what a body of 2026-07-28 says."""
    name = (params or {}).get("name")
    routing = {"MCP-Protocol-Version": VERSION, "Mcp-Method": method}
    return {**routing, "Mcp-Name": encode_header_value(name)} if isinstance(name, str) else routing


def named(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers as Python can name them."""
    return {name.replace("_", "-"): value for name, value in headers.items()}


async def messages(response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    """The messages of an event stream, as they come."""
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))
