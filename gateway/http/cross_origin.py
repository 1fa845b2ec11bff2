"""Routes that chat clients in a browser call from their own origin (CORS). They use no browser session."""

from collections.abc import Awaitable, Callable

from fastapi import Request
from fastapi.responses import Response
from mcp.server.transport_security import RequestBodyLimitMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, request_response

_ALLOWED_HEADERS = ("Authorization", "MCP-Protocol-Version")
_MAX_BODY_BYTES = 64 * 1024


def create_cross_origin_route(
    url_path: str, http_method: str, handler: Callable[[Request], Awaitable[Response]]
) -> Route:
    """Create a route that any origin may call, without cookies, and with a request body of at most 64 KiB."""
    allowed_methods = [http_method, "OPTIONS"]
    size_limited_app = RequestBodyLimitMiddleware(request_response(handler), _MAX_BODY_BYTES)
    cross_origin_app = CORSMiddleware(
        size_limited_app, allow_origins=["*"], allow_methods=allowed_methods, allow_headers=_ALLOWED_HEADERS
    )
    return Route(url_path, cross_origin_app, methods=allowed_methods, include_in_schema=False)
