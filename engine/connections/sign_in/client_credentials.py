"""The client credentials grant (RFC 6749 section 4.4), by which `shared` connections get the service's own tokens."""

from engine.connections.oauth import OAuthClient
from engine.connections.tokens import Tokens


class ClientCredentials(OAuthClient):
    """Signs the service in with its client credentials. No person takes part."""

    async def unasked(self, principal_id: str, scopes: tuple[str, ...]) -> Tokens | None:
        """Return the service's tokens, which are the same for every principal."""
        del principal_id
        return await self.granted("client_credentials", scopes, **self.scoped(scopes))
