"""Sign-in by an identity assertion (ID-JAG, MCP's enterprise-managed authorization), for which nobody has to act."""

from dataclasses import replace

from engine.oauth.tokens import UpstreamTokens
from engine.sign_in.idp_client import IdpAssertedSignIn
from engine.sign_in.jwt_bearer import JWT_BEARER_GRANT_TYPE


class IdentityAssertionSignIn(IdpAssertedSignIn):
    """Exchanges an assertion of the identity provider for tokens.

    The identity provider asserts a person to the upstream's authorization server, which issues its own tokens.
    """

    async def tokens_without_person(
        self, principal_id: str, scopes: tuple[str, ...]
    ) -> UpstreamTokens | None:
        """Return the person's own tokens, or None if the identity provider cannot assert the person."""
        endpoints = await self.find_endpoints()
        requested_scopes = scopes or endpoints.scopes
        assertion = await self.identity_provider.request_id_jag(
            principal_id,
            audience=endpoints.issuer or "",
            resource=endpoints.resource,
            scopes=requested_scopes,
        )
        if assertion is None:
            return None
        tokens = await self.request_tokens(JWT_BEARER_GRANT_TYPE, requested_scopes, assertion=assertion)
        return replace(tokens, account=await self.find_account(tokens))
