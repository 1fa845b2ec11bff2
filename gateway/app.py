"""Builds the gateway: one application of pages, OAuth endpoints, REST API and MCP, which share one set of services."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import Response
from mcp.server.lowlevel import Server
from starlette.exceptions import HTTPException
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
from gateway.api.problems import domain_problem, framework_problem, nowhere
from gateway.api.router import api
from gateway.authorization_server.endpoints import authorization_server
from gateway.browser.rendering import assets, nothing_here
from gateway.hooks import hooks
from gateway.http.limits import BodyLimits
from gateway.mcp.asgi import mcp_endpoints
from gateway.mcp.server import mcp_servers
from gateway.pages.applications import application_pages
from gateway.pages.connect import connect_pages
from gateway.pages.connections import connection_pages
from gateway.pages.console import console
from gateway.pages.device_sign_in import device_pages
from gateway.pages.notifications import notification_pages
from gateway.pages.questions import question_pages
from gateway.pages.schedules import schedule_pages
from gateway.pages.tokens import token_pages
from gateway.pages.tool_connections import tool_connection_pages
from gateway.protected_resource import (
    API_PATH,
    API_ROOT,
    protected_resource,
)
from gateway.runs.control import RunControl
from gateway.runs.runs import Runs
from gateway.sign_in.pages import seed_demo_people, sign_in_pages


@asynccontextmanager
async def open_app(settings: Settings, environment: Mapping[str, str]) -> AsyncIterator[FastAPI]:
    """Open what the application needs and yield the application, which is served without a lifespan of its own.

    Raises the BylineError that says what to do where Temporal, the database or a file is not as the settings say.
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
    """Build the application with every route. The caller opens and closes the services and the MCP servers."""
    app = FastAPI(title="Byline", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(BylineError, domain_problem)
    app.add_exception_handler(HTTPException, _unanswered)
    app.add_middleware(BodyLimits, limits=services.settings.gateway.limits)
    app.add_api_route("/healthz", _health, methods=["GET"])
    for router in (
        sign_in_pages(services),
        connect_pages(services),
        device_pages(services),
        question_pages(services),
        console(services),
        schedule_pages(services, registry, Schedules(services, temporal)),
        token_pages(services, registry),
        application_pages(services),
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
    app.mount("/", mcp_endpoints(servers, services, registry, _unanswered))
    return app


async def _health() -> dict[str, str]:
    return {"status": "ok"}


async def _unanswered(request: Request, error: Exception) -> Response:
    # A path with a line break in it matches no mount, and so does not reach the API.
    if request.url.path.startswith(f"{API_ROOT}/"):
        return await framework_problem(request, error)
    if not isinstance(error, HTTPException):
        raise error
    # A browser accepts HTML. Any other client is a program.
    if error.status_code in {404, 405} and "text/html" in request.headers.get("accept", ""):
        return nothing_here(error.status_code)
    return await http_exception_handler(request, error)


async def _declare_connections(services: Services) -> None:
    path = services.settings.connections_file
    if path is not None:
        await services.catalogue.declare(read_connections(path, services.environment))
