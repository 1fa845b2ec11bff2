"""The authorization server's endpoints: the handlers of the `mcp` package, and what the RFCs require beyond them."""

import json
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping, Sequence
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

from engine.audit.attempts import RefusedAttempts
from engine.errors import AddressRefused, BylineError, ClientRefused, TooSoon, UpstreamUnavailable
from engine.identity.model import Actor
from gateway.authorization_server.consent_page import ConsentPage
from gateway.authorization_server.identity_assertions import ID_JAG_PROFILE
from gateway.authorization_server.provider import CONSENT_PATH, AuthorizationServerProvider
from gateway.authorization_server.redirect_uris import describe_receiver, is_loopback_uri
from gateway.authorization_server.registered_clients import JWT_BEARER_GRANT_TYPE, TOKEN_EXCHANGE_GRANT_TYPE
from gateway.authorization_server.token_exchange import TokenExchangeEndpoint, is_token_exchange
from gateway.browser.rendering import render_notice
from gateway.error_codes import to_http_status
from gateway.http.cross_origin import create_cross_origin_route

_CLIENT_AUTH_METHODS = ["none", "client_secret_basic", "client_secret_post"]
_NO_STORE_HEADERS = {"Cache-Control": "no-store", "Pragma": "no-cache"}


class AuthorizationServerEndpoints:
    """OAuth 2.1 endpoints: client registration or documents, PKCE, resource indicators and `iss` (RFC 9207)."""

    def __init__(
        self,
        provider: AuthorizationServerProvider,
        consent_page: ConsentPage,
        token_exchange: TokenExchangeEndpoint,
        attempts: RefusedAttempts,
        *,
        issuer_url: str,
        scope_names: Sequence[str],
        is_registration_open: bool,
        has_assertion_issuers: bool,
    ) -> None:
        client_authenticator = ClientAuthenticator(provider)
        self._provider = provider
        self._consent_page = consent_page
        self._token_exchange = token_exchange
        self._attempts = attempts
        self._issuer_url = issuer_url
        self._scope_names = scope_names
        self._authorization_handler = AuthorizationHandler(provider)
        self._has_assertion_issuers = has_assertion_issuers
        self._token_handler = TokenHandler(
            provider, client_authenticator, identity_assertion_enabled=self._has_assertion_issuers
        )
        self._revocation_handler = RevocationHandler(provider, client_authenticator)
        self._is_registration_open = is_registration_open
        self._registration_handler = RegistrationHandler(provider, ClientRegistrationOptions(enabled=True))

    def add_routes(self, oauth_router: APIRouter) -> None:
        """Add every endpoint to the router.

        Chat clients that run in a browser may call all of them cross-origin, except the pages for people.
        """
        oauth_router.add_api_route("/authorize", self.start_authorization, methods=["GET"])
        oauth_router.add_api_route(
            f"{CONSENT_PATH}{{question}}", self._consent_page.show_request, methods=["GET"]
        )
        oauth_router.add_api_route(
            f"{CONSENT_PATH}{{question}}", self._consent_page.answer_request, methods=["POST"]
        )
        oauth_router.routes.extend(
            [
                create_cross_origin_route(
                    "/.well-known/oauth-authorization-server", "GET", self.show_metadata
                ),
                create_cross_origin_route("/token", "POST", self.answer_token_request),
                create_cross_origin_route("/revoke", "POST", self.revoke_token),
            ]
        )
        if self._is_registration_open:
            oauth_router.routes.append(create_cross_origin_route("/register", "POST", self.register_client))

    async def show_metadata(self, _request: Request) -> Response:
        """Return the authorization server metadata (RFC 8414)."""
        metadata_document: dict[str, Any] = {
            "issuer": self._issuer_url,
            "authorization_endpoint": f"{self._issuer_url}/authorize",
            "token_endpoint": f"{self._issuer_url}/token",
            **(
                {"registration_endpoint": f"{self._issuer_url}/register"}
                if self._is_registration_open
                else {}
            ),
            "revocation_endpoint": f"{self._issuer_url}/revoke",
            "jwks_uri": f"{self._issuer_url}/.well-known/jwks.json",
            "scopes_supported": self._scope_names,
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "grant_types_supported": [
                *("authorization_code", "refresh_token", TOKEN_EXCHANGE_GRANT_TYPE),
                *([JWT_BEARER_GRANT_TYPE] if self._has_assertion_issuers else []),
            ],
            "token_endpoint_auth_methods_supported": _CLIENT_AUTH_METHODS,
            "revocation_endpoint_auth_methods_supported": _CLIENT_AUTH_METHODS,
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
            "client_id_metadata_document_supported": True,
            **(
                {"authorization_grant_profiles_supported": [ID_JAG_PROFILE]}
                if self._has_assertion_issuers
                else {}
            ),
        }
        return JSONResponse(metadata_document)

    async def start_authorization(self, request: Request) -> Response:
        """Handle an authorization request (RFC 6749 section 4.1.1).

        The person gets an error page where the request cannot be trusted to say where to send the browser.
        """
        if _has_repeats(request.query_params.multi_items()):
            return _render_cannot_continue("It names a parameter twice.")
        try:
            # Before the handler, which has no error for a client whose document is missing or invalid.
            oauth_client = await self._provider.get_client(request.query_params.get("client_id", ""))
        except BylineError as error:
            if isinstance(error, AddressRefused | ClientRefused):
                await self._attempts.record_refusal("client document", "client_refused", str(error))
            return _render_cannot_continue(str(error), to_http_status(error))
        response = await self._authorization_handler.handle(request)
        redirect_location = response.headers.get("location")
        if redirect_location is None:
            if oauth_client is not None:
                attempt_message = (
                    "An application asked to send a person's answer to an address that is not its own."
                )
                actor = Actor("mcp_client", oauth_client.client_id, oauth_client.display_name)
                await self._attempts.record_refusal(
                    "request to authorize", "redirect_refused", attempt_message, actor=actor
                )
            return _render_cannot_continue(str(json.loads(bytes(response.body)).get("error_description")))
        if "error" in parse_qs(urlsplit(redirect_location).query):
            error_address = construct_redirect_uri(redirect_location, iss=self._issuer_url)
            redirect_uri = AnyUrl(error_address)
            if (
                oauth_client is not None
                and oauth_client.known_by != "administrator"
                and not is_loopback_uri(redirect_uri)
            ):
                # Anybody can register any site, so the browser is not redirected there (RFC 9700 section 4.11.2).
                problem_text = "Go back only where you know whom you go to."
                return _render_cannot_continue(
                    problem_text, notice_link=(error_address, f"Go back to {describe_receiver(redirect_uri)}")
                )
            response.headers["location"] = error_address
        return response

    async def register_client(self, request: Request) -> Response:
        """Register a client (RFC 7591), up to a number of clients an hour."""
        try:
            return await self._registration_handler.handle(request)
        except TooSoon as error:
            return JSONResponse(
                {"error": "temporarily_unavailable", "error_description": str(error)}, 429, _NO_STORE_HEADERS
            )

    async def answer_token_request(self, request: Request) -> Response:
        """Answer a token request (RFC 6749 section 3.2) with a resource indicator (RFC 8707 section 2.2)."""
        form_fields = await _read_form(request)
        if form_fields is None:
            return _build_invalid_request()
        if is_token_exchange(form_fields):
            return await self._token_exchange.answer_request(request, form_fields)
        if not self._provider.is_own_resource(form_fields.get("resource")):
            error_body = {
                "error": "invalid_target",
                "error_description": "This server issues no token for that resource.",
            }
            return JSONResponse(error_body, 400, _NO_STORE_HEADERS)
        client_error = await self._check_client(form_fields)
        if client_error is not None:
            return client_error
        return _add_challenge(await self._token_handler.handle(_replace_form(request, form_fields)))

    async def revoke_token(self, request: Request) -> Response:
        """Revoke a token (RFC 7009)."""
        form_fields = await _read_form(request)
        if form_fields is None:
            return _build_invalid_request()
        client_error = await self._check_client(form_fields)
        if client_error is not None:
            return client_error
        # The handler requires this field, which a public client or one with Basic authentication does not send.
        return _add_challenge(
            await self._revocation_handler.handle(
                _replace_form(request, {"client_secret": "", **form_fields})
            )
        )

    async def _check_client(self, form_fields: Mapping[str, str]) -> Response | None:
        """Return an error response where the client's document is missing or invalid, and None otherwise."""
        try:
            await self._provider.get_client(form_fields.get("client_id", ""))
        except UpstreamUnavailable as error:
            error_body = {"error": "temporarily_unavailable", "error_description": str(error)}
            return JSONResponse(error_body, 503, _NO_STORE_HEADERS)
        except BylineError as error:
            return JSONResponse(
                {"error": "invalid_client", "error_description": str(error)}, 401, _NO_STORE_HEADERS
            )
        return None


