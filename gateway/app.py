"""The gateway: one application of pages, OAuth endpoints and MCP, over services opened once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from mcp.server.auth.settings import AuthSettings
from mcp.server.lowlevel import Server
from mcp.server.transport_security import (
    DEFAULT_MAX_REQUEST_BODY_SIZE,
    RequestBodyLimitMiddleware,
    TransportSecuritySettings,
)
from pydantic import AnyHttpUrl
from starlette.applications import Starlette
from starlette.middleware.exceptions import ExceptionMiddleware

from engine.authorization.delivery import Delivery
from engine.connections.catalogue import read_connections
from engine.errors import BylineError
from engine.interceptors.client import IdentityClientInterceptor
from engine.registry import Registry
from engine.services import Services, open_services
from engine.settings import Settings
from engine.temporal import connect
from gateway.authorization_server.endpoints import authorization_server
from gateway.bearer import bearer_tokens
from gateway.connect import connect_pages
from gateway.console import console
from gateway.errors import http_status
from gateway.mcp import mcp_server
from gateway.pages import assets
from gateway.protected_resource import MCP_PATH, SCOPE, protected_resource, resource_identifier
from gateway.runs import Runs
from gateway.sign_in import seed_demo_people, sign_in_pages


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
        server = mcp_server(services, registry, Runs(services, temporal, registry))
        app = application(services, server)
        delivery = asyncio.create_task(Delivery(services.authorization, temporal).run())
        async with server.session_manager.run():
            yield app
        delivery.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await delivery


def application(services: Services, server: Server[Any]) -> FastAPI:
    """Every route, over services and a server that the caller opens and closes."""
    app = FastAPI(title="Byline", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(BylineError, _problem)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=DEFAULT_MAX_REQUEST_BODY_SIZE)
    app.add_api_route("/healthz", _health, methods=["GET"])
    for router in (
        sign_in_pages(services),
        connect_pages(services),
        console(services),
        authorization_server(services),
        protected_resource(services),
        assets(),
    ):
        app.include_router(router)
    # Last, because a mount at the root takes every path that is left.
    app.mount("/", _mcp_endpoint(server, services))
    return app


async def _health() -> dict[str, str]:
    return {"status": "ok"}


async def _problem(request: Request, error: Exception) -> JSONResponse:
    """Tell a domain error as problem details (RFC 9457)."""
    del request
    if not isinstance(error, BylineError):
        raise error
    status = http_status(error)
    body = {
        "type": f"urn:byline:error:{error.code}",
        "title": error.code,
        "status": status,
        "detail": str(error),
    }
    return JSONResponse(body, status_code=status, media_type="application/problem+json")


async def _declare_connections(services: Services) -> None:
    path = services.settings.connections_file
    if path is not None:
        await services.catalogue.declare(read_connections(path, services.environment))


def _mcp_endpoint(server: Server[Any], services: Services) -> Starlette:
    """The MCP endpoint behind bearer tokens; the SDK's own metadata routes give way to ours."""
    settings = services.settings
    origin = AnyHttpUrl(settings.public_url)
    issuer = settings.gateway.issuer
    endpoint = server.streamable_http_app(
        streamable_http_path=MCP_PATH,
        token_verifier=bearer_tokens(services),
        auth=AuthSettings(
            issuer_url=AnyHttpUrl(settings.public_url if issuer is None else issuer.issuer),
            resource_server_url=AnyHttpUrl(resource_identifier(settings)),
            required_scopes=[SCOPE] if issuer is None else None,
            validate_token_resource=issuer is None,
        ),
        transport_security=TransportSecuritySettings(
            enable_dns_rebinding_protection=True,
            allowed_hosts=[_authority(origin)],
            allowed_origins=[settings.public_url],
        ),
    )
    # Outside the check of bearer tokens, which may find that the issuer does not answer.
    endpoint.add_middleware(ExceptionMiddleware, handlers={BylineError: _problem})
    return endpoint


def _authority(url: AnyHttpUrl) -> str:
    default = {"http": 80, "https": 443}[url.scheme]
    return f"{url.host}" if url.port in {None, default} else f"{url.host}:{url.port}"
