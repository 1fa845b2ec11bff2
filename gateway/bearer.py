"""Verifies bearer tokens: a resource accepts only tokens issued for it, whose principal is still active."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, Final

from joserfc.errors import ClaimError
from joserfc.jwt import JWTClaimsRegistry
from mcp.server.auth.provider import AccessToken, TokenVerifier

from engine.audit.attempts import Attempts
from engine.callers.api_tokens import PREFIX, ApiTokens, bearer_actor
from engine.claims import unverified_claims
from engine.errors import IdentityForged, UpstreamUnavailable
from engine.identity.model import Actor, ActorKind, Principal
from engine.services import Services
from engine.settings import IssuerSettings
from engine.wire import ACCESS_TOKEN_TYPE
from gateway.authorization_server.claims import ACT_CLAIM, CLIENT_NAME_CLAIM
from gateway.authorization_server.clients import Clients
from gateway.authorization_server.tokens import Tokens
from gateway.protected_resource import API_PATH, all_scopes, resource_identifier
from gateway.sign_in.issuer_keys import IssuerKeys, VerifiedToken
from gateway.sign_in.openid import display_name
from gateway.toolsets import MCP_PATH

_LOOK_EVERY_SECONDS: Final = 10.0


class PersonalToken(AccessToken):
    """An access token with its principal, the actor that uses it, and the tools it is good for (None for all).

    `in_person` is true where its bearer signed in for it. It is false for API tokens and back ends.
    """

    principal: Principal
    actor: Actor
    tools: frozenset[str] | None = None
    in_person: bool


class BearerTokens(TokenVerifier):
    """Verifies every kind of token that one resource accepts, each kind with its own verifier."""

    def __init__(
        self, api_tokens: "PersonalApiTokens", own: "OwnTokens", external: "ExternalTokens | None"
    ) -> None:
        self._api_tokens = api_tokens
        self._own = own
        self._external = external

    async def verify_token(self, token: str) -> PersonalToken | None:
        """Return the token with its principal, or None where it is not valid."""
        if token.startswith(PREFIX):
            return await self._api_tokens.verify_token(token)
        # The unverified issuer only selects the verifier, which then verifies the issuer as well.
        if self._external is None or unverified_claims(token).get("iss") == self._own.issuer:
            return await self._own.verify_token(token)
        return await self._external.verify_token(token)


def bearer_tokens(services: Services, path: str = MCP_PATH) -> BearerTokens:
    """Build the verifier of one resource, for the kind of sign-in that the settings choose."""
    issuer = services.settings.gateway.issuer
    resource = resource_identifier(services.settings, path)
    client: ActorKind = "api_client" if path == API_PATH else "mcp_client"
    return BearerTokens(
        PersonalApiTokens(services.api_tokens, resource, all_scopes(services)),
        OwnTokens(services, resource, client),
        None if issuer is None else ExternalTokens(services, issuer, resource, client),
    )


async def is_good(tokens: TokenVerifier, token: str) -> bool:
    """Return whether a token is still accepted. A token that cannot be verified now counts as not accepted."""
    try:
        return await tokens.verify_token(token) is not None
    except UpstreamUnavailable:
        return False


async def refused(tokens: TokenVerifier, token: str) -> None:
    """Wait until a token is no longer accepted: it expired, was revoked, or its principal was deactivated."""
    while True:
        if not await is_good(tokens, token):
            return
        await asyncio.sleep(_LOOK_EVERY_SECONDS)


class PersonalApiTokens(TokenVerifier):
    """Verifies API tokens, which people make for themselves and administrators for services.

    They are valid at every resource of this gateway. Whoever made one chose its tools one by one, so it has every
    scope that these may need.
    """

    def __init__(self, tokens: ApiTokens, resource: str, scopes: Sequence[str]) -> None:
        self._tokens = tokens
        self._resource = resource
        self._scopes = scopes

    async def verify_token(self, token: str) -> PersonalToken | None:
        """Return the token with its owner, or None where it is not valid."""
        verified = await self._tokens.verify(token)
        if verified is None:
            return None
        api_token, owner = verified
        return PersonalToken(
            token=token,
            client_id=api_token.id,
            scopes=list(self._scopes),
            expires_at=int(api_token.expires_at.timestamp()),
            resource=self._resource,
            subject=owner.subject,
            claims={"iss": owner.issuer},
            principal=owner,
            actor=bearer_actor(api_token),
            tools=api_token.tools,
            in_person=False,
        )


class OwnTokens(TokenVerifier):
    """Verifies tokens that the built-in authorization server signed.

    It signs them for people who sign in here, where the settings name no external issuer, and for back ends that act
    for a user (RFC 8693), whichever issuer signed that user in.
    """

    def __init__(self, services: Services, resource: str, client: ActorKind) -> None:
        self.issuer: Final = services.settings.public_url
        self._keys = services.keys
        self._principals = services.principals
        self._clients = Clients(services)
        self._tokens = Tokens(services)
        self._attempts = services.attempts
        self._signs_people_in = services.settings.gateway.issuer is None
        self._resource = resource
        self._client = client
        self._claims = JWTClaimsRegistry(
            iss={"essential": True, "value": self.issuer},
            aud={"essential": True, "value": resource},
            sub={"essential": True},
            exp={"essential": True},
            client_id={"essential": True},
        )

    async def verify_token(self, token: str) -> PersonalToken | None:
        """Return the token with its principal, or None. A check costs two queries, each by a primary key."""
        try:
            claims = await self._keys.verify(token, ACCESS_TOKEN_TYPE)
        except IdentityForged:
            return None
        try:
            self._claims.validate(claims)
        except ClaimError:
            await self._note_misdirected(claims)
            return None
        return await self._holder(token, claims)

    async def _holder(self, token: str, claims: dict[str, Any]) -> PersonalToken | None:
        if ACT_CLAIM in claims:
            return await self._exchanged(token, claims)
        if not self._signs_people_in:
            return None
        holder = await self._tokens.holder(claims)
        if holder is None:
            return None
        principal, consent = holder
        actor = _client_of(claims, self._client)
        asked = consent.asserted_by is None
        return _accepted(token, claims, self._resource, principal, actor, in_person=asked)

    async def _note_misdirected(self, claims: dict[str, Any]) -> None:
        """Record that a token that is valid for another resource was tried here."""
        elsewhere = dict(claims, aud=self._resource)
        try:
            self._claims.validate(elsewhere)
        except ClaimError:
            return
        accepted = await self._holder("", elsewhere)
        if accepted is not None:
            await _misdirected(self._attempts, self._resource, accepted.principal, accepted.actor)

    async def _exchanged(self, token: str, claims: dict[str, Any]) -> PersonalToken | None:
        """Return a back end's token, whose `sub` is a principal's id. None where the back end is not registered."""
        act = claims[ACT_CLAIM]
        if not isinstance(act, dict) or act.get("sub") != claims["client_id"]:
            return None
        client = await self._clients.get(claims["client_id"])
        if client is None or client.backend is None:
            return None
        principal = await self._principals.get(claims["sub"])
        actor = Actor(kind="api_client", id=client.client_id, name=client.title)
        return _accepted(token, claims, self._resource, principal, actor, in_person=False)


class ExternalTokens(TokenVerifier):
    """Verifies tokens of the issuer that the settings name.

    The issuer's keys are read again only when they are old or a key is unknown.
    """

    def __init__(
        self, services: Services, settings: IssuerSettings, resource: str, client: ActorKind
    ) -> None:
        self._issuer = IssuerKeys(settings, services.outgoing)
        # An issuer that supports resource indicators (RFC 8707) names the resource that the client asked for.
        self._audiences = dict.fromkeys((settings.audience, resource))
        # An ID token has the client as its audience. Where access tokens have the same one, only their type differs.
        self._only_typed = settings.audience == settings.client_id
        self._principals = services.principals
        self._attempts = services.attempts
        self._resource = resource
        self._client = client

    async def verify_token(self, token: str) -> PersonalToken | None:
        """Return the token with its principal, which is created when first seen, or None where the token is not valid.

        Raises UpstreamUnavailable where the issuer's keys cannot be read.
        """
        verified = await self._verified(token)
        if verified is None or not self._is_access_token(verified.header.get("typ")):
            return None
        claims = dict(verified.claims)
        principal = await self._principals.resolve(claims["iss"], claims["sub"], display_name(claims))
        actor = _client_of(claims, self._client)
        return _accepted(token, claims, self._resource, principal, actor, in_person=ACT_CLAIM not in claims)

    async def _verified(self, token: str) -> VerifiedToken | None:
        for audience in self._audiences:
            with contextlib.suppress(IdentityForged):
                return await self._issuer.verified(token, audience=audience)
        with contextlib.suppress(IdentityForged):
            await self._note_misdirected(dict((await self._issuer.verified(token, audience=None)).claims))
        return None

    async def _note_misdirected(self, claims: dict[str, Any]) -> None:
        """Record that a token that the issuer issued for another audience was tried here, if its principal is known."""
        principal = await self._principals.find(claims["iss"], claims["sub"])
        if principal is not None:
            await _misdirected(self._attempts, self._resource, principal, _client_of(claims, self._client))

    def _is_access_token(self, typ: object) -> bool:
        # RFC 9068 section 4 requires this type. Many issuers still write JWT, or nothing.
        kind = typ.lower().removeprefix("application/") if isinstance(typ, str) else "jwt"
        return kind == ACCESS_TOKEN_TYPE or (kind == "jwt" and not self._only_typed)


async def _misdirected(attempts: Attempts, resource: str, principal: Principal, actor: Actor) -> None:
    message = f"A token that was issued for something else was tried at {resource}."
    sort = f"token of {principal.id} at {resource}"
    await attempts.refused(sort, "token_misdirected", message, principal=principal, actor=actor)


def _client_of(claims: dict[str, Any], kind: ActorKind) -> Actor:
    client_id = _client_id(claims)
    return Actor(kind=kind, id=client_id, name=str(claims.get(CLIENT_NAME_CLAIM) or client_id))


def _client_id(claims: dict[str, Any]) -> str:
    return str(claims.get("client_id") or claims.get("azp") or "unknown")


def _accepted(
    token: str,
    claims: dict[str, Any],
    resource: str,
    principal: Principal | None,
    actor: Actor,
    *,
    in_person: bool,
) -> PersonalToken | None:
    # Nobody signs in as a service, whatever a token says.
    if principal is None or not principal.active or principal.kind != "person":
        return None
    scope = claims.get("scope") or claims.get("scp") or ""
    return PersonalToken(
        token=token,
        client_id=_client_id(claims),
        scopes=scope.split() if isinstance(scope, str) else [str(each) for each in scope],
        expires_at=int(claims["exp"]),
        resource=resource,
        subject=principal.subject,
        claims={"iss": principal.issuer},
        principal=principal,
        actor=actor,
        in_person=in_person,
    )
