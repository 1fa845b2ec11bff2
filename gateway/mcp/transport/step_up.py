"""Middleware that answers insufficient tokens: 401, or 403 with the scopes that are needed.

The SDK requires one set of scopes for a whole endpoint and does not name it in its challenge. Here the policy may
require a further scope for a tool.
"""

from collections.abc import Sequence
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.errors import ResourceUnknown
from engine.policy.policy import Policy
from engine.runs.records import RunRecords
from engine.settings import Settings
from engine.tools.registry import Registry
from gateway.mcp import own_tools
from gateway.mcp.transport.admitted_request import AdmittedRequest, find_admitted_request
from gateway.mcp.transport.messages import JsonRpcMessage
from gateway.protected_resource import build_metadata_url, list_required_scopes
from gateway.toolsets import list_mcp_paths


class StepUpMiddleware:
    """ASGI middleware between admission and an MCP endpoint, whose responses it does not change.

    A request that was not admitted has no valid token.
    """

    def __init__(
        self, app: ASGIApp, registry: Registry, run_records: RunRecords, policy: Policy, settings: Settings
    ) -> None:
        self._app = app
        self._registry = registry
        self._run_records = run_records
        self._policy = policy
        self._required_scopes = list_required_scopes(settings)
        self._metadata_urls = {
            url_path: build_metadata_url(settings, url_path) for url_path in list_mcp_paths(settings)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request with a sufficient token on, and answer any other with a challenge."""
        metadata_url = self._metadata_urls.get(scope["path"]) if scope["type"] == "http" else None
        if metadata_url is None:
            await self._app(scope, receive, send)
            return
        admitted_request = find_admitted_request(scope)
        if admitted_request is None:
            await self._build_unauthorized(scope, metadata_url)(scope, receive, send)
            return
        token_scopes = list(dict.fromkeys(admitted_request.token.scopes))
        missing_scopes = await self._find_missing_scopes(admitted_request)
        if missing_scopes:
            await _build_insufficient_scope(token_scopes, missing_scopes, metadata_url)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _find_missing_scopes(self, admitted_request: AdmittedRequest) -> list[str]:
        token_scopes, message = admitted_request.token.scopes, admitted_request.message
        missing_scopes = [
            required_scope for required_scope in self._required_scopes if required_scope not in token_scopes
        ]
        # Only where the token lacks a scope that the policy requires for some tool does it matter which one is called.
        if missing_scopes or message is None or self._policy.required_scopes.issubset(token_scopes):
            return missing_scopes
        offer_name = await self._find_offer_name(message, admitted_request.principal_id)
        tool_scope = None if offer_name is None else self._policy.find_required_scope(offer_name)
        return [] if tool_scope is None or tool_scope in token_scopes else [tool_scope]

    async def _find_offer_name(self, message: JsonRpcMessage, principal_id: str) -> str | None:
        """Return the name of the tool, prompt or resource that a message is about, directly or through its run."""
        params = message.params
        match message.method, params:
            case "tools/call", {
                "name": own_tools.CALL_TOOL_NAME,
                "arguments": {"name": offer_name, **other_arguments},
            }:
                params = {"name": offer_name, "arguments": other_arguments.get("arguments")}
        match message.method, params:
            case "tools/call", {"name": own_tools.COLLECT_TOOL_NAME, "arguments": {"run_id": run_id}}:
                return await self._find_run_offer_name(run_id, principal_id)
            case "tools/call" | "prompts/get", {"name": str(offer_name)}:
                return offer_name
            case "tasks/get" | "tasks/update" | "tasks/cancel", {"taskId": run_id}:
                return await self._find_run_offer_name(run_id, principal_id)
            case "resources/read" | "resources/subscribe", {"uri": str(resource_uri)}:
                with suppress(ResourceUnknown):
                    return self._registry.find_resource(resource_uri)[0].name
        return None

    async def _find_run_offer_name(self, run_id: object, principal_id: str) -> str | None:
        """Return the name of what the caller's own run executes, or None for a run of another principal."""
        if not (isinstance(run_id, str) and run_id.isprintable()):
            return None
        run = await self._run_records.find_run(run_id)
        return None if run is None or run.principal_id != principal_id else run.tool_name

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
