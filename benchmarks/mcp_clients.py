"""Two MCP clients on kept connections: the `mcp` package's own, and one that sends only what the protocol asks."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import httpx2
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CLIENT_CAPABILITIES_META_KEY, CLIENT_INFO_META_KEY, PROTOCOL_VERSION_META_KEY

Call = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
"""Calls a tool by name with arguments, and returns its structured content."""

_PROTOCOL = "2026-07-28"
_META = {
    PROTOCOL_VERSION_META_KEY: _PROTOCOL,
    CLIENT_INFO_META_KEY: {"name": "bench", "version": "0"},
    CLIENT_CAPABILITIES_META_KEY: {},
}
_PATIENCE = 120.0


@asynccontextmanager
async def connections() -> AsyncIterator[httpx2.AsyncClient]:
    """Kept connections for any number of lean clients."""
    async with httpx2.AsyncClient(timeout=_PATIENCE, trust_env=False) as http:
        yield http


def lean(http: httpx2.AsyncClient, url: str, token: str | None = None) -> Call:
    """A client of protocol 2026-07-28 in one POST a call."""
    numbers = count(1)
    headers = {
        **_authorization(token),
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": _PROTOCOL,
        "Mcp-Method": "tools/call",
    }

    async def call(tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        body = {
            "jsonrpc": "2.0",
            "id": next(numbers),
            "method": "tools/call",
            "params": {"name": tool, "arguments": arguments, "_meta": _META},
        }
        answer = await http.post(url, headers={**headers, "Mcp-Name": tool}, json=body)
        found: dict[str, Any] = _message(answer.raise_for_status())["result"]["structuredContent"]
        return found

    return call


@asynccontextmanager
async def packaged(url: str, token: str | None = None) -> AsyncIterator[Call]:
    """The client that comes with the `mcp` package."""
    http = httpx2.AsyncClient(headers=_authorization(token), timeout=_PATIENCE, trust_env=False)
    async with http, Client(streamable_http_client(url, http_client=http)) as client:

        async def call(tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
            found: dict[str, Any] = (await client.call_tool(tool, arguments)).structured_content or {}
            return found

        yield call


def _message(answer: httpx2.Response) -> Any:
    """The answer, which comes as an event of a stream where the call took long."""
    if answer.headers["content-type"].startswith("text/event-stream"):
        return json.loads(answer.text.rpartition("data: ")[2])
    return answer.json()


def _authorization(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}
