"""Token exchange (RFC 8693): a registered back end exchanges a user's token for a short-lived access token.

This is delegation and never impersonation: the new token names the back end in `act`, and cannot be exchanged again.
"""

import hmac
import time
from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote_plus

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from joserfc.errors import ClaimError
from joserfc.jwt import JWTClaimsRegistry

from engine.audit.trail import AuditEvent, AuditTrail
from engine.errors import IdentityForged
from engine.identity.claims import VerifiedClaims
from engine.identity.model import Actor, Principal
from engine.identity.principals import Principals
from engine.identity.signing import SigningKeys
from engine.wire import ACCESS_TOKEN_TYPE
from gateway.authorization_server.claims import ACT_CLAIM
from gateway.authorization_server.clients import ClientInformation, OAuthClients
from gateway.authorization_server.registered_clients import TOKEN_EXCHANGE_GRANT_TYPE
from gateway.authorization_server.tokens import TokenIssuer
from gateway.protected_resource import MCP_SCOPE
from gateway.sign_in.issuer_client import read_display_name
from gateway.sign_in.issuer_keys import IssuerKeys, VerifiedToken

EXCHANGED_LIFE_SECONDS: Final = 300

_ACCESS_TOKEN_TYPE_URI: Final = "urn:ietf:params:oauth:token-type:access_token"
_ID_TOKEN_TYPE_URI: Final = "urn:ietf:params:oauth:token-type:id_token"
_JWT_TYPE_URI: Final = "urn:ietf:params:oauth:token-type:jwt"
_NO_STORE_HEADERS: Final = {"Cache-Control": "no-store", "Pragma": "no-cache"}


class _ExchangeRefused(Exception):
    """An error response of RFC 6749 section 5.2 or RFC 8693 section 2.2.2."""

    def __init__(self, error_code: str, description: str, status_code: int = 400) -> None:
        super().__init__(description)
        self.error_code = error_code
        self.status_code = status_code


@dataclass(frozen=True, slots=True)
class _ExchangeSubject:
    """The user whose token was sent, its expiry in seconds since the epoch, and the requested scopes."""

    principal: Principal
    expires_at: int
    scope_names: tuple[str, ...]


