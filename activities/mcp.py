"""Actions on any MCP server: one call of one of its tools, over streamable HTTP; nothing asked back is answered."""

import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, Field, JsonValue

from engine.sdk import action, upstream

MODERN: Final = "2026-07-28"
LEGACY: Final = "2025-11-25"
ProtocolVersion = Literal["2026-07-28", "2025-11-25"]

_META: Final = "io.modelcontextprotocol"
_LINE_END: Final = re.compile(r"\r\n|\n|\r")
_CLIENT: Final = {"name": "Byline", "version": "1"}
_ACCEPT: Final = {"Accept": "application/json, text/event-stream"}


class ToolCall(BaseModel):
    """A tool of the server, and its arguments; `read_only` says that calling it twice is harmless."""

    tool: str = Field(pattern="^[!-~]+$")
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    read_only: bool = False


class ToolAnswer(BaseModel):
    """What the tool said; where `is_error`, that it could not do what was asked, and why."""

    text: str
    structured: JsonValue = None
    is_error: bool = False


def mcp_action(
    name: str, *, connection: str, scopes: tuple[str, ...] = (), protocol: ProtocolVersion = MODERN
) -> Callable[[ToolCall], Awaitable[ToolAnswer]]:
    """An action that calls any one tool of the MCP server of a connection; `name` is its wire name.

    `protocol` is the version that the server speaks; the older one takes a session, and so three requests more.
    """

    @action(name, connection=connection, scopes=scopes)
    async def call(called: ToolCall) -> ToolAnswer:
        """Call the tool."""
        return await (_in_a_session(called) if protocol == LEGACY else _at_once(called))

    return call


async def _at_once(called: ToolCall) -> ToolAnswer:
    """One request that says all (protocol 2026-07-28)."""
    meta = {"protocolVersion": MODERN, "clientCapabilities": {}, "clientInfo": _CLIENT}
    params = {**_params(called), "_meta": {f"{_META}/{key}": value for key, value in meta.items()}}
    headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/call", "Mcp-Name": called.tool}
    return _answer(await _send("tools/call", params, headers, idempotent=called.read_only or None))


async def _in_a_session(called: ToolCall) -> ToolAnswer:
    """A handshake, the call, and the end of the session (protocol 2025-11-25)."""
    hello = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": _CLIENT}
    greeted = await upstream().request(
        "POST", "", idempotent=True, json=_message("initialize", hello), headers=_ACCEPT
    )
    agreed = _result(greeted.headers.get("Content-Type", ""), greeted.text).get("protocolVersion")
    headers = {"MCP-Protocol-Version": str(agreed)}
    session = greeted.headers.get("Mcp-Session-Id")
    if session is not None:
        headers["Mcp-Session-Id"] = session
    told = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    await upstream().request("POST", "", idempotent=True, json=told, headers={**_ACCEPT, **headers})
    result = await _send("tools/call", _params(called), headers, idempotent=called.read_only or None)
    return _answer(result)


async def _send(
    method: str, params: Mapping[str, Any], headers: Mapping[str, str], *, idempotent: bool | None
) -> dict[str, Any]:
    record = f"tool/{params['name']}"
    response = await upstream().request(
        "POST",
        "",
        record=record,
        idempotent=idempotent,
        json=_message(method, params),
        headers={**_ACCEPT, **headers},
    )
    return _result(response.headers.get("Content-Type", ""), response.text)


def _params(called: ToolCall) -> dict[str, Any]:
    return {"name": called.tool, "arguments": called.arguments}


def _message(method: str, params: Mapping[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


def _result(content_type: str, body: str) -> dict[str, Any]:
    """The result of our one request, in plain JSON or in a stream of events; raises ValueError where there is none."""
    is_stream = content_type.partition(";")[0].strip().lower() == "text/event-stream"
    for message in _events(body) if is_stream else iter([body]):
        found = json.loads(message)
        if isinstance(found, dict) and found.get("id") == 1 and "method" not in found:
            if isinstance(found.get("result"), dict):
                result: dict[str, Any] = found["result"]
                return result
            code = found["error"].get("code") if isinstance(found.get("error"), dict) else None
            raise ValueError(
                f"The MCP server refuses the call (JSON-RPC error {code}): check the tool and its arguments."
            )
    raise ValueError("The MCP server's answer holds no result of the call.")


def _events(body: str) -> Iterator[str]:
    """The data of each server-sent event."""
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
