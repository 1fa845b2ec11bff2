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

from engine.audit.trail import AuditEvent
from engine.errors import IdentityForged
from engine.identity.model import Actor, Principal
from engine.services import Services
from engine.wire import ACCESS_TOKEN_TYPE
from gateway.authorization_server.claims import ACT_CLAIM
from gateway.authorization_server.clients import Client, Clients
from gateway.authorization_server.registered_clients import TOKEN_EXCHANGE
from gateway.authorization_server.tokens import Tokens
from gateway.protected_resource import SCOPE, all_scopes, resources
from gateway.sign_in.issuer_keys import IssuerKeys, VerifiedToken
from gateway.sign_in.openid import display_name

EXCHANGED_LIFE_SECONDS: Final = 300

_ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"
_ID_TOKEN: Final = "urn:ietf:params:oauth:token-type:id_token"
_JWT: Final = "urn:ietf:params:oauth:token-type:jwt"
_NO_STORE: Final = {"Cache-Control": "no-store", "Pragma": "no-cache"}


class _Refused(Exception):
    """An error response of RFC 6749 section 5.2 or RFC 8693 section 2.2.2."""

    def __init__(self, error: str, description: str, status: int = 400) -> None:
        super().__init__(description)
        self.error = error
        self.status = status


@dataclass(frozen=True, slots=True)
class _Subject:
    """The user whose token was sent, its expiry in seconds since the epoch, and the requested scopes."""

    principal: Principal
    expires_at: int
    scopes: tuple[str, ...]


class TokenExchange:
    """Answers requests with the grant type of RFC 8693."""

    def __init__(self, services: Services) -> None:
        self._keys = services.keys
        self._trail = services.trail
        self._clients = Clients(services)
        self._issuer = services.settings.public_url
        self._resources = resources(services.settings)
        self._scopes = frozenset({SCOPE, *all_scopes(services)})
        external = services.settings.gateway.issuer
        self._subjects = (
            _OwnSubjects(services, self._resources)
            if external is None
            else _ExternalSubjects(services, IssuerKeys(external, services.outgoing))
        )

    async def answer(self, request: Request, form: Mapping[str, str]) -> Response:
        """Return the token response, or the error response of RFC 8693 section 2.2.2."""
        try:
            return JSONResponse(await self._exchange(request, form), headers=_NO_STORE)
        except _Refused as refused:
            told = {"error": refused.error, "error_description": str(refused)}
            headers = dict(_NO_STORE)
            if refused.status == 401:
                headers["WWW-Authenticate"] = 'Basic realm="Byline"'
            return JSONResponse(told, refused.status, headers)

    async def _exchange(self, request: Request, form: Mapping[str, str]) -> dict[str, Any]:
        backend = await self._backend(request)
        resource = self._resource(form)
        subject = await self._subject(form, backend)
        expires_at = min(int(time.time()) + EXCHANGED_LIFE_SECONDS, subject.expires_at)
        token = await self._keys.sign(
            {
                "iss": self._issuer,
                "sub": subject.principal.id,
                "aud": resource,
                "client_id": backend.client_id,
                "scope": " ".join(subject.scopes),
                "exp": expires_at,
                ACT_CLAIM: {"iss": self._issuer, "sub": backend.client_id},
            },
            ACCESS_TOKEN_TYPE,
        )
        actor = Actor(kind="api_client", id=backend.client_id, name=backend.title)
        exchanged = AuditEvent(
            kind="token.exchanged", principal=subject.principal, actor=actor, message=f"For {resource}."
        )
        await self._trail.append(exchanged)
        return {
            "access_token": token,
            "issued_token_type": _ACCESS_TOKEN,
            "token_type": "Bearer",
            "expires_in": max(expires_at - int(time.time()), 0),
            "scope": " ".join(subject.scopes),
        }

    async def _backend(self, request: Request) -> Client:
        """Return the back end that authenticated by client_secret_basic (RFC 6749 section 2.3.1)."""
        client_id, secret = _basic(request)
        client = await self._clients.get(client_id)
        known = client.client_secret if client is not None else None
        # Compared for an unknown client as well, so that both answers take equally long.
        matches = hmac.compare_digest((known or "").encode(), secret.encode())
        if client is None or not known or not matches:
            raise _Refused("invalid_client", "Send the id and secret of a back end in HTTP Basic.", 401)
        if client.backend is None:
            raise _Refused(
                "unauthorized_client",
                "This client is not a back end that an administrator registered for token exchange.",
            )
        return client

    def _resource(self, form: Mapping[str, str]) -> str:
        """Return the resource that `resource` or `audience` names; the API where the form has neither."""
        asked = {form[name].removesuffix("/") for name in ("resource", "audience") if form.get(name)}
        if not asked:
            return self._resources[-1]
        if len(asked) > 1 or not asked <= set(self._resources):
            raise _Refused("invalid_target", f"The resources here are {', '.join(self._resources)}.")
        return asked.pop()

    async def _subject(self, form: Mapping[str, str], backend: Client) -> _Subject:
        kind = form.get("subject_token_type")
        if not form.get("subject_token") or kind not in {_ACCESS_TOKEN, _ID_TOKEN, _JWT}:
            raise _Refused(
                "invalid_request",
                "Send subject_token and subject_token_type: the user's access token or ID token.",
            )
        if form.get("actor_token") or form.get("actor_token_type"):
            raise _Refused("invalid_request", "Send no actor token: the actor is the back end itself.")
        if form.get("requested_token_type", _ACCESS_TOKEN) != _ACCESS_TOKEN:
            raise _Refused("invalid_request", "Only access tokens are issued here.")
        scopes = tuple(dict.fromkeys(form.get("scope", SCOPE).split()))
        if not self._scopes.issuperset(scopes):
            raise _Refused("invalid_scope", f"The scopes here are {' '.join(sorted(self._scopes))}.")
        claims = await self._subjects.claims(form["subject_token"], kind, backend)
        may_act = claims.get("may_act")
        if may_act is not None and not (
            isinstance(may_act, dict) and may_act.get("sub") == backend.client_id
        ):
            raise _Refused("invalid_request", "The subject token says who may act for its subject: not this.")
        if ACT_CLAIM in claims:
            raise _Refused("invalid_request", "The subject token is itself one that somebody acts with.")
        if not self._subjects.may_give(scopes, claims):
            raise _Refused("invalid_scope", "The subject token does not have that scope.")
        # Last, since this creates the principal of an external issuer's user.
        principal = await self._subjects.principal(claims)
        if principal is None or not principal.active or principal.kind != "person":
            raise _Refused("invalid_request", "The subject token's subject may not act here.")
        return _Subject(principal, int(claims["exp"]), scopes)


