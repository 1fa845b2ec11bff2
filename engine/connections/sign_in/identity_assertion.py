"""Sign-in by an identity assertion (ID-JAG, MCP's enterprise-managed authorization), for which nobody has to act."""

from dataclasses import replace

from engine.connections.sign_in.jwt_bearer import JWT_BEARER
from engine.connections.sign_in.vouched import VouchedFor
from engine.connections.tokens import Tokens


class IdentityAssertion(VouchedFor):
    """Exchanges an assertion of the identity provider for tokens.

    The identity provider asserts a person to the upstream's authorization server, which issues its own tokens.
    """

    async def unasked(self, principal_id: str, scopes: tuple[str, ...]) -> Tokens | None:
        """Return the person's own tokens, or None if the identity provider cannot assert the person."""
        endpoints = await self.endpoints()
        wanted = scopes or endpoints.scopes
        assertion = await self.company.assertion(
            principal_id, audience=endpoints.issuer or "", resource=endpoints.resource, scopes=wanted
        )
        if assertion is None:
            return None
        tokens = await self.granted(JWT_BEARER, wanted, assertion=assertion)
        return replace(tokens, account=await self.account(tokens))
