"""The gateway's two OAuth protected resources: identifiers (RFC 8707) and where tokens come from (RFC 9728)."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from engine.services import Services
from engine.settings import Settings
from gateway.cross_origin import cross_origin
from gateway.toolsets import MCP_PATH, mcp_paths

API_ROOT: Final = "/api"
API_PATH: Final = f"{API_ROOT}/v1"
SCOPE: Final = "mcp"
METADATA_PATH: Final = "/.well-known/oauth-protected-resource"


def resource_identifier(settings: Settings, path: str = MCP_PATH) -> str:
    """The address that clients call, which is also the audience of their tokens."""
    return f"{settings.public_url}{path}"


def metadata_address(settings: Settings, path: str = MCP_PATH) -> str:
    """Where a 401 sends clients: `WWW-Authenticate: Bearer resource_metadata="…"`."""
    return f"{settings.public_url}{METADATA_PATH}{path}"


def protected_resource(services: Services) -> APIRouter:
    """The metadata of each resource, and that of `/mcp` also at the root for clients that look only there."""
    router = APIRouter(include_in_schema=False)
    at_paths = {path: path for path in (*mcp_paths(services.settings), API_PATH)}
    for path, resource in {"": MCP_PATH, **at_paths}.items():
        answer = _metadata(services.settings, resource)
        router.routes.append(cross_origin(f"{METADATA_PATH}{path}", "GET", answer))
    return router


def _metadata(settings: Settings, path: str) -> Callable[[Request], Awaitable[Response]]:
    issuer = settings.gateway.issuer
    document: dict[str, Any] = {
        "resource": resource_identifier(settings, path),
        "authorization_servers": [settings.public_url if issuer is None else issuer.issuer],
        "bearer_methods_supported": ["header"],
        "resource_name": "Byline",
    }
    if issuer is None:
        document["scopes_supported"] = [SCOPE]

    async def metadata(request: Request) -> Response:
        del request
        return JSONResponse(document)

    return metadata
