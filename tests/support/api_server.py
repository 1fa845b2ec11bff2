"""A gateway's API over real HTTP on a platform, and people who call it with tokens of the built-in sign-in."""

import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import httpx2

from engine.db.database import utc_now
from engine.identity.model import Principal
from engine.policy.policy import Policy, PolicyFile
from engine.runs.runs import build_runs
from engine.services import Services
from gateway.app import build_application
from gateway.authorization_server.clients import ClientInformation
from gateway.authorization_server.consents import UNUSED_CONSENT_LIFE, ClientConsent, ClientConsents
from gateway.authorization_server.tables import build_authorization_server_tables
from gateway.mcp.server import create_mcp_servers
from gateway.protected_resource import API_PATH
from gateway.services import build_gateway_services
from tests.support.platform import Platform
from tests.support.receivers import serve_application


def build_consent(principal: Principal, client: ClientInformation, resource: str) -> ClientConsent:
    """What a person's yes to a client is, once they gave it."""
    return ClientConsent(
        id=secrets.token_hex(8),
        principal_id=principal.id,
        client_id=client.client_id,
        client_name=client.display_name,
        resource=resource,
        scopes=("mcp",),
        created_at=utc_now(),
        expires_at=utc_now() + UNUSED_CONSENT_LIFE,
    )


@dataclass(frozen=True)
class ApiServer:
    """A running gateway."""

    url: str
    services: Services

    async def add_person(self, subject: str, name: str) -> Principal:
        """Somebody whom the built-in sign-in knows."""
        return await self.services.principals.resolve_principal(self.url, subject, name)

    async def issue_token(self, principal: Principal, path: str = API_PATH) -> str:
        """An access token of the built-in authorization server, for a client that the person consented to."""
        client = ClientInformation(client_id="reports", client_name="Reports", redirect_uris=None)
        consent = build_consent(principal, client, f"{self.url}{path}")
        await ClientConsents(self.services.database).store_consent(consent)
        issued_tokens = await build_authorization_server_tables(self.services).token_issuer.issue_tokens(
            principal, client, consent.scopes, consent.id, resource=consent.resource, has_refresh_token=False
        )
        return issued_tokens.access_token

    @asynccontextmanager
    async def open_client(self, principal: Principal) -> AsyncIterator[httpx2.AsyncClient]:
        """A client whose paths begin after `/api/v1`."""
        headers = {"Authorization": f"Bearer {await self.issue_token(principal)}"}
        base = f"{self.url}{API_PATH}"
        async with httpx2.AsyncClient(base_url=base, headers=headers, timeout=90) as client:
            yield client


@asynccontextmanager
async def serve_api(
    platform: Platform,
    *,
    mcp: bool = False,
    port: int = 0,
    policy: PolicyFile | None = None,
    **gateway_settings: object,
) -> AsyncIterator[ApiServer]:
    """Serve the platform's gateway at a port of 127.0.0.1; with `mcp`, which a fixture can't close, also at `/mcp`.

    What is `changed` are settings of the gateway.
    """
    with socket.create_server(("127.0.0.1", port)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        gateway = platform.settings.gateway.model_copy(update={"public_url": url, **gateway_settings})
        settings = platform.settings.model_copy(update={"gateway": gateway})
        services = replace(platform.services, settings=settings)
        if policy is not None:
            services = replace(services, policy=Policy(lambda: policy, services.roles))
        registry, temporal = platform.registry, platform.temporal
        # The links in a run's state are those of this server.
        runs = replace(platform.runs, states=build_runs(services, temporal, registry).states)
        gateway_services = build_gateway_services(services)
        servers = create_mcp_servers(
            services,
            gateway_services.token_verifiers,
            registry,
            runs,
            temporal,
        )
        app = build_application(services, gateway_services, registry, runs, temporal, servers)
        async with AsyncExitStack() as open_:
            if mcp:
                for server in servers.values():
                    await open_.enter_async_context(server.session_manager.run())
            await open_.enter_async_context(serve_application(app, listener))
            yield ApiServer(url, services)
