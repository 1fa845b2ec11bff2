"""Serves Byline's pages, authorization server and a stand-in for `/mcp` over real HTTP and SQLite, without Temporal."""

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from temporalio.client import Client

from engine.schedules.schedules import Schedules
from engine.services import Services, open_services
from engine.settings import (
    DatabaseSettings,
    GatewaySettings,
    IssuerSettings,
    OutgoingSettings,
    Settings,
    VaultSettings,
)
from engine.tools.registry import Registry
from examples.browser import Browser, Page
from gateway.authorization_server.server import build_authorization_server
from gateway.browser.page_requests import attach_browser_sessions
from gateway.browser.rendering import create_assets_router
from gateway.pages.router import build_pages
from gateway.protected_resource import build_metadata_url, create_metadata_router
from gateway.services import GatewayServices, build_gateway_services
from gateway.sign_in.demo_people import DEMO_PEOPLE
from gateway.toolsets import MCP_PATH
from tests.support.databases import sqlite_database
from tests.support.receivers import serve_application

PASSWORDS = {person.username: person.password for person in DEMO_PEOPLE}


@dataclass(frozen=True)
class PageServer:
    """A running gateway's pages."""

    url: str
    services: Services
    gateway_services: GatewayServices

    async def sign_in(self, browser: Browser, username: str, path: str = "/") -> Page:
        """Open a path that asks for a sign-in, and sign in."""
        page = await browser.open(f"{self.url}/sign-in?next={path}")
        return await page.form(submit="Sign in", username=username, password=PASSWORDS[username])

    async def list_trail_events(self, kind: str) -> list[dict[str, Any]]:
        """The lines of a kind."""
        return [line.event for line in await self.services.trail.find_lines() if line.kind == kind]

    async def fetch_whoami(self, access_token: str) -> httpx2.Response:
        """What `/mcp` makes of a bearer token."""
        async with httpx2.AsyncClient() as client:
            return await client.get(f"{self.url}/mcp", headers={"Authorization": f"Bearer {access_token}"})


@asynccontextmanager
async def serve_pages(
    folder: Path,
    *,
    port: int = 0,
    public_url: str | None = None,
    issuer: IssuerSettings | None = None,
    environment: Mapping[str, str] | None = None,
    outgoing: OutgoingSettings | None = None,
    policy: str = "",
    **gateway: Any,
) -> AsyncIterator[PageServer]:
    """Hold the pages up at a port of 127.0.0.1."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        database = await sqlite_database(folder, demo_people=issuer is None)
        policy_file = folder / "policy.yml"
        policy_file.write_text(policy)
        settings = Settings(
            policy_file=policy_file,
            database=DatabaseSettings(url=database),
            vault=VaultSettings(keyring_file=folder / "keyring.json"),
            outgoing=outgoing or OutgoingSettings(allow_http=True, allow_private=True),
            gateway=GatewaySettings(public_url=public_url or url, demo_people=True, issuer=issuer, **gateway),
        )
        async with open_services(settings, environment or {}) as services:
            gateway_services = build_gateway_services(services)
            # No page calls Temporal before somebody makes a schedule.
            schedules = Schedules(services, await Client.connect("127.0.0.1:1", lazy=True))
            async with serve_application(_build_application(services, gateway_services, schedules), listener):
                yield PageServer(url, services, gateway_services)


def _build_application(
    services: Services, gateway_services: GatewayServices, schedules: Schedules
) -> FastAPI:
    application = FastAPI()
    attach_browser_sessions(application, gateway_services.browser_sessions)
    for router in (
        *build_pages(services, gateway_services, Registry(()), schedules),
        build_authorization_server(services, gateway_services.oauth_tables),
        create_metadata_router(services.settings, services.policy),
        create_assets_router(),
    ):
        application.include_router(router)
    tokens = gateway_services.token_verifiers[MCP_PATH]
    challenge = f'Bearer resource_metadata="{build_metadata_url(services.settings)}"'

    @application.get("/mcp")
    async def whoami(request: Request) -> JSONResponse:
        token = await tokens.verify_token(request.headers.get("authorization", "").removeprefix("Bearer "))
        if token is None:
            return JSONResponse({}, 401, {"WWW-Authenticate": challenge})
        who = {"principal": token.principal.id, "name": token.principal.name}
        return JSONResponse({**who, "scopes": token.scopes, "client": token.client_id})

    return application
