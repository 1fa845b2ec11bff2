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
from engine.services import Services
from engine.tools.registry import Registry
from gateway.bearer.principal_token import PrincipalToken
from gateway.mcp.exchange.results import COLLECT_TOOL_NAME
from gateway.mcp.methods import search
from gateway.protected_resource import build_metadata_url, list_required_scopes
from gateway.toolsets import list_mcp_paths

# A body is parsed with both parsers that the SDK uses, one for each era, since they differ on malformed JSON.
_BODY_PARSERS: Final[tuple[Callable[[bytes], Any], ...]] = (json.loads, from_json)


class StepUpMiddleware:
    """ASGI middleware between bearer authentication and an MCP endpoint, whose responses it does not change."""

    def __init__(self, app: ASGIApp, services: Services, registry: Registry) -> None:
        self._app = app
        self._registry = registry
        self._runs = services.run_records
        self._policy = services.policy
        self._required_scopes = list_required_scopes(services.settings)
        self._metadata_urls = {
            url_path: build_metadata_url(services.settings, url_path)
            for url_path in list_mcp_paths(services.settings)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request with a sufficient token on, and answer any other with a challenge."""
        metadata_url = self._metadata_urls.get(scope["path"]) if scope["type"] == "http" else None
        if metadata_url is None:
            await self._app(scope, receive, send)
            return
        authenticated_user = scope.get("user")
        if not isinstance(authenticated_user, AuthenticatedUser):
            await self._build_unauthorized(scope, metadata_url)(scope, receive, send)
            return
        token_scopes = list(dict.fromkeys(authenticated_user.scopes))
        missing_scopes = [
            required_scope for required_scope in self._required_scopes if required_scope not in token_scopes
        ]
        # The body is read ahead only where the token lacks a scope that the policy requires for some tool.
        if (
            not missing_scopes
            and scope["method"] == "POST"
            and not self._policy.required_scopes.issubset(token_scopes)
        ):
            request_body, receive = await _read_body_ahead(receive)
            offer_names = {
                await self._find_offer_name(message, authenticated_user)
                for message in _parse_messages(request_body)
            }
            needed_scopes = {
                self._policy.find_required_scope(offer_name)
                for offer_name in offer_names
                if offer_name is not None
            }
            missing_scopes = sorted(
                required_scope
                for required_scope in needed_scopes
                if required_scope is not None and required_scope not in token_scopes
            )
        if missing_scopes:
            await _build_insufficient_scope(token_scopes, missing_scopes, metadata_url)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _find_offer_name(
        self, message: Mapping[str, Any], authenticated_user: AuthenticatedUser
    ) -> str | None:
        """Return the name of the tool, prompt or resource that a message is about, directly or through its run."""
        request_params = message.get("params")
        match message.get("method"), request_params:
            case "tools/call", {
                "name": search.CALL_TOOL_NAME,
                "arguments": {"name": offer_name, **other_arguments},
            }:
                request_params = {"name": offer_name, "arguments": other_arguments.get("arguments")}
        match message.get("method"), request_params:
            case "tools/call", {"name": str(offer_name), "arguments": {"run_id": run_id}} if (
                offer_name == COLLECT_TOOL_NAME
            ):
                return await self._find_run_offer_name(run_id, authenticated_user)
            case "tools/call" | "prompts/get", {"name": str(offer_name)}:
                return offer_name
            case "tasks/get" | "tasks/update" | "tasks/cancel", {"taskId": run_id}:
                return await self._find_run_offer_name(run_id, authenticated_user)
            case "resources/read" | "resources/subscribe", {"uri": str(resource_uri)}:
                with suppress(ResourceUnknown):
                    return self._registry.find_resource(resource_uri)[0].name
        return None

    async def _find_run_offer_name(self, run_id: object, authenticated_user: AuthenticatedUser) -> str | None:
        """Return the name of what the caller's own run executes, or None for a run of another principal."""
        personal_token = authenticated_user.access_token
        if not (
            isinstance(run_id, str) and run_id.isprintable() and isinstance(personal_token, PrincipalToken)
        ):
            return None
        run = await self._runs.find_run(run_id)
        return None if run is None or run.principal_id != personal_token.principal.id else run.tool_name

    def _build_unauthorized(self, scope: Scope, metadata_url: str) -> Response:
        """Build the 401. Its challenge has no error code for a request without a token (RFC 6750 section 3.1)."""
        error_document = {
            "error": "invalid_token",
            "error_description": "Send a bearer token that is good here.",
        }
        error_parameter = {"error": "invalid_token"} if "authorization" in Headers(scope=scope) else {}
        scope_parameter = {"scope": " ".join(self._required_scopes)} if self._required_scopes else {}
        return _build_challenge(
            401, error_document, {**error_parameter, **scope_parameter, "resource_metadata": metadata_url}
        )


def _build_insufficient_scope(
    token_scopes: Sequence[str], missing_scopes: Sequence[str], metadata_url: str
) -> Response:
    """Build the 403 (RFC 6750 section 3.1). Its scope parameter names the token's scopes and the missing ones."""
    error_description = f"This takes a token with the scope {' '.join(missing_scopes)} besides."
    sufficient_scope = " ".join([*token_scopes, *missing_scopes])
    error_parameter = {"error": "insufficient_scope"}
    challenge_parameters = {**error_parameter, "scope": sufficient_scope, "resource_metadata": metadata_url}
    return _build_challenge(
        403, {**error_parameter, "error_description": error_description}, challenge_parameters
    )


def _build_challenge(
    status_code: int, error_document: dict[str, str], challenge_parameters: dict[str, str]
) -> Response:
    parameter_text = ", ".join(
        f'{parameter_name}="{parameter_value}"'
        for parameter_name, parameter_value in challenge_parameters.items()
    )
    return JSONResponse(error_document, status_code, {"WWW-Authenticate": f"Bearer {parameter_text}"})


async def _read_body_ahead(receive: Receive) -> tuple[bytes, Receive]:
    """Read the body, and return it with a `receive` that replays it. Its size was checked before."""
    received_messages: list[Message] = []
    while not received_messages or received_messages[-1].get("more_body", False):
        received_messages.append(await receive())
    request_body = b"".join(message.get("body", b"") for message in received_messages)

    async def replay_body() -> Message:
        return received_messages.pop(0) if received_messages else await receive()

    return request_body, replay_body


def _parse_messages(request_body: bytes) -> Iterable[Mapping[str, Any]]:
    """Yield the messages in a body, as each parser reads it; none where it cannot be parsed."""
    for parse_body in _BODY_PARSERS:
        with suppress(ValueError, RecursionError):
            json_document = parse_body(request_body)
            for message in json_document if isinstance(json_document, list) else [json_document]:
                if isinstance(message, dict):
                    yield message
