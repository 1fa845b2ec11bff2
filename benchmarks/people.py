"""The people of the benchmarks. They have real access tokens and browser sessions, and consent by the real callback."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2
from fastapi import Request

from engine.db.database import utc_now
from engine.identity.model import Principal
from engine.services import Services, open_services
from engine.settings import DatabaseSettings, GatewaySettings, Settings, VaultSettings
from gateway.authorization_server.clients import ClientInformation
from gateway.authorization_server.consents import UNUSED_CONSENT_LIFE, ClientConsent
from gateway.browser.sessions import NewBrowserSession
from gateway.dev.stack import EmbeddedStack
from gateway.protected_resource import MCP_SCOPE, build_resource_identifier
from gateway.services import build_gateway_services

_CHAT = ClientInformation(client_id="bench", redirect_uris=None)


@dataclass(frozen=True)
class BenchmarkPerson:
    """A person who is signed in, in a chat client and in a browser."""

    principal: Principal
    token: str
    browser: NewBrowserSession


@dataclass(frozen=True)
class ConsentTimes:
    """When the browser sent a callback and when it was answered, in seconds of the monotonic clock."""

    sent_at: float
    answered_at: float


class BenchmarkPeople:
    """Creates people, and consents for them."""

    def __init__(self, services: Services, http: httpx2.AsyncClient) -> None:
        self._services = services
        self._http = http
        gateway_services = build_gateway_services(services)
        self._sessions, self._visits = gateway_services.browser_sessions, gateway_services.browser_visits
        self._oauth_tables = gateway_services.oauth_tables
        self._numbers = count(1)

    async def add_person(self) -> BenchmarkPerson:
        """Create a person without consents."""
        name = f"person-{next(self._numbers)}"
        issuer = self._services.settings.public_url
        principal = await self._services.principals.resolve_principal(issuer, name, name)
        browser = await self._sessions.begin_session(
            Request({"type": "http", "headers": []}), principal, self._visits.create_visit()
        )
        return BenchmarkPerson(principal, await self._issue_token(principal), browser)

    async def _issue_token(self, principal: Principal) -> str:
        resource = build_resource_identifier(self._services.settings)
        consent = ClientConsent(
            id=f"bench-{principal.id}",
            principal_id=principal.id,
            client_id=_CHAT.client_id,
            client_name=_CHAT.display_name,
            resource=resource,
            scopes=(MCP_SCOPE,),
            created_at=utc_now(),
            expires_at=utc_now() + UNUSED_CONSENT_LIFE,
        )
        await self._oauth_tables.client_consents.store_consent(consent)
        issued_tokens = await self._oauth_tables.token_issuer.issue_tokens(
            principal, _CHAT, consent.scopes, consent.id, resource=resource, has_refresh_token=False
        )
        return issued_tokens.access_token

    async def consent(self, person: BenchmarkPerson, link: str) -> ConsentTimes:
        """Consent to the request of a link. The upstream redirects the browser to the callback at once."""
        request = await self._services.authorization_requests.find_request(link.rpartition("/")[2])
        assert request is not None, "the gateway handed out a link to nothing"
        step = await self._services.sign_ins.begin_redirect(request, person.browser.browser_session.id)
        assert step is not None, "the upstream has no page"
        state = parse_qs(urlsplit(step.url).query)["state"][0]
        sent_at = time.monotonic()
        answer = await self._http.get(
            f"{self._services.settings.public_url}/oauth/callback",
            params={"state": state, "code": "bench"},
            headers={"Cookie": f"byline={person.browser.cookie_value}"},
        )
        answered_at = time.monotonic()
        assert answer.status_code == 303, f"the callback was refused: {answer.status_code} {answer.text}"
        return ConsentTimes(sent_at, answered_at)


@asynccontextmanager
async def open_people(stack: EmbeddedStack, gateway_url: str | None = None) -> AsyncIterator[BenchmarkPeople]:
    """Open the people of a stack, who use its gateway, or another one with the same database."""
    has = stack.services["gateway"].environment
    settings = Settings(
        database=DatabaseSettings(url=has["BYLINE_DATABASE__URL"]),
        vault=VaultSettings(keyring_file=Path(has["BYLINE_VAULT__KEYRING_FILE"])),
        gateway=GatewaySettings(public_url=gateway_url or stack.gateway_url),
    )
    async with (
        open_services(settings, stack.build_environment("gateway")) as services,
        httpx2.AsyncClient(timeout=60.0, trust_env=False) as http,
    ):
        yield BenchmarkPeople(services, http)