class TokenExchangeEndpoint:
    """Answers requests with the grant type of RFC 8693."""

    def __init__(
        self,
        signing_keys: SigningKeys,
        audit_trail: AuditTrail,
        oauth_clients: OAuthClients,
        subject_tokens: "OwnSubjectTokens | ExternalSubjectTokens",
        *,
        issuer_url: str,
        resource_identifiers: Sequence[str],
        scope_names: Sequence[str],
    ) -> None:
        self._signing_keys = signing_keys
        self._audit_trail = audit_trail
        self._oauth_clients = oauth_clients
        self._subject_tokens = subject_tokens
        self._issuer_url = issuer_url
        self._resource_identifiers = resource_identifiers
        self._known_scopes = frozenset({MCP_SCOPE, *scope_names})

    async def answer_request(self, request: Request, form_fields: Mapping[str, str]) -> Response:
        """Return the token response, or the error response of RFC 8693 section 2.2.2."""
        try:
            return JSONResponse(await self._exchange_token(request, form_fields), headers=_NO_STORE_HEADERS)
        except _ExchangeRefused as refusal:
            error_body = {"error": refusal.error_code, "error_description": str(refusal)}
            headers = dict(_NO_STORE_HEADERS)
            if refusal.status_code == 401:
                headers["WWW-Authenticate"] = 'Basic realm="Byline"'
            return JSONResponse(error_body, refusal.status_code, headers)

    async def _exchange_token(self, request: Request, form_fields: Mapping[str, str]) -> dict[str, Any]:
        backend_client = await self._authenticate_backend(request)
        resource = self._resolve_resource(form_fields)
        exchange_subject = await self._verify_subject(form_fields, backend_client)
        expires_at = min(int(time.time()) + EXCHANGED_LIFE_SECONDS, exchange_subject.expires_at)
        access_token = await self._signing_keys.sign_claims(
            {
                "iss": self._issuer_url,
                "sub": exchange_subject.principal.id,
                "aud": resource,
                "client_id": backend_client.client_id,
                "scope": " ".join(exchange_subject.scope_names),
                "exp": expires_at,
                ACT_CLAIM: {"iss": self._issuer_url, "sub": backend_client.client_id},
            },
            ACCESS_TOKEN_TYPE,
        )
        actor = Actor(kind="api_client", id=backend_client.client_id, name=backend_client.display_name)
        audit_event = AuditEvent(
            kind="token.exchanged",
            principal=exchange_subject.principal,
            actor=actor,
            message=f"For {resource}.",
        )
        await self._audit_trail.append_event(audit_event)
        return {
            "access_token": access_token,
            "issued_token_type": _ACCESS_TOKEN_TYPE_URI,
            "token_type": "Bearer",
            "expires_in": max(expires_at - int(time.time()), 0),
            "scope": " ".join(exchange_subject.scope_names),
        }

    async def _authenticate_backend(self, request: Request) -> ClientInformation:
        """Return the back end that authenticated by client_secret_basic (RFC 6749 section 2.3.1)."""
        client_id, client_secret = _read_basic_credentials(request)
        oauth_client = await self._oauth_clients.find_client(client_id)
        registered_secret = oauth_client.client_secret if oauth_client is not None else None
        # Compared for an unknown client as well, so that both answers take equally long.
        is_secret_right = hmac.compare_digest((registered_secret or "").encode(), client_secret.encode())
        if oauth_client is None or not registered_secret or not is_secret_right:
            raise _ExchangeRefused(
                "invalid_client", "Send the id and secret of a back end in HTTP Basic.", 401
            )
        if oauth_client.backend is None:
            raise _ExchangeRefused(
                "unauthorized_client",
                "This client is not a back end that an administrator registered for token exchange.",
            )
        return oauth_client

    def _resolve_resource(self, form_fields: Mapping[str, str]) -> str:
        """Return the resource that `resource` or `audience` names; the API where the form has neither."""
        requested_resources = {
            form_fields[parameter_name].removesuffix("/")
            for parameter_name in ("resource", "audience")
            if form_fields.get(parameter_name)
        }
        if not requested_resources:
            return self._resource_identifiers[-1]
        if len(requested_resources) > 1 or not requested_resources <= set(self._resource_identifiers):
            raise _ExchangeRefused(
                "invalid_target", f"The resources here are {', '.join(self._resource_identifiers)}."
            )
        return requested_resources.pop()

    async def _verify_subject(
        self, form_fields: Mapping[str, str], backend_client: ClientInformation
    ) -> _ExchangeSubject:
        subject_token_type = form_fields.get("subject_token_type")
        if not form_fields.get("subject_token") or subject_token_type not in {
            _ACCESS_TOKEN_TYPE_URI,
            _ID_TOKEN_TYPE_URI,
            _JWT_TYPE_URI,
        }:
            raise _ExchangeRefused(
                "invalid_request",
                "Send subject_token and subject_token_type: the user's access token or ID token.",
            )
        if form_fields.get("actor_token") or form_fields.get("actor_token_type"):
            raise _ExchangeRefused(
                "invalid_request", "Send no actor token: the actor is the back end itself."
            )
        if form_fields.get("requested_token_type", _ACCESS_TOKEN_TYPE_URI) != _ACCESS_TOKEN_TYPE_URI:
            raise _ExchangeRefused("invalid_request", "Only access tokens are issued here.")
        requested_scopes = tuple(dict.fromkeys(form_fields.get("scope", MCP_SCOPE).split()))
        if not self._known_scopes.issuperset(requested_scopes):
            raise _ExchangeRefused(
                "invalid_scope", f"The scopes here are {' '.join(sorted(self._known_scopes))}."
            )
        claims = await self._subject_tokens.verify_claims(
            form_fields["subject_token"], subject_token_type, backend_client
        )
        may_act = claims.get("may_act")
        if may_act is not None and not (
            isinstance(may_act, dict) and may_act.get("sub") == backend_client.client_id
        ):
            raise _ExchangeRefused(
                "invalid_request", "The subject token says who may act for its subject: not this."
            )
        if ACT_CLAIM in claims:
            raise _ExchangeRefused(
                "invalid_request", "The subject token is itself one that somebody acts with."
            )
        if not self._subject_tokens.may_grant_scopes(requested_scopes, claims):
            raise _ExchangeRefused("invalid_scope", "The subject token does not have that scope.")
        # Last, since this creates the principal of an external issuer's user.
        principal = await self._subject_tokens.find_principal(claims)
        if principal is None or not principal.is_active or principal.kind != "person":
            raise _ExchangeRefused("invalid_request", "The subject token's subject may not act here.")
        return _ExchangeSubject(principal, int(claims["exp"]), requested_scopes)


