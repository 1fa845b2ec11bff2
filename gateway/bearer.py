"""Verifies bearer tokens: a resource accepts only tokens issued for it, whose principal is still active."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final

from joserfc.errors import ClaimError
from joserfc.jwt import JWTClaimsRegistry
from mcp.server.auth.provider import AccessToken, TokenVerifier

from engine.audit.attempts import RefusedAttempts
from engine.callers.api_tokens import API_TOKEN_PREFIX, ApiTokens, make_token_actor
from engine.errors import IdentityForged, UpstreamUnavailable
from engine.identity.claims import VerifiedClaims, read_unverified_claims
from engine.identity.model import Actor, ActorKind, Principal
from engine.services import Services
from engine.settings import IssuerSettings
from engine.wire import ACCESS_TOKEN_TYPE
from gateway.authorization_server.claims import ACT_CLAIM, CLIENT_NAME_CLAIM
from gateway.authorization_server.clients import OAuthClients
from gateway.authorization_server.tokens import TokenIssuer
from gateway.protected_resource import API_PATH, build_resource_identifier, list_all_scopes
from gateway.sign_in.issuer_client import read_display_name
from gateway.sign_in.issuer_keys import IssuerKeys, VerifiedToken
from gateway.toolsets import MCP_PATH

_POLL_INTERVAL_SECONDS: Final = 10.0


class PrincipalToken(AccessToken):
    """An access token with its principal, the actor that uses it, and the tools it is good for (None for all).

    `in_person` is true where its bearer signed in for it. It is false for API tokens and back ends.
    """

    principal: Principal
    actor: Actor
    tools: frozenset[str] | None = None
    in_person: bool


class BearerTokenVerifier(TokenVerifier):
    """Verifies every kind of token that one resource accepts, each kind with its own verifier."""

    def __init__(
        self,
        api_tokens: "ApiTokenVerifier",
        built_in_tokens: "BuiltInTokenVerifier",
        external_tokens: "ExternalTokenVerifier | None",
    ) -> None:
        self._api_tokens = api_tokens
        self._built_in_tokens = built_in_tokens
        self._external_tokens = external_tokens

    async def verify_token(self, token: str) -> PrincipalToken | None:
        """Return the token with its principal, or None where it is not valid."""
        if token.startswith(API_TOKEN_PREFIX):
            return await self._api_tokens.verify_token(token)
        # The unverified issuer only selects the verifier, which then verifies the issuer as well.
        if (
            self._external_tokens is None
            or read_unverified_claims(token).get("iss") == self._built_in_tokens.issuer
        ):
            return await self._built_in_tokens.verify_token(token)
        return await self._external_tokens.verify_token(token)


def build_token_verifier(services: Services, resource_path: str = MCP_PATH) -> BearerTokenVerifier:
    """Build the verifier of one resource, for the kind of sign-in that the settings choose."""
    issuer_settings = services.settings.gateway.issuer
    resource = build_resource_identifier(services.settings, resource_path)
    actor_kind: ActorKind = "api_client" if resource_path == API_PATH else "mcp_client"
    return BearerTokenVerifier(
        ApiTokenVerifier(services.api_tokens, resource, list_all_scopes(services)),
        BuiltInTokenVerifier(services, resource, actor_kind),
        None
        if issuer_settings is None
        else ExternalTokenVerifier(services, issuer_settings, resource, actor_kind),
    )


async def is_token_valid(token_verifier: TokenVerifier, token_text: str) -> bool:
    """Return whether a token is still accepted. A token that cannot be verified now counts as not accepted."""
    try:
        return await token_verifier.verify_token(token_text) is not None
    except UpstreamUnavailable:
        return False


async def wait_until_invalid(token_verifier: TokenVerifier, token_text: str) -> None:
    """Wait until a token is no longer accepted: it expired, was revoked, or its principal was deactivated."""
    while True:
        if not await is_token_valid(token_verifier, token_text):
            return
        await asyncio.sleep(_POLL_INTERVAL_SECONDS)


class ApiTokenVerifier(TokenVerifier):
    """Verifies API tokens, which people make for themselves and administrators for services.

    They are valid at every resource of this gateway. Whoever made one chose its tools one by one, so it has every
    scope that these may need.
    """

    def __init__(self, api_tokens: ApiTokens, resource: str, scopes: Sequence[str]) -> None:
        self._api_tokens = api_tokens
        self._resource = resource
        self._scopes = scopes

    async def verify_token(self, token: str) -> PrincipalToken | None:
        """Return the token with its owner, or None where it is not valid."""
        token_and_owner = await self._api_tokens.verify_token(token)
        if token_and_owner is None:
            return None
        api_token, owner = token_and_owner
        return PrincipalToken(
            token=token,
            client_id=api_token.id,
            scopes=list(self._scopes),
            expires_at=int(api_token.expires_at.timestamp()),
            resource=self._resource,
            subject=owner.subject,
            claims={"iss": owner.issuer},
            principal=owner,
            actor=make_token_actor(api_token),
            tools=api_token.tool_names,
            in_person=False,
        )


class BuiltInTokenVerifier(TokenVerifier):
    """Verifies tokens that the built-in authorization server signed.

    It signs them for people who sign in here, where the settings name no external issuer, and for back ends that act
    for a user (RFC 8693), whichever issuer signed that user in.
    """

    def __init__(self, services: Services, resource: str, actor_kind: ActorKind) -> None:
        self.issuer: Final = services.settings.public_url
        self._signing_keys = services.signing_keys
        self._principals = services.principals
        self._oauth_clients = OAuthClients(services)
        self._oauth_tokens = TokenIssuer(services)
        self._attempts = services.attempts
        self._is_sign_in_built_in = services.settings.gateway.issuer is None
        self._resource = resource
        self._actor_kind = actor_kind
        self._claims_registry = JWTClaimsRegistry(
            iss={"essential": True, "value": self.issuer},
            aud={"essential": True, "value": resource},
            sub={"essential": True},
            exp={"essential": True},
            client_id={"essential": True},
        )

    async def verify_token(self, token: str) -> PrincipalToken | None:
        """Return the token with its principal, or None. A check costs two queries, each by a primary key."""
        try:
            claims = await self._signing_keys.verify_token(token, ACCESS_TOKEN_TYPE)
        except IdentityForged:
            return None
        try:
            self._claims_registry.validate(claims)
        except ClaimError:
            await self._record_misdirected(claims)
            return None
        return await self._accept_for_holder(token, claims)

    async def _accept_for_holder(self, token_text: str, claims: VerifiedClaims) -> PrincipalToken | None:
        if ACT_CLAIM in claims:
            return await self._accept_exchanged_token(token_text, claims)
        if not self._is_sign_in_built_in:
            return None
        token_holder = await self._oauth_tokens.find_holder(claims)
        if token_holder is None:
            return None
        principal, consent = token_holder
        actor = _to_client_actor(claims, self._actor_kind)
        is_in_person = consent.asserted_by is None
        return _accept_token(token_text, claims, self._resource, principal, actor, is_in_person=is_in_person)

    async def _record_misdirected(self, claims: VerifiedClaims) -> None:
        """Record that a token that is valid for another resource was tried here."""
        retargeted_claims = VerifiedClaims({**claims, "aud": self._resource})
        try:
            self._claims_registry.validate(retargeted_claims)
        except ClaimError:
            return
        accepted_token = await self._accept_for_holder("", retargeted_claims)
        if accepted_token is not None:
            await _record_misdirected_token(
                self._attempts, self._resource, accepted_token.principal, accepted_token.actor
            )

    async def _accept_exchanged_token(self, token_text: str, claims: VerifiedClaims) -> PrincipalToken | None:
        """Return a back end's token, whose `sub` is a principal's id. None where the back end is not registered."""
        act_claim = claims[ACT_CLAIM]
        if not isinstance(act_claim, dict) or act_claim.get("sub") != claims["client_id"]:
            return None
        oauth_client = await self._oauth_clients.find_client(claims["client_id"])
        if oauth_client is None or oauth_client.backend is None:
            return None
        principal = await self._principals.find_principal(claims["sub"])
        actor = Actor(kind="api_client", id=oauth_client.client_id, name=oauth_client.display_name)
        return _accept_token(token_text, claims, self._resource, principal, actor, is_in_person=False)


class ExternalTokenVerifier(TokenVerifier):
    """Verifies tokens of the issuer that the settings name.

    The issuer's keys are read again only when they are old or a key is unknown.
    """

    def __init__(
        self, services: Services, issuer_settings: IssuerSettings, resource: str, actor_kind: ActorKind
    ) -> None:
        self._issuer_keys = IssuerKeys(issuer_settings, services.outgoing)
        # An issuer that supports resource indicators (RFC 8707) names the resource that the client asked for.
        self._audiences = dict.fromkeys((issuer_settings.audience, resource))
        # An ID token has the client as its audience. Where access tokens have the same one, only their type differs.
        self._is_token_type_required = issuer_settings.audience == issuer_settings.client_id
        self._principals = services.principals
        self._attempts = services.attempts
        self._resource = resource
        self._actor_kind = actor_kind

    async def verify_token(self, token: str) -> PrincipalToken | None:
        """Return the token with its principal, which is created when first seen, or None where the token is not valid.

        Raises UpstreamUnavailable where the issuer's keys cannot be read.
        """
        verified_token = await self._verify_signature(token)
        if verified_token is None or not self._is_access_token(verified_token.header.get("typ")):
            return None
        claims = verified_token.claims
        principal = await self._principals.resolve_principal(
            claims["iss"], claims["sub"], read_display_name(claims)
        )
        actor = _to_client_actor(claims, self._actor_kind)
        return _accept_token(
            token, claims, self._resource, principal, actor, is_in_person=ACT_CLAIM not in claims
        )

    async def _verify_signature(self, token_text: str) -> VerifiedToken | None:
        for audience in self._audiences:
            with contextlib.suppress(IdentityForged):
                return await self._issuer_keys.verify_token(token_text, audience=audience)
        with contextlib.suppress(IdentityForged):
            await self._record_misdirected(
                (await self._issuer_keys.verify_token(token_text, audience=None)).claims
            )
        return None

    async def _record_misdirected(self, claims: VerifiedClaims) -> None:
        """Record that a token that the issuer issued for another audience was tried here, if its principal is known."""
        principal = await self._principals.find_by_subject(claims["iss"], claims["sub"])
        if principal is not None:
            await _record_misdirected_token(
                self._attempts, self._resource, principal, _to_client_actor(claims, self._actor_kind)
            )

    def _is_access_token(self, type_header: object) -> bool:
        # RFC 9068 section 4 requires this type. Many issuers still write JWT, or nothing.
        token_type = (
            type_header.lower().removeprefix("application/") if isinstance(type_header, str) else "jwt"
        )
        return token_type == ACCESS_TOKEN_TYPE or (token_type == "jwt" and not self._is_token_type_required)


async def _record_misdirected_token(
    attempts: RefusedAttempts, resource: str, principal: Principal, actor: Actor
) -> None:
    message = f"A token that was issued for something else was tried at {resource}."
    attempt_kind = f"token of {principal.id} at {resource}"
    await attempts.record_refusal(
        attempt_kind, "token_misdirected", message, principal=principal, actor=actor
    )


def _to_client_actor(claims: VerifiedClaims, actor_kind: ActorKind) -> Actor:
    client_id = _read_client_id(claims)
    return Actor(kind=actor_kind, id=client_id, name=str(claims.get(CLIENT_NAME_CLAIM) or client_id))


def _read_client_id(claims: VerifiedClaims) -> str:
    return str(claims.get("client_id") or claims.get("azp") or "unknown")


def _accept_token(
    token_text: str,
    claims: VerifiedClaims,
    resource: str,
    principal: Principal | None,
    actor: Actor,
    *,
    is_in_person: bool,
) -> PrincipalToken | None:
    # Nobody signs in as a service, whatever a token says.
    if principal is None or not principal.is_active or principal.kind != "person":
        return None
    scope_claim = claims.get("scope") or claims.get("scp") or ""
    return PrincipalToken(
        token=token_text,
        client_id=_read_client_id(claims),
        scopes=scope_claim.split()
        if isinstance(scope_claim, str)
        else [str(scope_value) for scope_value in scope_claim],
        expires_at=int(claims["exp"]),
        resource=resource,
        subject=principal.subject,
        claims={"iss": principal.issuer},
        principal=principal,
        actor=actor,
        in_person=is_in_person,
    )
