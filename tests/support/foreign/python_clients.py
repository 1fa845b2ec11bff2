"""Calls a tool through MCP clients written in Python, in this process; like the others, they open no link."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

import fastmcp
import httpx2
from fastmcp.client.transports import StreamableHttpTransport
from mcp.client.client import Client
from mcp.client.context import ClientRequestContext
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, ElicitRequestParams, ElicitRequestURLParams, ElicitResult

from tests.support.foreign.mcp_client import ANSWER_WITHIN, Decision, Event, ToolCall

Say = Callable[[Event], None]


@asynccontextmanager
async def python_call(
    url: str,
    token: str,
    tool: str,
    arguments: Mapping[str, Any],
    *,
    mode: Literal["auto", "legacy"],
    decision: Decision = "accept",
    patience: float = ANSWER_WITHIN,
) -> AsyncIterator[ToolCall]:
    """Call the tool with the client of the Python SDK, which can be asked to open links."""

    async def converse(say: Say) -> CallToolResult:
        async def elicit(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
            del context
            assert isinstance(params, ElicitRequestURLParams)
            say({"open": params.url, "message": params.message})
            return ElicitResult(action=decision)

        async with (
            httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=ANSWER_WITHIN) as http,
            Client(
                streamable_http_client(url, http_client=http), mode=mode, elicitation_callback=elicit
            ) as client,
        ):
            say({"protocol": client.protocol_version})
            await client.list_tools()
            return await client.call_tool(tool, dict(arguments), read_timeout_seconds=patience)

    async with _run_conversation(converse) as call:
        yield call


@asynccontextmanager
async def fastmcp_call(
    url: str, token: str, tool: str, arguments: Mapping[str, Any], *, patience: float = ANSWER_WITHIN
) -> AsyncIterator[ToolCall]:
    """Call the tool with fastmcp's client, which is left unable to ask anything."""

    async def converse(say: Say) -> CallToolResult:
        async with fastmcp.Client(StreamableHttpTransport(url, auth=token), timeout=patience) as client:
            say({"protocol": client.session.protocol_version})
            await client.list_tools()
            result: CallToolResult = await client.call_tool_mcp(tool, dict(arguments))
            return result

    async with _run_conversation(converse) as call:
        yield call


@asynccontextmanager
async def _run_conversation(
    converse: Callable[[Say], Coroutine[None, None, CallToolResult]],
) -> AsyncIterator[ToolCall]:
    events: asyncio.Queue[Event] = asyncio.Queue()

    async def report_result() -> None:
        try:
            result = await converse(events.put_nowait)
        except Exception as error:  # noqa: BLE001 -- whatever a client gives up with, its caller is told
            events.put_nowait({"error": repr(error)})
        else:
            events.put_nowait({"result": result.model_dump(by_alias=True, mode="json", exclude_none=True)})

    conversing = asyncio.create_task(report_result())
    try:
        yield ToolCall(events.get)
    finally:
        conversing.cancel()
        await asyncio.wait({conversing})
