"""Sends single requests of protocol 2026-07-28, so that a test can do what no client does; it drives no rounds."""

import json
from collections.abc import Mapping
from typing import Any

import httpx2

VERSION = "2026-07-28"
_META = "io.modelcontextprotocol"
ENVELOPE = {
    f"{_META}/protocolVersion": VERSION,
    f"{_META}/clientCapabilities": {"elicitation": {"url": {}}},
}


async def call_tool(
    url: str, token: str | None, tool: str, arguments: Mapping[str, Any], **more: Any
) -> httpx2.Response:
    """Send one round of a tool call."""
    params = {"name": tool, "arguments": arguments, **more}
    return await send_request(url, token, "tools/call", params, name=tool)


async def send_request(
    url: str,
    token: str | None,
    method: str,
    params: Mapping[str, Any],
    *,
    name: str,
    capabilities: Mapping[str, Any] | None = None,
) -> httpx2.Response:
    """Send one request about what has this name, as a client of these capabilities or one that shows links."""
    headers = {
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": VERSION,
        "Mcp-Method": method,
        "Mcp-Name": name,
    }
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    declared_capabilities = {} if capabilities is None else {f"{_META}/clientCapabilities": capabilities}
    body = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": method,
        "params": {"_meta": ENVELOPE | declared_capabilities, **params},
    }
    async with httpx2.AsyncClient(timeout=60) as http:
        return await http.post(url, json=body, headers=headers)


def read_answer(response: httpx2.Response) -> dict[str, Any]:
    """The JSON-RPC answer, also where it came as an event stream."""
    if response.headers["content-type"].startswith("text/event-stream"):
        *_, last = (line for line in response.text.splitlines() if line.startswith("data: "))
        return dict(json.loads(last.removeprefix("data: ")))
    return dict(response.json())
