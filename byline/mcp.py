"""A generic action on any MCP server of any protocol version: one call of one tool, over Streamable HTTP.

It answers no requests of the server, such as elicitation or sampling.
"""

import re
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel, Field, JsonValue
from pydantic_core import from_json

from engine.sdk import action, upstream

_STATELESS_VERSION: Final = "2026-07-28"
_SESSION_VERSIONS: Final = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
_META_PREFIX: Final = "io.modelcontextprotocol"
_LINE_END: Final = re.compile(r"\r\n|\n|\r")
_CLIENT_INFO: Final = {"name": "Byline", "version": "1"}
_ACCEPT_HEADER: Final = {"Accept": "application/json, text/event-stream"}
# 401, 403 and 429 concern sign-in, permission and rate limits, and tell nothing about the protocol version.
_VERSION_REFUSAL_STATUSES: Final = frozenset(range(400, 500)) - {401, 403, 429}
# Only whole numbers of this size are quoted: other codes would put text of the server into a message of Byline.
_ERROR_CODE_LIMIT: Final = 100_000


class ToolCall(BaseModel):
    """A tool of the server and its arguments; `read_only` says that calling it twice is harmless."""

    tool: str = Field(pattern="^[!-~]+$")
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    read_only: bool = False


class ToolAnswer(BaseModel):
    """The result of the tool. With `is_error`, the tool failed, and `text` says why."""

    text: str
    structured: JsonValue = None
    is_error: bool = False


def mcp_action(
    name: str, *, connection: str, scopes: tuple[str, ...] = (), reading_tools: Collection[str] = ()
) -> Callable[[ToolCall], Awaitable[ToolAnswer]]:
    """Make an action that calls one tool of the MCP server of a connection; `name` is its wire name.

    With `reading_tools`, which name tools that change nothing, the action only reads and refuses to call any other
    tool. Without them it calls any tool. The protocol version of the server is determined before a process's first
    call, and again after it has changed.
    """
    # Whether each server that was called supports sessions, by its address.
    session_support: dict[str, bool] = {}

    @action(name, connection=connection, scopes=scopes, reads_only=bool(reading_tools))
    async def call_tool(tool_call: ToolCall) -> ToolAnswer:
        """Call the tool."""
        changes = False if tool_call.tool in reading_tools else None
        server_address = upstream().address
        session_headers = await _open_session(session_support.get(server_address))
        session_support[server_address] = session_headers is not None
        if session_headers is not None:
            return await _call_in_session(tool_call, session_headers, changes=changes)
        try:
            return await _call_without_session(tool_call, changes=changes)
        except Exception:
            # The server may have been set back to a version with sessions, so the next call determines it again.
            session_support.pop(server_address, None)
            raise

    return call_tool


async def _open_session(supports_sessions: bool | None) -> dict[str, str] | None:  # noqa: FBT001 -- None: not known yet
    """Return the headers of a new session, or None if the server has no sessions and calls need none.

    Servers are distinguished as the protocol specifies (2026-07-28, Streamable HTTP, "Backward Compatibility"), by a
    request that calls no tool. Raises ValueError if the server supports no version that this module supports.
    """
    if supports_sessions is False:
        return None
    session_headers = await _initialize_session() if supports_sessions else None
    if session_headers is None and not await _is_stateless():
        session_headers = await _initialize_session()
        if session_headers is None:
            supported_versions = ", ".join((_STATELESS_VERSION, *_SESSION_VERSIONS))
            raise ValueError(
                f"This is no MCP server, or one of another version than {supported_versions}: "
                "check the address of its connection."
            )
    return session_headers


async def _is_stateless() -> bool:
    """Return whether the server answers requests without a session (2026-07-28)."""
    response = await upstream().request(
        "POST",
        "",
        changes=False,
        expected=_VERSION_REFUSAL_STATUSES,
        json=_build_rpc_message("server/discover", {"_meta": _build_meta()}),
        headers={
            **_ACCEPT_HEADER,
            "MCP-Protocol-Version": _STATELESS_VERSION,
            "Mcp-Method": "server/discover",
        },
    )
    supported_versions = _read_result_or_empty(response.headers.get("Content-Type", ""), response.text).get(
        "supportedVersions"
    )
    return isinstance(supported_versions, list) and _STATELESS_VERSION in supported_versions


async def _initialize_session() -> dict[str, str] | None:
    """Initialize a session (2025-11-25, Lifecycle) and return its headers; None if the server starts none."""
    initialize_params = {
        "protocolVersion": _SESSION_VERSIONS[0],
        "capabilities": {},
        "clientInfo": _CLIENT_INFO,
    }
    response = await upstream().request(
        "POST",
        "",
        changes=False,
        expected=_VERSION_REFUSAL_STATUSES,
        json=_build_rpc_message("initialize", initialize_params),
        headers=_ACCEPT_HEADER,
    )
    protocol_version = _read_result_or_empty(response.headers.get("Content-Type", ""), response.text).get(
        "protocolVersion"
    )
    if protocol_version not in _SESSION_VERSIONS:
        return None
    session_headers = {"MCP-Protocol-Version": str(protocol_version)}
    if "Mcp-Session-Id" in response.headers:
        session_headers["Mcp-Session-Id"] = response.headers["Mcp-Session-Id"]
    initialized_notification = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    await upstream().tell(
        "POST",
        "",
        changes=False,
        json=initialized_notification,
        headers={**_ACCEPT_HEADER, **session_headers},
    )
    return session_headers


