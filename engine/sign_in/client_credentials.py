"""The client credentials grant (RFC 6749 section 4.4), by which `shared` connections get the service's own tokens."""

from typing import ClassVar

from engine.oauth.tokens import UpstreamTokens
from engine.sign_in.oauth_sign_in import OAuthSignIn


class ClientCredentialsSignIn(OAuthSignIn):
    """Signs the service in with its client credentials. No person takes part."""

    name: ClassVar[str] = "client_credentials"
    modes: ClassVar[frozenset[str]] = frozenset({"shared"})

    async def request_tokens_without_person(
        self, _principal_id: str, scopes: tuple[str, ...]
    ) -> UpstreamTokens | None:
        """Return the service's tokens, which are the same for every principal."""
        return await self.request_tokens("client_credentials", scopes, **self.build_scope_parameter(scopes))