class _OwnSubjects:
    """Verifies access tokens that the built-in server issued to people, for one of its resources."""

    def __init__(self, services: Services, resources: tuple[str, ...]) -> None:
        self._keys = services.keys
        self._tokens = Tokens(services)
        self._claims = JWTClaimsRegistry(
            iss={"essential": True, "value": services.settings.public_url},
            aud={"essential": True, "values": list(resources)},
            sub={"essential": True},
            exp={"essential": True},
            client_id={"essential": True},
        )

    async def claims(self, token: str, kind: str, backend: Client) -> Mapping[str, Any]:
        """Return the claims of a token; raises _ExchangeRefused where it is not valid."""
        del backend
        if kind == _ID_TOKEN:
            raise _Refused("invalid_request", "No ID tokens are issued here: bring an access token.")
        try:
            claims = await self._keys.verify(token, ACCESS_TOKEN_TYPE)
            self._claims.validate(claims)
        except (IdentityForged, ClaimError):
            raise _invalid() from None
        return claims

    def may_give(self, scopes: Sequence[str], claims: Mapping[str, Any]) -> bool:
        """Whether the person consented to these scopes."""
        return set(scopes) <= set(str(claims.get("scope")).split())

    async def principal(self, claims: Mapping[str, Any]) -> Principal | None:
        """Return the principal of the token, or None where its consent ended."""
        holder = await self._tokens.holder(claims)
        return None if holder is None else holder[0]


class _ExternalSubjects:
    """Verifies tokens that the external issuer issued to the back end, by the audiences registered for it."""

    def __init__(self, services: Services, issuer: IssuerKeys) -> None:
        self._principals = services.principals
        self._issuer = issuer

    async def claims(self, token: str, kind: str, backend: Client) -> Mapping[str, Any]:
        """Return the claims of a token.

        Raises _ExchangeRefused where it is not valid, and UpstreamUnavailable where the issuer's keys cannot be read.
        """
        audiences = () if backend.backend is None else backend.backend.audiences
        for audience in audiences:
            try:
                verified = await self._issuer.verified(token, audience=audience)
            except IdentityForged:
                continue
            if _fits(verified, kind, audiences) and verified.claims["exp"] > time.time():
                return verified.claims
        raise _invalid()

    def may_give(self, scopes: Sequence[str], claims: Mapping[str, Any]) -> bool:
        """Always true: an ID token has no scopes, and an administrator trusts the back end."""
        del scopes, claims
        return True

    async def principal(self, claims: Mapping[str, Any]) -> Principal | None:
        """Return the principal of the token, which is created when it is first seen."""
        return await self._principals.resolve(claims["iss"], claims["sub"], display_name(claims))


def _fits(token: VerifiedToken, kind: str, audiences: tuple[str, ...]) -> bool:
    """Whether the token is of the type that the request states, and not another statement of the issuer."""
    typ = str(token.header.get("typ") or "jwt").lower().removeprefix("application/")
    if typ == ACCESS_TOKEN_TYPE:
        return kind != _ID_TOKEN
    # A logout token may have no type of its own, and always has events (OpenID Connect Back-Channel Logout 2.4).
    if typ != "jwt" or "events" in token.claims:
        return False
    # An ID token for several audiences names the one party that it was issued to (OpenID Connect Core 2).
    return kind != _ID_TOKEN or token.claims.get("azp", audiences[0]) in audiences


def is_token_exchange(form: Mapping[str, str]) -> bool:
    """Whether a token request has the grant type of RFC 8693."""
    return form.get("grant_type") == TOKEN_EXCHANGE


def _invalid() -> _Refused:
    msg = "The subject token does not hold: it expired or was revoked, or was not issued for this."
    return _Refused("invalid_request", msg)


def _basic(request: Request) -> tuple[str, str]:
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    try:
        decoded = b64decode(credentials, validate=True).decode() if scheme.lower() == "basic" else ""
    except (NotBase64, UnicodeDecodeError):
        decoded = ""
    client_id, _, secret = decoded.partition(":")
    return unquote_plus(client_id), unquote_plus(secret)
