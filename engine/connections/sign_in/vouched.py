"""What the ways have in common by which a company vouches for its people; where it does not, people are asked."""

from collections.abc import Mapping

from engine.connections.connection import Connection
from engine.connections.discovery import Discovery
from engine.connections.oauth import OAuthClient, TokenRefused
from engine.connections.registration import Registrations
from engine.connections.sign_in.company import Company
from engine.connections.tokens import Tokens


class VouchedFor(OAuthClient):
    """A client of an upstream's authorization server, with the company to turn to."""

    def __init__(
        self,
        connection: Connection,
        environment: Mapping[str, str],
        discovery: Discovery,
        registrations: Registrations | None,
        company: Company,
    ) -> None:
        super().__init__(connection, environment, discovery, registrations)
        self.company = company

    async def renewed(self, principal_id: str, tokens: Tokens) -> Tokens | None:
        """New tokens in the place of these; None where the company vouches no more, so that the person is asked."""
        try:
            return await super().renewed(principal_id, tokens)
        except TokenRefused:
            if tokens.refresh_token is not None:
                raise
            return None
