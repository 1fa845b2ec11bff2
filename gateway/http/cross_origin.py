"""Routes that chat clients in a browser call from their own origin (CORS). They use no browser session."""

from collections.abc import Awaitable, Callable

from fastapi import Request
from fastapi.responses import Response
from mcp.server.transport_security import RequestBodyLimitMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, request_response

_HEADERS = ("Authorization", "MCP-Protocol-Version")
_LARGEST_BODY = 64 * 1024


def cross_origin(path: str, method: str, handler: Callable[[Request], Awaitable[Response]]) -> Route:
    """Create a route that any origin may call, without cookies, and with a request body of at most 64 KiB."""
    methods = [method, "OPTIONS"]
    limited = RequestBodyLimitMiddleware(request_response(handler), _LARGEST_BODY)
    endpoint = CORSMiddleware(limited, allow_origins=["*"], allow_methods=methods, allow_headers=_HEADERS)
    return Route(path, endpoint, methods=methods, include_in_schema=False)
