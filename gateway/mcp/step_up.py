"""Middleware that answers insufficient tokens: 401, or 403 with the scopes that are needed.

The SDK requires one set of scopes for a whole endpoint and does not name it in its challenge. Here the policy may
require a further scope for a tool.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.errors import ResourceUnknown
from engine.registry import Registry
from engine.services import Services
from gateway.bearer import PersonalToken
from gateway.mcp import search
from gateway.mcp.results import COLLECT
from gateway.protected_resource import first_scopes, metadata_address
from gateway.toolsets import mcp_paths

# A body is parsed with both parsers that the SDK uses, one for each era, since they differ on malformed JSON.
_READERS: Final[tuple[Callable[[bytes], Any], ...]] = (json.loads, from_json)


class StepUp:
    """ASGI middleware between bearer authentication and an MCP endpoint, whose responses it does not change."""

    def __init__(self, app: ASGIApp, services: Services, registry: Registry) -> None:
        self._app = app
        self._registry = registry
        self._runs = services.runs
        self._policy = services.policy
        self._first = first_scopes(services.settings)
        self._metadata = {
            path: metadata_address(services.settings, path) for path in mcp_paths(services.settings)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request with a sufficient token on, and answer any other with a challenge."""
        metadata = self._metadata.get(scope["path"]) if scope["type"] == "http" else None
        if metadata is None:
            await self._app(scope, receive, send)
            return
        user = scope.get("user")
        if not isinstance(user, AuthenticatedUser):
            await self._unauthorized(scope, metadata)(scope, receive, send)
            return
        held = list(dict.fromkeys(user.scopes))
        missing = [each for each in self._first if each not in held]
        # The body is read ahead only where the token lacks a scope that the policy requires for some tool.
        if not missing and scope["method"] == "POST" and not self._policy.scopes.issubset(held):
            body, receive = await _read_ahead(receive)
            asked = {await self._asked(message, user) for message in _messages(body)}
            needed = {self._policy.scope_of(name) for name in asked if name is not None}
            missing = sorted(each for each in needed if each is not None and each not in held)
        if missing:
            await _insufficient(held, missing, metadata)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _asked(self, message: Mapping[str, Any], user: AuthenticatedUser) -> str | None:
        """Return the name of the tool, prompt or resource that a message is about, directly or through its run."""
        params = message.get("params")
        match message.get("method"), params:
            case "tools/call", {"name": search.CALL, "arguments": {"name": name, **rest}}:
                params = {"name": name, "arguments": rest.get("arguments")}
        match message.get("method"), params:
            case "tools/call", {"name": str(name), "arguments": {"run_id": run_id}} if name == COLLECT:
                return await self._of_run(run_id, user)
            case "tools/call" | "prompts/get", {"name": str(name)}:
                return name
            case "tasks/get" | "tasks/update" | "tasks/cancel", {"taskId": run_id}:
                return await self._of_run(run_id, user)
            case "resources/read" | "resources/subscribe", {"uri": str(uri)}:
                with suppress(ResourceUnknown):
                    return self._registry.resource_at(uri)[0].name
        return None

    async def _of_run(self, run_id: object, user: AuthenticatedUser) -> str | None:
        """Return the name of what the caller's own run executes, or None for a run of another principal."""
        token = user.access_token
        if not (isinstance(run_id, str) and run_id.isprintable() and isinstance(token, PersonalToken)):
            return None
        run = await self._runs.get(run_id)
        return None if run is None or run.principal_id != token.principal.id else run.tool

    def _unauthorized(self, scope: Scope, metadata: str) -> Response:
        """Build the 401. Its challenge has no error code for a request without a token (RFC 6750 section 3.1)."""
        described = {"error": "invalid_token", "error_description": "Send a bearer token that is good here."}
        brought = {"error": "invalid_token"} if "authorization" in Headers(scope=scope) else {}
        scopes = {"scope": " ".join(self._first)} if self._first else {}
        return _challenge(401, described, {**brought, **scopes, "resource_metadata": metadata})


def _insufficient(held: Sequence[str], missing: Sequence[str], metadata: str) -> Response:
    """Build the 403 (RFC 6750 section 3.1). Its scope parameter names the token's scopes and the missing ones."""
    text = f"This takes a token with the scope {' '.join(missing)} besides."
    scope = " ".join([*held, *missing])
    error = {"error": "insufficient_scope"}
    parameters = {**error, "scope": scope, "resource_metadata": metadata}
    return _challenge(403, {**error, "error_description": text}, parameters)


def _challenge(status: int, described: dict[str, str], parameters: dict[str, str]) -> Response:
    told = ", ".join(f'{name}="{value}"' for name, value in parameters.items())
    return JSONResponse(described, status, {"WWW-Authenticate": f"Bearer {told}"})


async def _read_ahead(receive: Receive) -> tuple[bytes, Receive]:
    """Read the body, and return it with a `receive` that replays it. Its size was checked before."""
    messages: list[Message] = []
    while not messages or messages[-1].get("more_body", False):
        messages.append(await receive())
    body = b"".join(message.get("body", b"") for message in messages)

    async def again() -> Message:
        return messages.pop(0) if messages else await receive()

    return body, again


def _messages(body: bytes) -> Iterable[Mapping[str, Any]]:
    """Yield the messages in a body, as each parser reads it; none where it cannot be parsed."""
    for read in _READERS:
        with suppress(ValueError, RecursionError):
            found = read(body)
            for message in found if isinstance(found, list) else [found]:
                if isinstance(message, dict):
                    yield message