def build_exchange_endpoint(
    token_exchange: TokenExchangeEndpoint,
) -> Callable[[Request], Awaitable[Response]]:
    """Return the token endpoint for an external issuer: it serves only the token exchange of back ends."""

    async def answer_token_request(request: Request) -> Response:
        form_fields = await _read_form(request)
        if form_fields is None:
            return _build_invalid_request()
        if not is_token_exchange(form_fields):
            error_description = (
                "Tokens come from the issuer that signs people in. Here, back ends exchange them (RFC 8693)."
            )
            error_body = {"error": "unsupported_grant_type", "error_description": error_description}
            return JSONResponse(error_body, 400, _NO_STORE_HEADERS)
        return await token_exchange.answer_request(request, form_fields)

    return answer_token_request


async def _read_form(request: Request) -> dict[str, str] | None:
    """Return the form of a client's request, or None where it is not a valid form.

    A `client_id` from Basic authentication is added where the form has none.
    """
    form_pairs = parse_qsl((await request.body()).decode("utf-8", "replace"), keep_blank_values=True)
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/x-www-form-urlencoded" or _has_repeats(form_pairs):
        return None
    form_fields = dict(form_pairs)
    client_id = _read_basic_client_id(request)
    return form_fields if client_id is None else {"client_id": client_id, **form_fields}