class OwnSubjectTokens:
    """Verifies access tokens that the built-in server issued to people, for one of its resources."""

    def __init__(
        self,
        signing_keys: SigningKeys,
        token_issuer: TokenIssuer,
        *,
        issuer_url: str,
        resource_identifiers: Sequence[str],
    ) -> None:
        self._signing_keys = signing_keys
        self._token_issuer = token_issuer
        self._claims_registry = JWTClaimsRegistry(
            iss={"essential": True, "value": issuer_url},
            aud={"essential": True, "values": list(resource_identifiers)},
            sub={"essential": True},
            exp={"essential": True},
            client_id={"essential": True},
        )

    async def verify_claims(
        self, subject_token: str, subject_token_type: str, _backend_client: ClientInformation
    ) -> VerifiedClaims:
        """Return the claims of a token; raises _ExchangeRefused where it is not valid."""
        if subject_token_type == _ID_TOKEN_TYPE_URI:
            raise _ExchangeRefused("invalid_request", "No ID tokens are issued here: bring an access token.")
        try:
            claims = await self._signing_keys.verify_token(subject_token, ACCESS_TOKEN_TYPE)
            self._claims_registry.validate(claims)
        except (IdentityForged, ClaimError):
            raise _build_invalid_token_error() from None
        return claims

    def may_grant_scopes(self, scope_names: Sequence[str], claims: VerifiedClaims) -> bool:
        """Whether the person consented to these scopes."""
        return set(scope_names) <= set(str(claims.get("scope")).split())

    async def find_principal(self, claims: VerifiedClaims) -> Principal | None:
        """Return the principal of the token, or None where its consent ended."""
        token_holder = await self._token_issuer.find_holder(claims)
        return None if token_holder is None else token_holder[0]


class ExternalSubjectTokens:
    """Verifies tokens that the external issuer issued to the back end, by the audiences registered for it."""

    def __init__(self, principals: Principals, issuer_keys: IssuerKeys) -> None:
        self._principals = principals
        self._issuer_keys = issuer_keys

    async def verify_claims(
        self, subject_token: str, subject_token_type: str, backend_client: ClientInformation
    ) -> VerifiedClaims:
        """Return the claims of a token.

        Raises _ExchangeRefused where it is not valid, and UpstreamUnavailable where the issuer's keys cannot be read.
        """
        audiences = () if backend_client.backend is None else backend_client.backend.audiences
        for audience in audiences:
            try:
                verified_token = await self._issuer_keys.verify_token(subject_token, audience=audience)
            except IdentityForged:
                continue
            if (
                _has_stated_type(verified_token, subject_token_type, audiences)
                and verified_token.claims["exp"] > time.time()
            ):
                return verified_token.claims
        raise _build_invalid_token_error()

    def may_grant_scopes(self, _scope_names: Sequence[str], _claims: VerifiedClaims) -> bool:
        """Always true: an ID token has no scopes, and an administrator trusts the back end."""
        return True

    async def find_principal(self, claims: VerifiedClaims) -> Principal | None:
        """Return the principal of the token, which is created when it is first seen."""
        return await self._principals.resolve_principal(
            claims["iss"], claims["sub"], read_display_name(claims)
        )


def _has_stated_type(
    verified_token: VerifiedToken, subject_token_type: str, audiences: tuple[str, ...]
) -> bool:
    """Whether the token is of the type that the request states, and not another statement of the issuer."""
    token_type = str(verified_token.header.get("typ") or "jwt").lower().removeprefix("application/")
    if token_type == ACCESS_TOKEN_TYPE:
        return subject_token_type != _ID_TOKEN_TYPE_URI
    # A logout token may have no type of its own, and always has events (OpenID Connect Back-Channel Logout 2.4).
    if token_type != "jwt" or "events" in verified_token.claims:
        return False
    # An ID token for several audiences names the one party that it was issued to (OpenID Connect Core 2).
    return (
        subject_token_type != _ID_TOKEN_TYPE_URI
        or verified_token.claims.get("azp", audiences[0]) in audiences
    )


def is_token_exchange(form_fields: Mapping[str, str]) -> bool:
    """Whether a token request has the grant type of RFC 8693."""
    return form_fields.get("grant_type") == TOKEN_EXCHANGE_GRANT_TYPE


def _build_invalid_token_error() -> _ExchangeRefused:
    msg = "The subject token does not hold: it expired or was revoked, or was not issued for this."
    return _ExchangeRefused("invalid_request", msg)


def _read_basic_credentials(request: Request) -> tuple[str, str]:
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    try:
        decoded_credentials = (
            b64decode(credentials, validate=True).decode() if scheme.lower() == "basic" else ""
        )
    except (NotBase64, UnicodeDecodeError):
        decoded_credentials = ""
    client_id, _, client_secret = decoded_credentials.partition(":")
    return unquote_plus(client_id), unquote_plus(client_secret)
