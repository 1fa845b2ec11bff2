"""What grants need of a connection's way to sign in: tokens without a person, renewal and revocation."""

from typing import Protocol

from engine.oauth.tokens import UpstreamTokens


class TokenSource(Protocol):
    """How one connection gets its tokens. Its methods return None where a person has to act."""

    async def request_tokens_without_person(
        self, principal_id: str, scopes: tuple[str, ...]
    ) -> UpstreamTokens | None:
        """Return tokens for this principal's actions, or None if a person has to act for them."""

    async def renew(self, principal_id: str, tokens: UpstreamTokens) -> UpstreamTokens | None:
        """Return new tokens in place of these, or None if a person has to act."""

    async def revoke(self, tokens: UpstreamTokens) -> bool:
        """Revoke the tokens upstream. Returns False if that is impossible or the upstream refuses."""
