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

from engine.errors import BylineError
from engine.interceptors.client import IdentityClientInterceptor
from engine.runs.control import RunControl
from engine.runs.runs import Runs
from engine.schedules.schedules import Schedules
from engine.services import Services, open_services
from engine.settings import Settings
from engine.sign_in.declarations import read_connections
from engine.temporal import connect_temporal
from engine.tools.registry import Registry
from engine.waiting.delivery import deliver_wake_ups
from gateway.api.problems import answer_framework_error, answer_not_found
from gateway.api.router import build_api
from gateway.authorization_server.server import build_authorization_server
from gateway.browser.page_requests import attach_browser_sessions
from gateway.browser.rendering import create_assets_router, render_not_found
from gateway.http.body_limits import BodyLimitMiddleware
from gateway.http.problems import answer_domain_error
from gateway.mcp.server import create_mcp_servers
from gateway.mcp.transport.asgi import create_mcp_app
from gateway.pages.router import build_pages
from gateway.protected_resource import (
    API_PATH,
    API_ROOT,
    create_metadata_router,
)
from gateway.services import GatewayServices, build_gateway_services
from gateway.webhook_deliveries import build_webhook_router


@asynccontextmanager
async def open_app(settings: Settings, environment: Mapping[str, str]) -> AsyncIterator[FastAPI]:
    """Open what the application needs and yield the application, which is served without a lifespan of its own.

    Raises the BylineError that says what to do where Temporal, the database or a file is not as the settings say.
    """
    registry = Registry(settings.modules)
    temporal_client = await connect_temporal(settings.temporal, [IdentityClientInterceptor()])
    async with open_services(settings, environment) as services:
        await _declare_connections(services)
        gateway_services = build_gateway_services(services)
        if settings.gateway.demo_people and settings.gateway.issuer is None:
            await gateway_services.built_in_people.add_demo_people()
        runs = Runs(services, temporal_client, registry)
        toolset_servers = create_mcp_servers(
            services,
            gateway_services.token_verifiers,
            registry,
            runs,
            RunControl(services, temporal_client, runs),
            temporal_client,
        )
        gateway_app = build_application(
            services, gateway_services, registry, runs, temporal_client, toolset_servers
        )
        async with AsyncExitStack() as exit_stack:
            exit_stack.push_async_callback(runs.close)
            await exit_stack.enter_async_context(deliver_wake_ups(services.waiters, temporal_client))
            for mcp_server in toolset_servers.values():
                await exit_stack.enter_async_context(mcp_server.session_manager.run())
            yield gateway_app


def build_application(
    services: Services,
    gateway_services: GatewayServices,
    registry: Registry,
    runs: Runs,
    temporal_client: Client,
    toolset_servers: Mapping[str, Server[Any]],
) -> FastAPI:
    """Build the application with every route. The caller opens and closes the services and the MCP servers."""
    gateway_app = FastAPI(title="Byline", docs_url=None, redoc_url=None, openapi_url=None)
    gateway_app.add_exception_handler(BylineError, answer_domain_error)
    gateway_app.add_exception_handler(HTTPException, _handle_http_exception)
    gateway_app.add_middleware(BodyLimitMiddleware, limit_settings=services.settings.gateway.limits)
    gateway_app.add_api_route("/healthz", _answer_health_check, methods=["GET"])
    attach_browser_sessions(gateway_app, gateway_services.browser_sessions)
    schedules = Schedules(services, temporal_client)
    for gateway_router in (
        *build_pages(services, gateway_services, registry, schedules),
        build_authorization_server(services, gateway_services.oauth_tables),
        create_metadata_router(services.settings, services.policy),
        build_webhook_router(
            services.webhooks, services.principals, services.run_records, services.trail, runs
        ),
        create_assets_router(),
    ):
        gateway_app.include_router(gateway_router)
    token_verifiers = gateway_services.token_verifiers
    api_app = build_api(services, token_verifiers[API_PATH], registry, runs, schedules, temporal_client)
    gateway_app.mount(API_PATH, api_app)
    gateway_app.mount(API_ROOT, answer_not_found)
    # Last, because a mount at the root takes every path that is left.
    gateway_app.mount(
        "/", create_mcp_app(toolset_servers, services, token_verifiers, registry, _handle_http_exception)
    )
    return gateway_app


async def _answer_health_check() -> dict[str, str]:
    return {"status": "ok"}


async def _handle_http_exception(request: Request, error: Exception) -> Response:
    # A path with a line break in it matches no mount, and so does not reach the API.
    if request.url.path.startswith(f"{API_ROOT}/"):
        return await answer_framework_error(request, error)
    if not isinstance(error, HTTPException):
        raise error
    # A browser accepts HTML. Any other client is a program.
    if error.status_code in {404, 405} and "text/html" in request.headers.get("accept", ""):
        return render_not_found(error.status_code)
    return await http_exception_handler(request, error)


async def _declare_connections(services: Services) -> None:
    connections_file = services.settings.connections_file
    if connections_file is not None:
        await services.catalogue.store_connections(read_connections(connections_file, services.environment))
