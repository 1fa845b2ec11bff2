"""MCP clients: that of the `mcp` package, and lean ones of both eras that send only what the protocol requires."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import count
from typing import Any

import httpx2
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CLIENT_CAPABILITIES_META_KEY, CLIENT_INFO_META_KEY, PROTOCOL_VERSION_META_KEY

from engine.wire import OUTCOME_META

Call = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
"""Calls a tool by name with arguments, and returns its value, or the status while there is none."""

_PROTOCOL = "2026-07-28"
_LEGACY_PROTOCOL = "2025-11-25"
_ACCEPT = {"Accept": "application/json, text/event-stream"}
_ASKS_BY_LINK: dict[str, Any] = {"elicitation": {"url": {}}}
_META = {
    PROTOCOL_VERSION_META_KEY: _PROTOCOL,
    CLIENT_INFO_META_KEY: {"name": "bench", "version": "0"},
    CLIENT_CAPABILITIES_META_KEY: {},
}
_TIMEOUT_SECONDS = 120.0


@asynccontextmanager
async def connections() -> AsyncIterator[httpx2.AsyncClient]:
    """Open an HTTP client whose connections any number of lean clients share."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=100)
    async with httpx2.AsyncClient(timeout=_TIMEOUT_SECONDS, trust_env=False, limits=limits) as http:
        yield http


def lean(http: httpx2.AsyncClient, url: str, token: str | None = None) -> Call:
    """Return a client of protocol 2026-07-28, which sends one POST for each call."""
    numbers = count(1)
    headers = {
        **_authorization(token),
        **_ACCEPT,
        "MCP-Protocol-Version": _PROTOCOL,
        "Mcp-Method": "tools/call",
    }

    async def call(tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        params = {"name": tool, "arguments": arguments, "_meta": _META}
        body = _request("tools/call", params, next(numbers))
        answer = await http.post(url, headers={**headers, "Mcp-Name": tool}, json=body)
        return _read_outcome(_message(answer.raise_for_status())["result"])

    return call


async def session(http: httpx2.AsyncClient, url: str, token: str | None = None) -> Call:
    """Open a client of protocol 2025-11-25 with a session of its own."""
    numbers, headers = count(2), await _open_session(http, url, token, {})

    async def call(tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        body = _request("tools/call", {"name": tool, "arguments": arguments}, next(numbers))
        answer = await http.post(url, headers=headers, json=body)
        return _read_outcome(_message(answer.raise_for_status())["result"])

    return call


@asynccontextmanager
async def waiting(
    http: httpx2.AsyncClient, url: str, token: str, tool: str, arguments: dict[str, Any], *, legacy: bool
) -> AsyncIterator[None]:
    """Hold a call open that waits for a sign-in. The client has shown the link, and its connection stays open."""
    async with AsyncExitStack() as exit_stack:
        hold = _hold_session if legacy else _hold_round
        await hold(exit_stack, http, url, token, tool, arguments)
        yield


async def _hold_round(
    exit_stack: AsyncExitStack,
    http: httpx2.AsyncClient,
    url: str,
    token: str,
    tool: str,
    arguments: dict[str, Any],
) -> None:
    headers = {
        **_authorization(token),
        **_ACCEPT,
        "MCP-Protocol-Version": _PROTOCOL,
        "Mcp-Method": "tools/call",
        "Mcp-Name": tool,
    }
    meta = {**_META, CLIENT_CAPABILITIES_META_KEY: _ASKS_BY_LINK}
    params = {"name": tool, "arguments": arguments, "_meta": meta}
    round_result = await http.post(url, headers=headers, json=_request("tools/call", params, 1))
    result = _message(round_result.raise_for_status())["result"]
    answers = {key: {"action": "accept"} for key in result["inputRequests"]}
    params |= {"requestState": result["requestState"], "inputResponses": answers}
    await _hold(exit_stack, http, url, headers, _request("tools/call", params, 2))


async def _hold_session(
    exit_stack: AsyncExitStack,
    http: httpx2.AsyncClient,
    url: str,
    token: str,
    tool: str,
    arguments: dict[str, Any],
) -> None:
    headers = await _open_session(http, url, token, _ASKS_BY_LINK)
    stream = http.stream(
        "POST", url, headers=headers, json=_request("tools/call", {"name": tool, "arguments": arguments}, 2)
    )
    answer = (await exit_stack.enter_async_context(stream)).raise_for_status()
    async for line in answer.aiter_lines():
        message = json.loads(line.removeprefix("data: ")) if line.startswith("data: {") else {}
        if message.get("method") == "elicitation/create":
            acceptance = {"jsonrpc": "2.0", "id": message["id"], "result": {"action": "accept"}}
            (await http.post(url, headers=headers, json=acceptance)).raise_for_status()
            return


async def _hold(
    exit_stack: AsyncExitStack,
    http: httpx2.AsyncClient,
    url: str,
    headers: dict[str, str],
    body: dict[str, Any],
) -> None:
    holding = asyncio.create_task(http.post(url, headers=headers, json=body))

    async def let_go() -> None:
        holding.cancel()
        with suppress(asyncio.CancelledError):
            await holding

    exit_stack.push_async_callback(let_go)


async def _open_session(
    http: httpx2.AsyncClient, url: str, token: str | None, capabilities: dict[str, Any]
) -> dict[str, str]:
    """Open a session and return its headers."""
    headers = {**_authorization(token), **_ACCEPT}
    about = {
        "protocolVersion": _LEGACY_PROTOCOL,
        "capabilities": capabilities,
        "clientInfo": {"name": "bench", "version": "0"},
    }
    answer = await http.post(url, headers=headers, json=_request("initialize", about, 1))
    headers |= {
        "Mcp-Session-Id": answer.raise_for_status().headers["mcp-session-id"],
        "MCP-Protocol-Version": _LEGACY_PROTOCOL,
    }
    initialized_notification = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    (await http.post(url, headers=headers, json=initialized_notification)).raise_for_status()
    return headers


@asynccontextmanager
async def open_packaged_client(url: str, token: str | None = None) -> AsyncIterator[Call]:
    """Open the client of the `mcp` package."""
    http = httpx2.AsyncClient(headers=_authorization(token), timeout=_TIMEOUT_SECONDS, trust_env=False)
    async with http, Client(streamable_http_client(url, http_client=http)) as client:

        async def call(tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
            outcome: dict[str, Any] = (await client.call_tool(tool, arguments)).structured_content or {}
            return outcome

        yield call


def _request(method: str, params: dict[str, Any], number: int) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


def _read_outcome(result: dict[str, Any]) -> dict[str, Any]:
    """Return the value of a call, or its status while there is none."""
    outcome: dict[str, Any] = result.get("structuredContent") or result["_meta"][OUTCOME_META]
    return outcome


def _message(answer: httpx2.Response) -> Any:
    """Return the response, which is an event of a stream if the call took long."""
    if answer.headers["content-type"].startswith("text/event-stream"):
        return json.loads(answer.text.rpartition("data: ")[2])
    return answer.json()


def _authorization(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}
