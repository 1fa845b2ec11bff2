"""Simulates a person with a chat client: it signs in to Byline with the `mcp` package's client and receives links."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import httpx2
from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider, TokenStorage
from mcp.client.client import Client
from mcp.client.context import ClientRequestContext
from mcp.client.session import MessageHandlerFnT
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from mcp_types import ElicitRequestFormParams, ElicitRequestParams, ElicitResult
from pydantic import AnyUrl

from examples.browser import Browser, Page

_REDIRECT = "http://127.0.0.1:9/back-to-the-client"


class MemoryTokenStorage(TokenStorage):
    """Stores a client's tokens in memory."""

    def __init__(self) -> None:
        self.tokens: OAuthToken | None = None
        self.client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        """Return the tokens, or None before the sign-in."""
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        """Store new tokens."""
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        """Return the registration, or None before there is one."""
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        """Store the registration."""
        self.client = client_info


@dataclass
class Person:
    """A person with a browser, an account at Byline, and an account at each upstream, by its host and port."""

    username: str
    password: str
    upstream_accounts: dict[str, tuple[str, str]] = field(default_factory=dict)
    browser: Browser = field(default_factory=lambda: Browser(stop_at=_REDIRECT))
    links: "asyncio.Queue[str]" = field(default_factory=asyncio.Queue)
    has_signed_in: asyncio.Event = field(default_factory=asyncio.Event)
    tokens: MemoryTokenStorage = field(default_factory=MemoryTokenStorage)
    decision: Literal["accept", "decline", "cancel"] = "accept"
    forms: "asyncio.Queue[ElicitRequestFormParams]" = field(default_factory=asyncio.Queue)
    enters: dict[str, str | int | float | bool | list[str] | None] = field(default_factory=dict)

    async def sign_in(self, url: str) -> str:
        """Sign in at Byline, consent to the chat client, and return the address that redirects to the client."""
        page = await self.open(url)
        page = await page.form(submit="Allow")
        return page.url

    async def open(self, url: str) -> Page:
        """Open one of Byline's pages, and sign in if it asks for that."""
        page = await self.browser.open(url)
        if "/sign-in" in page.url:
            return await page.form(submit="Sign in", username=self.username, password=self.password)
        return page

    async def connect(self, link: str) -> Page:
        """Open a link that the chat client showed, consent at the upstream, and return the last page."""
        page = await self.open(link)
        page = await page.form(submit="Continue")
        username, password = self.upstream_accounts[urlsplit(page.url).netloc]
        if 'name="password"' in page.text:
            page = await page.form(submit="Sign in", username=username, password=password)
        return await page.form(submit="Allow")


def build_oauth_provider(person: Person, url: str) -> OAuthClientProvider:
    """Return the OAuth provider that signs this person's client in at a resource after a 401."""

    async def redirect(address: str) -> None:
        query = parse_qs(urlsplit(await person.sign_in(address)).query)
        await answers.put(
            AuthorizationCodeResult(
                code=query["code"][0], state=query.get("state", [None])[0], iss=query.get("iss", [None])[0]
            )
        )

    # The client signs in at the start, and again if a tool needs another scope.
    answers: asyncio.Queue[AuthorizationCodeResult] = asyncio.Queue()

    metadata = OAuthClientMetadata(
        client_name="A chat client",
        redirect_uris=[AnyUrl(_REDIRECT)],
        grant_types=["authorization_code", "refresh_token"],
        response_types=["code"],
        token_endpoint_auth_method="none",
    )
    return OAuthClientProvider(
        url, metadata, person.tokens, redirect_handler=redirect, callback_handler=answers.get
    )


@asynccontextmanager
async def open_chat(
    person: Person,
    url: str,
    *,
    elicitation: bool = True,
    mode: Literal["auto", "legacy"] = "auto",
    transport: httpx2.AsyncBaseTransport | None = None,
    hears: MessageHandlerFnT | None = None,
) -> AsyncIterator[Client]:
    """Open an MCP client that is signed in as this person.

    A link that it is asked to open goes to `person.links`, and the client answers with `person.decision` once
    `person.has_signed_in` is set. A form that it is asked to show goes to `person.forms` and is answered at once with
    `person.enters`. Notifications of the server go to `hears`.
    """

    async def elicit(_context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        if isinstance(params, ElicitRequestFormParams):
            await person.forms.put(params)
            accepts = person.decision == "accept"
            return ElicitResult(action=person.decision, content=dict(person.enters) if accepts else None)
        await person.links.put(params.url)
        await person.has_signed_in.wait()
        return ElicitResult(action=person.decision)

    options: dict[str, Any] = {"elicitation_callback": elicit} if elicitation else {}
    options["message_handler"] = hears
    sending = transport or httpx2.AsyncHTTPTransport(limits=httpx2.Limits(max_keepalive_connections=0))
    async with (
        httpx2.AsyncClient(auth=build_oauth_provider(person, url), timeout=120, transport=sending) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode, **options) as client,
    ):
        yield client
