"""What the ways to sign in have in common that rely on the identity provider's assertion of a person."""

from typing import ClassVar

from engine.oauth.client import TokenRefused
from engine.oauth.tokens import UpstreamTokens
from engine.sign_in.authorization_code import AuthorizationCodeSignIn


class IdpAssertedSignIn(AuthorizationCodeSignIn):
    """Gets a person's tokens from the upstream by an assertion of the identity provider.

    Where the identity provider does not assert the person, they consent at the upstream's own page.
    """

    is_asserted_by_idp: ClassVar[bool] = True

    async def is_offered(self) -> bool:
        """Return True: where the provider has no page, the identity provider may assert the person."""
        return True

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
