"""The common base of the sign-in methods that rely on the identity provider's assertion of a person."""

from collections.abc import Mapping

from engine.connections.connection import Connection
from engine.oauth.client import OAuthClient, TokenRefused
from engine.oauth.discovery import Discovery
from engine.oauth.registration import ClientRegistrations
from engine.oauth.tokens import UpstreamTokens
from engine.sign_in.identity_provider import IdentityProvider


class IdpAssertedSignIn(OAuthClient):
    """A client of an upstream's authorization server that uses the identity provider.

    Where the identity provider does not assert the person, a person has to act.
    """

    def __init__(
        self,
        connection: Connection,
        environment: Mapping[str, str],
        discovery: Discovery,
        registrations: ClientRegistrations | None,
        identity_provider: IdentityProvider,
    ) -> None:
        super().__init__(connection, environment, discovery, registrations)
        self.identity_provider = identity_provider

    async def renew(self, principal_id: str, tokens: UpstreamTokens) -> UpstreamTokens | None:
        """Return new tokens in place of these, or None if a person has to act.

        A person has to act once the identity provider no longer asserts them. Raises TokenRefused if a refresh token
        is refused.
        """
        try:
            return await super().renew(principal_id, tokens)
        except TokenRefused:
            if tokens.refresh_token is not None:
                raise
            return None
