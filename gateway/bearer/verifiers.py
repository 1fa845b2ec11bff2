"""Verifies bearer tokens: a resource accepts only tokens issued for it, whose principal is still active."""

import asyncio
from collections.abc import Mapping
from typing import Final

from mcp.server.auth.provider import TokenVerifier

from engine.callers.api_tokens import API_TOKEN_PREFIX
from engine.errors import UpstreamUnavailable
from engine.identity.claims import read_unverified_claims
from engine.identity.model import ActorKind
from engine.services import Services
from gateway.authorization_server.tables import AuthorizationServerTables
from gateway.bearer.external_tokens import ExternalTokenVerifier
from gateway.bearer.own_tokens import ApiTokenVerifier, BuiltInTokenVerifier
from gateway.bearer.principal_token import PrincipalToken
from gateway.protected_resource import API_PATH, build_resource_identifier, list_all_scopes
from gateway.sign_in.issuer_keys import IssuerKeys
from gateway.toolsets import list_mcp_paths

_POLL_INTERVAL_SECONDS: Final = 10.0


class BearerTokenVerifier(TokenVerifier):
    """Verifies every kind of token that one resource accepts, each kind with its own verifier."""

    def __init__(
        self,
        api_tokens: ApiTokenVerifier,
        built_in_tokens: BuiltInTokenVerifier,
        external_tokens: ExternalTokenVerifier | None,
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


TokenVerifiers = Mapping[str, BearerTokenVerifier]
"""The verifier of each protected resource, by the path of the resource."""


def build_token_verifiers(services: Services, oauth_tables: AuthorizationServerTables) -> TokenVerifiers:
    """Build the verifier of each resource, for the kind of sign-in that the settings choose."""
    issuer_settings = services.settings.gateway.issuer
    issuer_keys = None if issuer_settings is None else IssuerKeys(issuer_settings, services.outgoing)
    return {
        resource_path: _build_token_verifier(services, oauth_tables, issuer_keys, resource_path)
        for resource_path in (*list_mcp_paths(services.settings), API_PATH)
    }


def _build_token_verifier(
    services: Services,
    oauth_tables: AuthorizationServerTables,
    issuer_keys: IssuerKeys | None,
    resource_path: str,
) -> BearerTokenVerifier:
    settings, issuer_settings = services.settings, services.settings.gateway.issuer
    resource = build_resource_identifier(settings, resource_path)
    actor_kind: ActorKind = "api_client" if resource_path == API_PATH else "mcp_client"
    return BearerTokenVerifier(
        ApiTokenVerifier(services.api_tokens, resource, list_all_scopes(settings, services.policy)),
        BuiltInTokenVerifier(
            services.signing_keys,
            services.principals,
            oauth_tables,
            services.attempts,
            issuer_url=settings.public_url,
            resource=resource,
            actor_kind=actor_kind,
            is_sign_in_built_in=issuer_settings is None,
        ),
        None
        if issuer_settings is None or issuer_keys is None
        else ExternalTokenVerifier(
            issuer_settings,
            issuer_keys,
            services.principals,
            services.attempts,
            resource=resource,
            actor_kind=actor_kind,
        ),
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
