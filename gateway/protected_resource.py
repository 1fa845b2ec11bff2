"""The gateway as an OAuth protected resource: its identifier (RFC 8707) and where its tokens come from (RFC 9728)."""

from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from engine.services import Services
from engine.settings import Settings
from gateway.cross_origin import cross_origin

MCP_PATH: Final = "/mcp"
SCOPE: Final = "mcp"
METADATA_PATH: Final = "/.well-known/oauth-protected-resource"


def resource_identifier(settings: Settings) -> str:
    """The address that MCP clients call, which is also the audience of their tokens."""
    return f"{settings.public_url}{MCP_PATH}"


def metadata_address(settings: Settings) -> str:
    """Where a 401 sends clients: `WWW-Authenticate: Bearer resource_metadata="…"`."""
    return f"{settings.public_url}{METADATA_PATH}{MCP_PATH}"


def protected_resource(services: Services) -> APIRouter:
    """The metadata at the address that belongs to `/mcp`, and at the root for clients that look only there."""
    router = APIRouter(include_in_schema=False)
    settings = services.settings
    issuer = settings.gateway.issuer
    document: dict[str, Any] = {
        "resource": resource_identifier(settings),
        "authorization_servers": [settings.public_url if issuer is None else issuer.issuer],
        "bearer_methods_supported": ["header"],
        "resource_name": "Byline",
    }
    if issuer is None:
        document["scopes_supported"] = [SCOPE]

    async def metadata(request: Request) -> Response:
        del request
        return JSONResponse(document)

    for path in (f"{METADATA_PATH}{MCP_PATH}", METADATA_PATH):
        router.routes.append(cross_origin(path, "GET", metadata))
    return router