def _read_basic_client_id(request: Request) -> str | None:
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return unquote(b64decode(credentials, validate=True).decode().partition(":")[0])
    except ValueError:
        return None


def _replace_form(request: Request, form_fields: dict[str, str]) -> Request:
    request_body = urlencode(form_fields).encode()

    async def receive() -> Message:
        return {"type": "http.request", "body": request_body, "more_body": False}

    return Request(request.scope, receive)


def _has_repeats(form_pairs: list[tuple[str, str]]) -> bool:
    return len({field_name for field_name, _ in form_pairs}) != len(form_pairs)


def _add_challenge(response: Response) -> Response:
    if response.status_code == 401:
        response.headers["WWW-Authenticate"] = 'Basic realm="Byline"'
    return response


def _build_invalid_request() -> Response:
    error_description = "Send application/x-www-form-urlencoded, each parameter once."
    return JSONResponse(
        {"error": "invalid_request", "error_description": error_description}, 400, _NO_STORE_HEADERS
    )


def _render_cannot_continue(
    problem_text: str, status_code: int = 400, notice_link: tuple[str, str] | None = None
) -> Response:
    notice_text = (
        f"The application that sent you here made a request that Byline cannot answer. {problem_text}"
    )
    return render_notice(
        "This application cannot continue", notice_text, status_code=status_code, next_link=notice_link
    )
