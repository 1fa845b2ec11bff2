"""The authorization server's endpoints: the handlers of the `mcp` package, and what the RFCs require beyond them."""

import json
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote, urlencode, urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from mcp.server.auth.handlers.authorize import AuthorizationHandler
from mcp.server.auth.handlers.register import RegistrationHandler
from mcp.server.auth.handlers.revoke import RevocationHandler
from mcp.server.auth.handlers.token import TokenHandler
from mcp.server.auth.middleware.client_auth import ClientAuthenticator
from mcp.server.auth.provider import construct_redirect_uri
from mcp.server.auth.settings import ClientRegistrationOptions
from pydantic import AnyUrl
from starlette.types import Message

from engine.errors import AddressRefused, BylineError, ClientRefused, TooSoon, UpstreamUnavailable
from engine.identity.model import Actor
from engine.services import Services
from gateway.authorization_server.assertions import ID_JAG_PROFILE
from gateway.authorization_server.consent_page import ConsentPage
from gateway.authorization_server.exchange import TokenExchange, is_token_exchange
from gateway.authorization_server.provider import CONSENT_PATH, Provider
from gateway.authorization_server.redirects import is_loopback, reaches
from gateway.authorization_server.registered_clients import JWT_BEARER, TOKEN_EXCHANGE
from gateway.browser.rendering import notice
from gateway.errors import http_status
from gateway.http.cross_origin import cross_origin
from gateway.protected_resource import all_scopes

_AUTH_METHODS = ["none", "client_secret_basic", "client_secret_post"]
_NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}


def authorization_server(services: Services) -> APIRouter:
    """Return the routes of the key set and token exchange, and of all endpoints without an external issuer."""
    router = APIRouter(include_in_schema=False)

    async def key_set(request: Request) -> Response:
        del request
        return JSONResponse(await services.keys.jwks())

    router.routes.append(cross_origin("/.well-known/jwks.json", "GET", key_set))
    exchange = TokenExchange(services)
    if services.settings.gateway.issuer is None:
        Endpoints(services, exchange).add_to(router)
    else:
        router.routes.append(cross_origin("/token", "POST", _only(exchange)))
    return router


