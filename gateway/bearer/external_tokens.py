"""Verifies access tokens of the external issuer that the settings name."""

import contextlib

from mcp.server.auth.provider import TokenVerifier

from engine.audit.attempts import RefusedAttempts
from engine.errors import IdentityForged
from engine.identity.claims import VerifiedClaims
from engine.identity.model import ActorKind
from engine.identity.principals import Principals
from engine.settings import IssuerSettings
from engine.wire import ACCESS_TOKEN_TYPE
from gateway.authorization_server.claims import ACT_CLAIM
from gateway.bearer.principal_token import (
    PrincipalToken,
    accept_token,
    record_misdirected_token,
    to_client_actor,
)
from gateway.sign_in.issuer_client import read_display_name
from gateway.sign_in.issuer_keys import IssuerKeys, VerifiedToken


class ExternalTokenVerifier(TokenVerifier):
    """Verifies tokens of the issuer that the settings name.

    The issuer's keys are read again only when they are old or a key is unknown.
    """

    def __init__(
        self,
        issuer_settings: IssuerSettings,
        issuer_keys: IssuerKeys,
        principals: Principals,
        attempts: RefusedAttempts,
        *,
        resource: str,
        actor_kind: ActorKind,
    ) -> None:
        self._issuer_keys = issuer_keys
        # An issuer that supports resource indicators (RFC 8707) names the resource that the client asked for.
        self._audiences = dict.fromkeys((issuer_settings.audience, resource))
        # An ID token has the client as its audience. Where access tokens have the same one, only their type differs.
        self._is_token_type_required = issuer_settings.audience == issuer_settings.client_id
        self._principals = principals
        self._attempts = attempts
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
        actor = to_client_actor(claims, self._actor_kind)
        return accept_token(
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
            await record_misdirected_token(
                self._attempts, self._resource, principal, to_client_actor(claims, self._actor_kind)
            )

    def _is_access_token(self, type_header: object) -> bool:
        # RFC 9068 section 4 requires this type. Many issuers still write JWT, or nothing.
        token_type = (
            type_header.lower().removeprefix("application/") if isinstance(type_header, str) else "jwt"
        )
        return token_type == ACCESS_TOKEN_TYPE or (token_type == "jwt" and not self._is_token_type_required)
