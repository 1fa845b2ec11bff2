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

from engine.services import Services, open_services
from engine.settings import (
    DatabaseSettings,
    GatewaySettings,
    IssuerSettings,
    OutgoingSettings,
    Settings,
    VaultSettings,
)
from examples.browser import Browser, Page
from gateway.authorization_server.endpoints import build_authorization_server
from gateway.bearer import build_token_verifier
from gateway.browser.rendering import create_assets_router
from gateway.pages.applications import build_application_pages
from gateway.pages.authorization_requests import build_connect_pages
from gateway.pages.console import build_console
from gateway.pages.device_sign_in import build_device_pages
from gateway.pages.questions import build_question_pages
from gateway.protected_resource import build_metadata_url, create_metadata_router
from gateway.sign_in.demo_people import DEMO_PEOPLE
from gateway.sign_in.pages import build_sign_in_pages, seed_demo_people
from tests.databases import sqlite_database
from tests.listeners import served

PASSWORDS = {person.username: person.password for person in DEMO_PEOPLE}


@dataclass(frozen=True)
class Byline:
    """A running gateway's pages."""

    url: str
    services: Services

    async def signed_in(self, browser: Browser, username: str, path: str = "/") -> Page:
        """Open a path that asks for a sign-in, and sign in."""
        page = await browser.open(f"{self.url}/sign-in?next={path}")
        return await page.form(submit="Sign in", username=username, password=PASSWORDS[username])

    async def trail(self, kind: str) -> list[dict[str, Any]]:
        """The lines of a kind."""
        return [line.event for line in await self.services.trail.find_lines() if line.kind == kind]

    async def whoami(self, access_token: str) -> httpx2.Response:
        """What `/mcp` makes of a bearer token."""
        async with httpx2.AsyncClient() as client:
            return await client.get(f"{self.url}/mcp", headers={"Authorization": f"Bearer {access_token}"})


@asynccontextmanager
async def serving(
    folder: Path,
    *,
    port: int = 0,
    public_url: str | None = None,
    issuer: IssuerSettings | None = None,
    environment: Mapping[str, str] | None = None,
    outgoing: OutgoingSettings | None = None,
    policy: str = "",
    **gateway: Any,
) -> AsyncIterator[Byline]:
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
            await seed_demo_people(services)
            async with served(_application(services), listener):
                yield Byline(url, services)


def _application(services: Services) -> FastAPI:
    application = FastAPI()
    for router in (
        build_sign_in_pages,
        build_authorization_server,
        build_application_pages,
        create_metadata_router,
        build_connect_pages,
        build_device_pages,
        build_question_pages,
        build_console,
    ):
        application.include_router(router(services))
    application.include_router(create_assets_router())
    tokens = build_token_verifier(services)
    challenge = f'Bearer resource_metadata="{build_metadata_url(services.settings)}"'

    @application.get("/mcp")
    async def whoami(request: Request) -> JSONResponse:
        token = await tokens.verify_token(request.headers.get("authorization", "").removeprefix("Bearer "))
        if token is None:
            return JSONResponse({}, 401, {"WWW-Authenticate": challenge})
        who = {"principal": token.principal.id, "name": token.principal.name}
        return JSONResponse({**who, "scopes": token.scopes, "client": token.client_id})

    return application
