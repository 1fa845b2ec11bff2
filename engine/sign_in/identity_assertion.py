"""Sign-in by an identity assertion (ID-JAG, MCP's enterprise-managed authorization), for which nobody has to act."""

from dataclasses import replace
from typing import ClassVar

from engine.connections.connection import Connection
from engine.oauth.tokens import UpstreamTokens
from engine.sign_in.idp_asserted_sign_in import IdpAssertedSignIn
from engine.sign_in.jwt_bearer import JWT_BEARER_GRANT_TYPE


class IdentityAssertionSignIn(IdpAssertedSignIn):
    """Exchanges an assertion of the identity provider for tokens.

    The identity provider asserts a person to the upstream's authorization server, which issues its own tokens.
    """

    name: ClassVar[str] = "identity_assertion"

    @classmethod
    def validate_declaration(cls, connection: Connection) -> None:
        """Raise ValueError if the declaration lets an MCP server choose who receives the identity assertion."""
        if connection.mcp is not None and connection.provider.issuer is None:
            # Otherwise the MCP server would choose that, without a person's consent.
            raise ValueError("write provider.issuer: to it alone the company vouches for people")
        super().validate_declaration(connection)

    async def request_tokens_without_person(
        self, principal_id: str, scopes: tuple[str, ...]
    ) -> UpstreamTokens | None:
        """Return the person's own tokens, or None if the identity provider cannot assert the person."""
        identity_provider = self._resources.identity_provider
        if identity_provider is None:
            return None
        endpoints = await self.find_endpoints()
        requested_scopes = scopes or endpoints.scopes
        assertion = await identity_provider.request_id_jag(
            principal_id,
            audience=endpoints.issuer or "",
            resource=endpoints.resource,
            scopes=requested_scopes,
        )
        if assertion is None:
            return None
        tokens = await self.request_tokens(JWT_BEARER_GRANT_TYPE, requested_scopes, assertion=assertion)
        return replace(tokens, account=await self.find_account(tokens))
