"""The gateway's OAuth protected resources: identifiers (RFC 8707), scopes and metadata documents (RFC 9728)."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from engine.services import Services
from engine.settings import Settings
from gateway.http.cross_origin import cross_origin
from gateway.toolsets import MCP_PATH, mcp_paths

API_ROOT: Final = "/api"
API_PATH: Final = f"{API_ROOT}/v1"
SCOPE: Final = "mcp"
METADATA_PATH: Final = "/.well-known/oauth-protected-resource"


def resources(settings: Settings) -> tuple[str, ...]:
    """List the identifiers of all protected resources: the MCP endpoints first, the REST API last."""
    return tuple(resource_identifier(settings, path) for path in (*mcp_paths(settings), API_PATH))


def resource_identifier(settings: Settings, path: str = MCP_PATH) -> str:
    """Build the RFC 8707 identifier of a resource: the address that clients call and the audience of their tokens."""
    return f"{settings.public_url}{path}"


def metadata_address(settings: Settings, path: str = MCP_PATH) -> str:
    """Build the address of a resource's metadata for a 401's `WWW-Authenticate: Bearer resource_metadata="…"`."""
    return f"{settings.public_url}{METADATA_PATH}{path}"


def first_scopes(settings: Settings) -> tuple[str, ...]:
    """List the scopes that every token needs. A client requests only these until a tool needs more."""
    issuer = settings.gateway.issuer
    return (SCOPE,) if issuer is None else issuer.scopes


def all_scopes(services: Services) -> tuple[str, ...]:
    """List every scope in use: those that every token needs, then those that the policy requires for single tools."""
    return tuple(dict.fromkeys((*first_scopes(services.settings), *sorted(services.policy.scopes))))


def protected_resource(services: Services) -> APIRouter:
    """Create the routes that serve each resource's metadata (RFC 9728).

    The first resource's metadata is also served at the root path, where some clients look alone.
    """
    router = APIRouter(include_in_schema=False)
    mcp, of_tools = mcp_paths(services.settings), all_scopes(services)
    described = {path: _metadata(services.settings, path, of_tools) for path in mcp}
    described[""] = described[mcp[0]]
    described[API_PATH] = _metadata(services.settings, API_PATH, first_scopes(services.settings))
    for path, answer in described.items():
        router.routes.append(cross_origin(f"{METADATA_PATH}{path}", "GET", answer))
    return router


def _metadata(
    settings: Settings, path: str, scopes: tuple[str, ...]
) -> Callable[[Request], Awaitable[Response]]:
    issuer = settings.gateway.issuer
    document: dict[str, Any] = {
        "resource": resource_identifier(settings, path),
        "authorization_servers": [settings.public_url if issuer is None else issuer.issuer],
        "bearer_methods_supported": ["header"],
        "resource_name": "Byline",
        **({"scopes_supported": scopes} if scopes else {}),
    }

    async def metadata(request: Request) -> Response:
        del request
        return JSONResponse(document)

    return metadata
