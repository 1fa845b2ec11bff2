"""Verifies the tokens that this gateway issues: API tokens, and access tokens of the built-in authorization server."""

from collections.abc import Sequence
from typing import Final

from joserfc.errors import ClaimError
from joserfc.jwt import JWTClaimsRegistry
from mcp.server.auth.provider import TokenVerifier

from engine.audit.attempts import RefusedAttempts
from engine.callers.api_tokens import ApiTokens, make_token_actor
from engine.errors import IdentityForged
from engine.identity.claims import VerifiedClaims
from engine.identity.model import Actor, ActorKind
from engine.identity.principals import Principals
from engine.identity.signing import SigningKeys
from engine.wire import ACCESS_TOKEN_TYPE
from gateway.authorization_server.claims import ACT_CLAIM
from gateway.authorization_server.tables import AuthorizationServerTables
from gateway.bearer.principal_token import (
    PrincipalToken,
    accept_token,
    record_misdirected_token,
    to_client_actor,
)


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

    def __init__(
        self,
        signing_keys: SigningKeys,
        principals: Principals,
        oauth_tables: AuthorizationServerTables,
        attempts: RefusedAttempts,
        *,
        issuer_url: str,
        resource: str,
        actor_kind: ActorKind,
        is_sign_in_built_in: bool,
    ) -> None:
        self.issuer: Final = issuer_url
        self._signing_keys = signing_keys
        self._principals = principals
        self._oauth_clients = oauth_tables.oauth_clients
        self._oauth_tokens = oauth_tables.token_issuer
        self._attempts = attempts
        self._is_sign_in_built_in = is_sign_in_built_in
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
        actor = to_client_actor(claims, self._actor_kind)
        is_in_person = consent.asserted_by is None
        return accept_token(token_text, claims, self._resource, principal, actor, is_in_person=is_in_person)

    async def _record_misdirected(self, claims: VerifiedClaims) -> None:
        """Record that a token that is valid for another resource was tried here."""
        retargeted_claims = VerifiedClaims({**claims, "aud": self._resource})
        try:
            self._claims_registry.validate(retargeted_claims)
        except ClaimError:
            return
        accepted_token = await self._accept_for_holder("", retargeted_claims)
        if accepted_token is not None:
            await record_misdirected_token(
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
        return accept_token(token_text, claims, self._resource, principal, actor, is_in_person=False)
