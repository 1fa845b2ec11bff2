"""The gateway: one application of pages, OAuth endpoints, REST and MCP, over services opened once."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import Response
from mcp.server.auth.settings import AuthSettings
from mcp.server.lowlevel import Server
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import AnyHttpUrl
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send
from temporalio.client import Client

from engine.connections.catalogue import read_connections
from engine.errors import BylineError
from engine.interceptors.client import IdentityClientInterceptor
from engine.registry import Registry
from engine.schedules.schedules import Schedules
from engine.services import Services, open_services
from engine.settings import Settings
from engine.temporal import connect
from engine.waiting.delivery import delivering
from gateway.admission import Admission
from gateway.api.problems import domain_problem, framework_problem, nowhere
from gateway.api.router import api
from gateway.authorization_server.endpoints import authorization_server
from gateway.bearer import bearer_tokens
from gateway.connect import connect_pages
from gateway.connections import connection_pages
from gateway.console import console
from gateway.hooks import hooks
from gateway.limits import BodyLimits
from gateway.mcp.server import mcp_servers
from gateway.notifications import notification_pages
from gateway.pages import assets, nothing_here
from gateway.protected_resource import (
    API_PATH,
    API_ROOT,
    SCOPE,
    protected_resource,
    resource_identifier,
)
from gateway.questions import question_pages
from gateway.run_control import RunControl
from gateway.runs import Runs
from gateway.schedules import schedule_pages
from gateway.sign_in import seed_demo_people, sign_in_pages
from gateway.tokens import token_pages
from gateway.tool_connections import tool_connection_pages
from gateway.toolsets import MCP_PATH
from gateway.untold import untold


@asynccontextmanager
async def open_app(settings: Settings, environment: Mapping[str, str]) -> AsyncIterator[FastAPI]:
    """The application with all that it needs open; to be served without a lifespan of its own.

    Raises the BylineError that says what to do where Temporal, the database or a file is not as settings say.
    """
    registry = Registry(settings.modules)
    temporal = await connect(settings.temporal, [IdentityClientInterceptor()])
    async with open_services(settings, environment) as services:
        await _declare_connections(services)
        if settings.gateway.demo_people:
            await seed_demo_people(services)
        runs = Runs(services, temporal, registry)
        servers = mcp_servers(services, registry, runs, RunControl(services, temporal, runs), temporal)
        app = application(services, registry, runs, temporal, servers)
        async with AsyncExitStack() as serving:
            serving.push_async_callback(runs.close)
            await serving.enter_async_context(delivering(services.waiters, temporal))
            for server in servers.values():
                await serving.enter_async_context(server.session_manager.run())
            yield app


def application(
    services: Services, registry: Registry, runs: Runs, temporal: Client, servers: Mapping[str, Server[Any]]
) -> FastAPI:
    """Every route, over services and MCP servers that the caller opens and closes."""
    app = FastAPI(title="Byline", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(BylineError, domain_problem)
    app.add_exception_handler(HTTPException, _unanswered)
    app.add_middleware(BodyLimits, limits=services.settings.gateway.limits)
    app.add_api_route("/healthz", _health, methods=["GET"])
    for router in (
        sign_in_pages(services),
        connect_pages(services),
        question_pages(services),
        console(services),
        schedule_pages(services, registry, Schedules(services, temporal)),
        token_pages(services, registry),
        connection_pages(services, registry),
        tool_connection_pages(services, registry),
        notification_pages(services),
        authorization_server(services),
        protected_resource(services),
        hooks(services, runs),
        assets(),
    ):
        app.include_router(router)
    app.mount(API_PATH, api(services, registry, runs, temporal))
    app.mount(API_ROOT, nowhere)
    # Last, because a mount at the root takes every path that is left.
    app.mount("/", _mcp_endpoints(servers, services))
    return app


async def _health() -> dict[str, str]:
    return {"status": "ok"}


async def _unanswered(request: Request, error: Exception) -> Response:
    # A path with a line break in it matches no mount, and so does not reach the API.
    if request.url.path.startswith(f"{API_ROOT}/"):
        return await framework_problem(request, error)
    if not isinstance(error, HTTPException):
        raise error
    # A browser says that it wants HTML; whatever else asks is a program.
    if error.status_code in {404, 405} and "text/html" in request.headers.get("accept", ""):
        return nothing_here(error.status_code)
    return await http_exception_handler(request, error)


async def _declare_connections(services: Services) -> None:
    path = services.settings.connections_file
    if path is not None:
        await services.catalogue.declare(read_connections(path, services.environment))


def _mcp_endpoints(servers: Mapping[str, Server[Any]], services: Services) -> ASGIApp:
    """Each MCP endpoint at its path; whatever is left finds nothing at the first of them."""
    apps = {path: _mcp_endpoint(path, server, services) for path, server in servers.items()}

    async def endpoints(scope: Scope, receive: Receive, send: Send) -> None:
        await apps.get(scope["path"], apps[MCP_PATH])(scope, receive, send)

    return endpoints


def _mcp_endpoint(path: str, server: Server[Any], services: Services) -> Starlette:
    """An MCP endpoint behind bearer tokens; the SDK's own metadata routes give way to ours."""
    settings = services.settings
    limits = settings.gateway.limits
    origin = AnyHttpUrl(settings.public_url)
    issuer = settings.gateway.issuer
    server.middleware.insert(0, untold)
    endpoint = server.streamable_http_app(
        streamable_http_path=path,
        max_request_body_size=limits.body,
        session_idle_timeout=limits.session_idle,
        max_sessions=None,
        token_verifier=bearer_tokens(services, path),
        auth=AuthSettings(
            issuer_url=AnyHttpUrl(settings.public_url if issuer is None else issuer.issuer),
            resource_server_url=AnyHttpUrl(resource_identifier(settings, path)),
            required_scopes=[SCOPE] if issuer is None else None,
            validate_token_resource=issuer is None,
        ),
        transport_security=TransportSecuritySettings(
            enable_dns_rebinding_protection=True,
            allowed_hosts=[_authority(origin)],
            allowed_origins=[settings.public_url],
        ),
    )
    # Innermost, where it is known who calls.
    endpoint.user_middleware.append(Middleware(Admission, limits=limits))
    endpoint.add_exception_handler(HTTPException, _unanswered)
    # Outside the check of bearer tokens, which may find that the issuer does not answer.
    endpoint.add_middleware(ExceptionMiddleware, handlers={BylineError: domain_problem})
    return endpoint


def _authority(url: AnyHttpUrl) -> str:
    default = {"http": 80, "https": 443}[url.scheme]
    return f"{url.host}" if url.port in {None, default} else f"{url.host}:{url.port}"
