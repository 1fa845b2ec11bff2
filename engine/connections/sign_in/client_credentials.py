"""Client credentials (RFC 6749 section 4.4): the service's own tokens, for `shared` connections; no person is in it."""

from engine.connections.oauth import OAuthClient
from engine.connections.tokens import Tokens


class ClientCredentials(OAuthClient):
    """The service as the client that it is."""

    async def unasked(self, principal_id: str, scopes: tuple[str, ...]) -> Tokens | None:
        """The service's tokens, whoever acts."""
        del principal_id
        return await self.granted("client_credentials", scopes, **self.scoped(scopes))
