"""Build one ASGI application of all MCP endpoints, each with its own bearer tokens and the gateway's limits."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from mcp.server.auth.settings import AuthSettings
from mcp.server.lowlevel import Server
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import AnyHttpUrl
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.errors import BylineError
from engine.registry import Registry
from engine.services import Services
from gateway.api.problems import domain_problem
from gateway.bearer import bearer_tokens
from gateway.mcp.admission import Admission, Bounds
from gateway.mcp.step_up import StepUp
from gateway.protected_resource import SCOPE, resource_identifier
from gateway.toolsets import MCP_PATH

OnHttpError = Callable[[Request, Exception], Awaitable[Response]]


def mcp_endpoints(
    servers: Mapping[str, Server[Any]], services: Services, registry: Registry, on_http_error: OnHttpError
) -> ASGIApp:
    """Create the application that serves each server at its path.

    Requests to other paths go to the first endpoint, which has no route for them. `on_http_error` answers these.
    """
    bounds = Bounds(services.settings.gateway.limits)
    apps = {path: _endpoint(path, server, services, registry, bounds) for path, server in servers.items()}
    for app in apps.values():
        app.add_exception_handler(HTTPException, on_http_error)

    async def endpoints(scope: Scope, receive: Receive, send: Send) -> None:
        await apps.get(scope["path"], apps[MCP_PATH])(scope, receive, send)

    return endpoints


def _endpoint(
    path: str, server: Server[Any], services: Services, registry: Registry, bounds: Bounds
) -> Starlette:
    settings = services.settings
    limits, issuer = settings.gateway.limits, settings.gateway.issuer
    tokens = bearer_tokens(services, path)
    # The gateway's own metadata routes come before those that the SDK adds here.
    endpoint = server.streamable_http_app(
        streamable_http_path=path,
        max_request_body_size=limits.body,
        session_idle_timeout=limits.session_idle,
        max_sessions=None,
        token_verifier=tokens,
        auth=AuthSettings(
            issuer_url=AnyHttpUrl(settings.public_url if issuer is None else issuer.issuer),
            resource_server_url=AnyHttpUrl(resource_identifier(settings, path)),
            required_scopes=[SCOPE] if issuer is None else None,
            validate_token_resource=issuer is None,
        ),
        transport_security=TransportSecuritySettings(
            enable_dns_rebinding_protection=True,
            allowed_hosts=[_authority(AnyHttpUrl(settings.public_url))],
            allowed_origins=[settings.public_url],
        ),
    )
    # Innermost, after authentication: first check that the body is a message, then the scopes of its token.
    endpoint.user_middleware.append(Middleware(Admission, bounds=bounds, tokens=tokens))
    endpoint.user_middleware.append(Middleware(StepUp, services=services, registry=registry))
    # Outside bearer authentication, which raises BylineError when the issuer does not answer.
    endpoint.add_middleware(ExceptionMiddleware, handlers={BylineError: domain_problem})
    return endpoint


def _authority(url: AnyHttpUrl) -> str:
    default = {"http": 80, "https": 443}[url.scheme]
    return f"{url.host}" if url.port in {None, default} else f"{url.host}:{url.port}"
