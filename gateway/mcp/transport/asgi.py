"""Build one ASGI application of all MCP endpoints, each with its own bearer tokens and the gateway's limits."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from mcp.server.auth.provider import TokenVerifier
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
from engine.services import Services
from engine.tools.registry import Registry
from gateway.bearer.verifiers import TokenVerifiers
from gateway.http.problems import answer_domain_error
from gateway.mcp.transport.admission import AdmissionMiddleware, CallerLimits
from gateway.mcp.transport.step_up import StepUpMiddleware
from gateway.protected_resource import MCP_SCOPE, build_resource_identifier
from gateway.toolsets import MCP_PATH

HttpErrorHandler = Callable[[Request, Exception], Awaitable[Response]]


def create_mcp_app(
    mcp_servers: Mapping[str, Server[Any]],
    services: Services,
    token_verifiers: TokenVerifiers,
    registry: Registry,
    on_http_error: HttpErrorHandler,
) -> ASGIApp:
    """Create the application that serves each server at its path.

    Requests to other paths go to the first endpoint, which has no route for them. `on_http_error` answers these.
    """
    caller_limits = CallerLimits(services.settings.gateway.limits)
    apps_by_path = {
        url_path: _create_endpoint_app(
            url_path, mcp_server, services, token_verifiers[url_path], registry, caller_limits
        )
        for url_path, mcp_server in mcp_servers.items()
    }
    for endpoint_app in apps_by_path.values():
        endpoint_app.add_exception_handler(HTTPException, on_http_error)

    async def dispatch_by_path(scope: Scope, receive: Receive, send: Send) -> None:
        await apps_by_path.get(scope["path"], apps_by_path[MCP_PATH])(scope, receive, send)

    return dispatch_by_path


def _create_endpoint_app(
    url_path: str,
    mcp_server: Server[Any],
    services: Services,
    token_verifier: TokenVerifier,
    registry: Registry,
    caller_limits: CallerLimits,
) -> Starlette:
    settings = services.settings
    limit_settings, issuer_settings = settings.gateway.limits, settings.gateway.issuer
    # The gateway's own metadata routes come before those that the SDK adds here.
    endpoint_app = mcp_server.streamable_http_app(
        streamable_http_path=url_path,
        max_request_body_size=limit_settings.body,
        session_idle_timeout=limit_settings.session_idle.total_seconds(),
        max_sessions=None,
        token_verifier=token_verifier,
        auth=AuthSettings(
            issuer_url=AnyHttpUrl(settings.public_url if issuer_settings is None else issuer_settings.issuer),
            resource_server_url=AnyHttpUrl(build_resource_identifier(settings, url_path)),
            required_scopes=[MCP_SCOPE] if issuer_settings is None else None,
            validate_token_resource=issuer_settings is None,
        ),
        transport_security=TransportSecuritySettings(
            enable_dns_rebinding_protection=True,
            allowed_hosts=[_format_authority(AnyHttpUrl(settings.public_url))],
            allowed_origins=[settings.public_url],
        ),
    )
    # Innermost, after authentication: first check that the body is a message, then the scopes of its token.
    endpoint_app.user_middleware.append(
        Middleware(AdmissionMiddleware, caller_limits=caller_limits, token_verifier=token_verifier)
    )
    endpoint_app.user_middleware.append(
        Middleware(
            StepUpMiddleware,
            registry=registry,
            run_records=services.run_records,
            policy=services.policy,
            settings=settings,
        )
    )
    # Outside bearer authentication, which raises BylineError when the issuer does not answer.
    endpoint_app.add_middleware(ExceptionMiddleware, handlers={BylineError: answer_domain_error})
    return endpoint_app


def _format_authority(url: AnyHttpUrl) -> str:
    default_port = {"http": 80, "https": 443}[url.scheme]
    return f"{url.host}" if url.port in {None, default_port} else f"{url.host}:{url.port}"
