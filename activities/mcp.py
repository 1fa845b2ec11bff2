"""A generic action on any MCP server of any protocol version: one call of one tool, over Streamable HTTP.

It answers no requests of the server, such as elicitation or sampling.
"""

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel, Field, JsonValue
from pydantic_core import from_json

from engine.sdk import action, upstream

_STATELESS: Final = "2026-07-28"
_WITH_SESSIONS: Final = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
_META: Final = "io.modelcontextprotocol"
_LINE_END: Final = re.compile(r"\r\n|\n|\r")
_CLIENT: Final = {"name": "Byline", "version": "1"}
_ACCEPT: Final = {"Accept": "application/json, text/event-stream"}
# 401, 403 and 429 concern sign-in, permission and rate limits, and tell nothing about the protocol version.
_REFUSALS: Final = frozenset(range(400, 500)) - {401, 403, 429}
# Only whole numbers of this size are quoted: other codes would put text of the server into a message of Byline.
_BEYOND_CODES: Final = 100_000

_has_sessions: dict[str, bool] = {}
"""Whether each server that this process called supports sessions, by its address."""


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
    name: str, *, connection: str, scopes: tuple[str, ...] = ()
) -> Callable[[ToolCall], Awaitable[ToolAnswer]]:
    """Make an action that calls any one tool of the MCP server of a connection; `name` is its wire name.

    The protocol version of the server is determined before the first call, and again after it has changed.
    """

    @action(name, connection=connection, scopes=scopes)
    async def call(called: ToolCall) -> ToolAnswer:
        """Call the tool."""
        server = upstream().address
        session = await _session(server)
        _has_sessions[server] = session is not None
        if session is not None:
            return await _in_session(called, session)
        try:
            return await _at_once(called)
        except Exception:
            # The server may have been set back to a version with sessions, so the next call determines it again.
            _has_sessions.pop(server, None)
            raise

    return call


async def _session(server: str) -> dict[str, str] | None:
    """Return the headers of a new session, or None if the server has no sessions and calls need none.

    Servers are distinguished as the protocol specifies (2026-07-28, Streamable HTTP, "Backward Compatibility"), by a
    request that calls no tool. Raises ValueError if the server supports no version that this module supports.
    """
    if _has_sessions.get(server) is False:
        return None
    session = await _begun() if server in _has_sessions else None
    if session is None and not await _is_stateless():
        session = await _begun()
        if session is None:
            spoken = ", ".join((_STATELESS, *_WITH_SESSIONS))
            raise ValueError(
                f"This is no MCP server, or one of another version than {spoken}: check the address of its connection."
            )
    return session


async def _is_stateless() -> bool:
    """Return whether the server answers requests without a session (2026-07-28)."""
    response = await upstream().request(
        "POST",
        "",
        changes=False,
        expected=_REFUSALS,
        json=_message("server/discover", {"_meta": _meta()}),
        headers={**_ACCEPT, "MCP-Protocol-Version": _STATELESS, "Mcp-Method": "server/discover"},
    )
    versions = _told(response.headers.get("Content-Type", ""), response.text).get("supportedVersions")
    return isinstance(versions, list) and _STATELESS in versions


async def _begun() -> dict[str, str] | None:
    """Initialize a session (2025-11-25, Lifecycle) and return its headers; None if the server starts none."""
    hello = {"protocolVersion": _WITH_SESSIONS[0], "capabilities": {}, "clientInfo": _CLIENT}
    response = await upstream().request(
        "POST", "", changes=False, expected=_REFUSALS, json=_message("initialize", hello), headers=_ACCEPT
    )
    agreed = _told(response.headers.get("Content-Type", ""), response.text).get("protocolVersion")
    if agreed not in _WITH_SESSIONS:
        return None
    headers = {"MCP-Protocol-Version": str(agreed)}
    if "Mcp-Session-Id" in response.headers:
        headers["Mcp-Session-Id"] = response.headers["Mcp-Session-Id"]
    told = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    await upstream().tell("POST", "", json=told, headers={**_ACCEPT, **headers})
    return headers


async def _in_session(called: ToolCall, session: Mapping[str, str]) -> ToolAnswer:
    """Call the tool, then terminate the session (2025-11-25, Transports, "Session Management")."""
    try:
        return _answer(await _call(called, _params(called), session))
    finally:
        if "Mcp-Session-Id" in session:
            await upstream().tell("DELETE", "", headers=session)


async def _at_once(called: ToolCall) -> ToolAnswer:
    """Call the tool by one request without a session (2026-07-28)."""
    headers = {"MCP-Protocol-Version": _STATELESS, "Mcp-Method": "tools/call", "Mcp-Name": called.tool}
    return _answer(await _call(called, {**_params(called), "_meta": _meta()}, headers))


async def _call(called: ToolCall, params: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
    response = await upstream().request(
        "POST",
        "",
        record=f"tool/{called.tool}",
        idempotent=called.read_only or None,
        json=_message("tools/call", params),
        headers={**_ACCEPT, **headers},
    )
    return _result(response.headers.get("Content-Type", ""), response.text)


def _meta() -> dict[str, Any]:
    meta = {"protocolVersion": _STATELESS, "clientCapabilities": {}, "clientInfo": _CLIENT}
    return {f"{_META}/{key}": value for key, value in meta.items()}


def _params(called: ToolCall) -> dict[str, Any]:
    return {"name": called.tool, "arguments": called.arguments}


def _message(method: str, params: Mapping[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


def _result(content_type: str, body: str) -> dict[str, Any]:
    """Return the result of our request from plain JSON or an event stream; raises ValueError if there is none."""
    is_stream = content_type.partition(";")[0].strip().lower() == "text/event-stream"
    for message in _events(body) if is_stream else iter([body]):
        found = from_json(message)
        if isinstance(found, dict) and found.get("id") == 1 and "method" not in found:
            if isinstance(found.get("result"), dict):
                result: dict[str, Any] = found["result"]
                return result
            code = found["error"].get("code") if isinstance(found.get("error"), dict) else None
            known = code if isinstance(code, int) and abs(code) < _BEYOND_CODES else "without a code"
            raise ValueError(
                f"The MCP server refuses the call (JSON-RPC error {known}): check the tool and its arguments."
            )
    raise ValueError("The MCP server's answer holds no result of the call.")


def _told(content_type: str, body: str) -> dict[str, Any]:
    """Return the result of our request, or an empty dict if there is none."""
    try:
        return _result(content_type, body)
    except ValueError:
        return {}


def _events(body: str) -> Iterator[str]:
    """Yield the data of each server-sent event."""
    data: list[str] = []
    for line in [*_LINE_END.split(body), ""]:
        if line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
        elif not line and data:
            yield "\n".join(data)
            data = []


def _answer(result: Mapping[str, Any]) -> ToolAnswer:
    if result.get("resultType", "complete") != "complete":
        raise ValueError(
            "The MCP server's tool asks something back, which a tool called from Byline cannot answer."
        )
    parts = result.get("content")
    texts = (
        [str(part.get("text", "")) for part in parts if isinstance(part, dict) and part.get("type") == "text"]
        if isinstance(parts, list)
        else []
    )
    return ToolAnswer(
        text="\n".join(texts),
        structured=result.get("structuredContent"),
        is_error=result.get("isError") is True,
    )
