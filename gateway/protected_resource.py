"""The gateway's OAuth protected resources: identifiers (RFC 8707), scopes and metadata documents (RFC 9728)."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from engine.policy.policy import Policy
from engine.settings import Settings
from gateway.http.cross_origin import create_cross_origin_route
from gateway.toolsets import MCP_PATH, list_mcp_paths

API_ROOT: Final = "/api"
API_PATH: Final = f"{API_ROOT}/v1"
MCP_SCOPE: Final = "mcp"
METADATA_PATH: Final = "/.well-known/oauth-protected-resource"


def list_resource_identifiers(settings: Settings) -> tuple[str, ...]:
    """List the identifiers of all protected resources: the MCP endpoints first, the REST API last."""
    return tuple(
        build_resource_identifier(settings, url_path) for url_path in (*list_mcp_paths(settings), API_PATH)
    )


def build_resource_identifier(settings: Settings, url_path: str = MCP_PATH) -> str:
    """Build the RFC 8707 identifier of a resource: the address that clients call and the audience of their tokens."""
    return f"{settings.public_url}{url_path}"


def build_metadata_url(settings: Settings, url_path: str = MCP_PATH) -> str:
    """Build the address of a resource's metadata for a 401's `WWW-Authenticate: Bearer resource_metadata="…"`."""
    return f"{settings.public_url}{METADATA_PATH}{url_path}"


def list_required_scopes(settings: Settings) -> tuple[str, ...]:
    """List the scopes that every token needs. A client requests only these until a tool needs more."""
    issuer = settings.gateway.issuer
    return (MCP_SCOPE,) if issuer is None else issuer.scopes


def list_all_scopes(settings: Settings, policy: Policy) -> tuple[str, ...]:
    """List every scope in use: those that every token needs, then those that the policy requires for single tools."""
    return tuple(dict.fromkeys((*list_required_scopes(settings), *sorted(policy.required_scopes))))


def create_metadata_router(settings: Settings, policy: Policy) -> APIRouter:
    """Create the routes that serve each resource's metadata (RFC 9728).

    The first resource's metadata is also served at the root path, where some clients look alone.
    """
    metadata_router = APIRouter(include_in_schema=False)
    mcp_url_paths, tool_scopes = list_mcp_paths(settings), list_all_scopes(settings, policy)
    handlers_by_path = {
        url_path: _create_metadata_handler(settings, url_path, tool_scopes) for url_path in mcp_url_paths
    }
    handlers_by_path[""] = handlers_by_path[mcp_url_paths[0]]
    handlers_by_path[API_PATH] = _create_metadata_handler(settings, API_PATH, list_required_scopes(settings))
    for url_path, metadata_handler in handlers_by_path.items():
        metadata_router.routes.append(
            create_cross_origin_route(f"{METADATA_PATH}{url_path}", "GET", metadata_handler)
        )
    return metadata_router


def _create_metadata_handler(
    settings: Settings, url_path: str, supported_scopes: tuple[str, ...]
) -> Callable[[Request], Awaitable[Response]]:
    issuer = settings.gateway.issuer
    metadata_document: dict[str, Any] = {
        "resource": build_resource_identifier(settings, url_path),
        "authorization_servers": [settings.public_url if issuer is None else issuer.issuer],
        "bearer_methods_supported": ["header"],
        "resource_name": "Byline",
        **({"scopes_supported": supported_scopes} if supported_scopes else {}),
    }

    async def serve_metadata(_request: Request) -> Response:
        return JSONResponse(metadata_document)

    return serve_metadata
