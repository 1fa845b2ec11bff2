"""A gateway's API over real HTTP on a platform, and people who call it with tokens of the built-in sign-in."""

import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import httpx2

from engine.identity.model import Principal
from engine.services import Services
from engine.wire import ACCESS_TOKEN_TYPE
from gateway.app import application
from gateway.mcp.server import mcp_servers
from gateway.protected_resource import API_PATH
from gateway.run_control import RunControl
from tests.pages import served
from tests.platform import Platform


@dataclass(frozen=True)
class Rest:
    """A running gateway."""

    url: str
    services: Services

    async def person(self, subject: str, name: str) -> Principal:
        """Somebody whom the built-in sign-in knows."""
        return await self.services.principals.resolve(self.url, subject, name)

    async def token(self, principal: Principal, path: str = API_PATH) -> str:
        """An access token of the built-in authorization server."""
        claims = {
            "iss": principal.issuer,
            "sub": principal.subject,
            "aud": f"{self.url}{path}",
            "client_id": "reports",
            "client_name": "Reports",
            "scope": "mcp",
            "exp": int(time.time()) + 600,
        }
        return await self.services.keys.sign(claims, ACCESS_TOKEN_TYPE)

    @asynccontextmanager
    async def calling_as(self, principal: Principal) -> AsyncIterator[httpx2.AsyncClient]:
        """A client whose paths begin after `/api/v1`."""
        headers = {"Authorization": f"Bearer {await self.token(principal)}"}
        base = f"{self.url}{API_PATH}"
        async with httpx2.AsyncClient(base_url=base, headers=headers, timeout=90) as client:
            yield client


@asynccontextmanager
async def serving(
    platform: Platform, *, mcp: bool = False, port: int = 0, **changed: object
) -> AsyncIterator[Rest]:
    """Serve the platform's gateway at a port of 127.0.0.1; with `mcp`, which a fixture can't close, also at `/mcp`.

    What is `changed` are settings of the gateway.
    """
    with socket.create_server(("127.0.0.1", port)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        gateway = platform.settings.gateway.model_copy(update={"public_url": url, **changed})
        settings = platform.settings.model_copy(update={"gateway": gateway})
        services = replace(platform.services, settings=settings)
        runs, temporal = platform.runs, platform.temporal
        control = RunControl(services, temporal, runs)
        servers = mcp_servers(services, platform.registry, runs, control, temporal)
        app = application(services, platform.registry, runs, temporal, servers)
        async with AsyncExitStack() as open_:
            if mcp:
                for server in servers.values():
                    await open_.enter_async_context(server.session_manager.run())
            await open_.enter_async_context(served(app, listener))
            yield Rest(url, services)