async def _call_in_session(
    tool_call: ToolCall, session_headers: Mapping[str, str], *, changes: bool | None
) -> ToolAnswer:
    """Call the tool, then terminate the session (2025-11-25, Transports, "Session Management")."""
    try:
        return _to_tool_answer(
            await _send_tool_call(tool_call, _build_call_params(tool_call), session_headers, changes=changes)
        )
    finally:
        if "Mcp-Session-Id" in session_headers:
            await upstream().tell("DELETE", "", changes=False, headers=session_headers)


async def _call_without_session(tool_call: ToolCall, *, changes: bool | None) -> ToolAnswer:
    """Call the tool by one request without a session (2026-07-28)."""
    request_headers = {
        "MCP-Protocol-Version": _STATELESS_VERSION,
        "Mcp-Method": "tools/call",
        "Mcp-Name": tool_call.tool,
    }
    return _to_tool_answer(
        await _send_tool_call(
            tool_call,
            {**_build_call_params(tool_call), "_meta": _build_meta()},
            request_headers,
            changes=changes,
        )
    )


async def _send_tool_call(
    tool_call: ToolCall,
    call_params: Mapping[str, Any],
    request_headers: Mapping[str, str],
    *,
    changes: bool | None,
) -> dict[str, Any]:
    response = await upstream().request(
        "POST",
        "",
        record=f"tool/{tool_call.tool}",
        changes=changes,
        idempotent=tool_call.read_only or None,
        json=_build_rpc_message("tools/call", call_params),
        headers={**_ACCEPT_HEADER, **request_headers},
    )
    return _read_result(response.headers.get("Content-Type", ""), response.text)


def _build_meta() -> dict[str, Any]:
    meta_values = {
        "protocolVersion": _STATELESS_VERSION,
        "clientCapabilities": {},
        "clientInfo": _CLIENT_INFO,
    }
    return {f"{_META_PREFIX}/{meta_key}": meta_value for meta_key, meta_value in meta_values.items()}


def _build_call_params(tool_call: ToolCall) -> dict[str, Any]:
    return {"name": tool_call.tool, "arguments": tool_call.arguments}


def _build_rpc_message(rpc_method: str, rpc_params: Mapping[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": rpc_method, "params": rpc_params}


def _read_result(content_type: str, response_body: str) -> dict[str, Any]:
    """Return the result of our request from plain JSON or an event stream; raises ValueError if there is none."""
    is_stream = content_type.partition(";")[0].strip().lower() == "text/event-stream"
    for rpc_message in _iterate_event_data(response_body) if is_stream else iter([response_body]):
        rpc_response = from_json(rpc_message)
        if isinstance(rpc_response, dict) and rpc_response.get("id") == 1 and "method" not in rpc_response:
            if isinstance(rpc_response.get("result"), dict):
                rpc_result: dict[str, Any] = rpc_response["result"]
                return rpc_result
            error_code = (
                rpc_response["error"].get("code") if isinstance(rpc_response.get("error"), dict) else None
            )
            shown_error_code = (
                error_code
                if isinstance(error_code, int) and abs(error_code) < _ERROR_CODE_LIMIT
                else "without a code"
            )
            raise ValueError(
                f"The MCP server refuses the call (JSON-RPC error {shown_error_code}): check "
                "the tool and its arguments."
            )
    raise ValueError("The MCP server's answer holds no result of the call.")


def _read_result_or_empty(content_type: str, response_body: str) -> dict[str, Any]:
    """Return the result of our request, or an empty dict if there is none."""
    try:
        return _read_result(content_type, response_body)
    except ValueError:
        return {}


def _iterate_event_data(response_body: str) -> Iterator[str]:
    """Yield the data of each server-sent event."""
    data_lines: list[str] = []
    for event_line in [*_LINE_END.split(response_body), ""]:
        if event_line.startswith("data:"):
            data_lines.append(event_line.removeprefix("data:").removeprefix(" "))
        elif not event_line and data_lines:
            yield "\n".join(data_lines)
            data_lines = []


def _to_tool_answer(tool_result: Mapping[str, Any]) -> ToolAnswer:
    if tool_result.get("resultType", "complete") != "complete":
        raise ValueError(
            "The MCP server's tool asks something back, which a tool called from Byline cannot answer."
        )
    content_blocks = tool_result.get("content")
    text_parts = (
        [
            str(content_block.get("text", ""))
            for content_block in content_blocks
            if isinstance(content_block, dict) and content_block.get("type") == "text"
        ]
        if isinstance(content_blocks, list)
        else []
    )
    return ToolAnswer(
        text="\n".join(text_parts),
        structured=tool_result.get("structuredContent"),
        is_error=tool_result.get("isError") is True,
    )
