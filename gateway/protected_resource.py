"""The gateway's OAuth protected resources: identifiers (RFC 8707), scopes, and where tokens come from (RFC 9728)."""

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
    """The identifier of every resource here: the MCP endpoints, and the API last."""
    return tuple(resource_identifier(settings, path) for path in (*mcp_paths(settings), API_PATH))


def resource_identifier(settings: Settings, path: str = MCP_PATH) -> str:
    """The address that clients call, which is also the audience of their tokens."""
    return f"{settings.public_url}{path}"


def metadata_address(settings: Settings, path: str = MCP_PATH) -> str:
    """Where a 401 sends clients: `WWW-Authenticate: Bearer resource_metadata="…"`."""
    return f"{settings.public_url}{METADATA_PATH}{path}"


def first_scopes(settings: Settings) -> tuple[str, ...]:
    """The scopes that every token needs, and all that a client asks for until a tool needs more."""
    issuer = settings.gateway.issuer
    return (SCOPE,) if issuer is None else issuer.scopes


def all_scopes(services: Services) -> tuple[str, ...]:
    """Every scope that is of use here: those that all need, and those that the policy asks for with a tool."""
    return tuple(dict.fromkeys((*first_scopes(services.settings), *sorted(services.policy.scopes))))


def protected_resource(services: Services) -> APIRouter:
    """The metadata of each resource, and that of the first also at the root for clients that look only there."""
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