class Endpoints:
    """OAuth 2.1 endpoints: client registration or documents, PKCE, resource indicators and `iss` (RFC 9207)."""

    def __init__(self, services: Services, exchange: TokenExchange) -> None:
        provider = Provider(services)
        authenticator = ClientAuthenticator(provider)
        settings = services.settings.gateway
        self._provider = provider
        self._exchange = exchange
        self._issuer = services.settings.public_url
        self._authorization = AuthorizationHandler(provider)
        self._asserted = bool(settings.assertion_issuers)
        self._token = TokenHandler(provider, authenticator, identity_assertion_enabled=self._asserted)
        self._revocation = RevocationHandler(provider, authenticator)
        self._open = settings.open_registration
        self._registration = RegistrationHandler(provider, ClientRegistrationOptions(enabled=True))
        self._consent = ConsentPage(services, provider.get_client)
        self._scopes = all_scopes(services)
        self._attempts = services.attempts

    def add_to(self, router: APIRouter) -> None:
        """Add every endpoint to the router.

        Chat clients that run in a browser may call all of them cross-origin, except the pages for people.
        """
        router.add_api_route("/authorize", self.authorize, methods=["GET"])
        router.add_api_route(f"{CONSENT_PATH}{{question}}", self._consent.ask, methods=["GET"])
        router.add_api_route(f"{CONSENT_PATH}{{question}}", self._consent.answer, methods=["POST"])
        router.routes.extend(
            [
                cross_origin("/.well-known/oauth-authorization-server", "GET", self.metadata),
                cross_origin("/token", "POST", self.token),
                cross_origin("/revoke", "POST", self.revoke),
            ]
        )
        if self._open:
            router.routes.append(cross_origin("/register", "POST", self.register))

    async def metadata(self, request: Request) -> Response:
        """Return the authorization server metadata (RFC 8414)."""
        del request
        document: dict[str, Any] = {
            "issuer": self._issuer,
            "authorization_endpoint": f"{self._issuer}/authorize",
            "token_endpoint": f"{self._issuer}/token",
            **({"registration_endpoint": f"{self._issuer}/register"} if self._open else {}),
            "revocation_endpoint": f"{self._issuer}/revoke",
            "jwks_uri": f"{self._issuer}/.well-known/jwks.json",
            "scopes_supported": self._scopes,
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "grant_types_supported": [
                *("authorization_code", "refresh_token", TOKEN_EXCHANGE),
                *([JWT_BEARER] if self._asserted else []),
            ],
            "token_endpoint_auth_methods_supported": _AUTH_METHODS,
            "revocation_endpoint_auth_methods_supported": _AUTH_METHODS,
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
            "client_id_metadata_document_supported": True,
            **({"authorization_grant_profiles_supported": [ID_JAG_PROFILE]} if self._asserted else {}),
        }
        return JSONResponse(document)

    async def authorize(self, request: Request) -> Response:
        """Handle an authorization request (RFC 6749 section 4.1.1).

        The person gets an error page where the request cannot be trusted to say where to send the browser.
        """
        if _repeats(request.query_params.multi_items()):
            return _cannot_continue("It names a parameter twice.")
        try:
            # Before the handler, which has no error for a client whose document is missing or invalid.
            client = await self._provider.get_client(request.query_params.get("client_id", ""))
        except BylineError as error:
            if isinstance(error, AddressRefused | ClientRefused):
                await self._attempts.refused("client document", "client_refused", str(error))
            return _cannot_continue(str(error), http_status(error))
        response = await self._authorization.handle(request)
        location = response.headers.get("location")
        if location is None:
            if client is not None:
                message = "An application asked to send a person's answer to an address that is not its own."
                actor = Actor("mcp_client", client.client_id, client.title)
                await self._attempts.refused("request to authorize", "redirect_refused", message, actor=actor)
            return _cannot_continue(str(json.loads(bytes(response.body)).get("error_description")))
        if "error" in parse_qs(urlsplit(location).query):
            back = construct_redirect_uri(location, iss=self._issuer)
            target = AnyUrl(back)
            if client is not None and client.known_by != "administrator" and not is_loopback(target):
                # Anybody can register any site, so the browser is not redirected there (RFC 9700 section 4.11.2).
                problem = "Go back only where you know whom you go to."
                return _cannot_continue(problem, link=(back, f"Go back to {reaches(target)}"))
            response.headers["location"] = back
        return response

    async def register(self, request: Request) -> Response:
        """Register a client (RFC 7591), up to a number of clients an hour."""
        try:
            return await self._registration.handle(request)
        except TooSoon as error:
            return JSONResponse(
                {"error": "temporarily_unavailable", "error_description": str(error)}, 429, _NO_STORE
            )

    async def token(self, request: Request) -> Response:
        """Answer a token request (RFC 6749 section 3.2) with a resource indicator (RFC 8707 section 2.2)."""
        form = await _form(request)
        if form is None:
            return _invalid_request()
        if is_token_exchange(form):
            return await self._exchange.answer(request, form)
        if not self._provider.serves(form.get("resource")):
            error = {
                "error": "invalid_target",
                "error_description": "This server issues no token for that resource.",
            }
            return JSONResponse(error, 400, _NO_STORE)
        undescribed = await self._undescribed(form)
        if undescribed is not None:
            return undescribed
        return _challenged(await self._token.handle(_sending(request, form)))

    async def revoke(self, request: Request) -> Response:
        """Revoke a token (RFC 7009)."""
        form = await _form(request)
        if form is None:
            return _invalid_request()
        undescribed = await self._undescribed(form)
        if undescribed is not None:
            return undescribed
        # The handler requires this field, which a public client or one with Basic authentication does not send.
        return _challenged(await self._revocation.handle(_sending(request, {"client_secret": "", **form})))

    async def _undescribed(self, form: Mapping[str, str]) -> Response | None:
        """Return an error response where the client's document is missing or invalid, and None otherwise."""
        try:
            await self._provider.get_client(form.get("client_id", ""))
        except UpstreamUnavailable as error:
            told = {"error": "temporarily_unavailable", "error_description": str(error)}
            return JSONResponse(told, 503, _NO_STORE)
        except BylineError as error:
            return JSONResponse({"error": "invalid_client", "error_description": str(error)}, 401, _NO_STORE)
        return None


def _only(exchange: TokenExchange) -> Callable[[Request], Awaitable[Response]]:
    """Return the token endpoint for an external issuer: it serves only the token exchange of back ends."""

    async def token(request: Request) -> Response:
        form = await _form(request)
        if form is None:
            return _invalid_request()
        if not is_token_exchange(form):
            text = (
                "Tokens come from the issuer that signs people in. Here, back ends exchange them (RFC 8693)."
            )
            told = {"error": "unsupported_grant_type", "error_description": text}
            return JSONResponse(told, 400, _NO_STORE)
        return await exchange.answer(request, form)

    return token


async def _form(request: Request) -> dict[str, str] | None:
    """Return the form of a client's request, or None where it is not a valid form.

    A `client_id` from Basic authentication is added where the form has none.
    """
    fields = parse_qsl((await request.body()).decode("utf-8", "replace"), keep_blank_values=True)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded" or _repeats(fields):
        return None
    form = dict(fields)
    client_id = _basic_client_id(request)
    return form if client_id is None else {"client_id": client_id, **form}


def _basic_client_id(request: Request) -> str | None:
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return unquote(b64decode(credentials, validate=True).decode().partition(":")[0])
    except ValueError:
        return None


def _sending(request: Request, form: dict[str, str]) -> Request:
    body = urlencode(form).encode()

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(request.scope, receive)


def _repeats(fields: list[tuple[str, str]]) -> bool:
    return len({name for name, _ in fields}) != len(fields)


def _challenged(response: Response) -> Response:
    if response.status_code == 401:
        response.headers["WWW-Authenticate"] = 'Basic realm="Byline"'
    return response


def _invalid_request() -> Response:
    text = "Send application/x-www-form-urlencoded, each parameter once."
    return JSONResponse({"error": "invalid_request", "error_description": text}, 400, _NO_STORE)


def _cannot_continue(problem: str, status: int = 400, link: tuple[str, str] | None = None) -> Response:
    text = f"The application that sent you here made a request that Byline cannot answer. {problem}"
    return notice("This application cannot continue", text, status=status, link=link)
