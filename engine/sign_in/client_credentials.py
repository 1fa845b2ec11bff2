"""The client credentials grant (RFC 6749 section 4.4), by which `shared` connections get the service's own tokens."""

from engine.oauth.client import OAuthClient
from engine.oauth.tokens import UpstreamTokens


class ClientCredentialsSignIn(OAuthClient):
    """Signs the service in with its client credentials. No person takes part."""

    async def tokens_without_person(
        self, _principal_id: str, scopes: tuple[str, ...]
    ) -> UpstreamTokens | None:
        """Return the service's tokens, which are the same for every principal."""
        return await self.request_tokens("client_credentials", scopes, **self.build_scope_parameter(scopes))
