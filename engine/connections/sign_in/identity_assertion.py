"""Identity assertions (ID-JAG, MCP's enterprise-managed authorization): vouched for by the company, nobody is asked."""

from dataclasses import replace

from engine.connections.sign_in.jwt_bearer import JWT_BEARER
from engine.connections.sign_in.vouched import VouchedFor
from engine.connections.tokens import Tokens


class IdentityAssertion(VouchedFor):
    """The company vouches for a person to the upstream's authorization server, which issues tokens of its own."""

    async def unasked(self, principal_id: str, scopes: tuple[str, ...]) -> Tokens | None:
        """The person's own tokens; None where the company has nothing to vouch by."""
        endpoints = await self.endpoints()
        wanted = scopes or endpoints.scopes
        assertion = await self.company.assertion(
            principal_id, audience=endpoints.issuer or "", resource=endpoints.resource, scopes=wanted
        )
        if assertion is None:
            return None
        tokens = await self.granted(JWT_BEARER, wanted, assertion=assertion)
        return replace(tokens, account=await self.account(tokens))
