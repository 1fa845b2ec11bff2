"""Token exchange (RFC 8693): the upstream's authorization server accepts the identity provider's own ID token."""

from dataclasses import replace
from typing import Final

from engine.connections.sign_in.company import ID_TOKEN, TOKEN_EXCHANGE
from engine.connections.sign_in.vouched import VouchedFor
from engine.connections.tokens import Tokens

_ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"


class TokenExchange(VouchedFor):
    """Exchanges a person's ID token for an access token of the same person."""

    async def unasked(self, principal_id: str, scopes: tuple[str, ...]) -> Tokens | None:
        """Return the person's own tokens, or None if they have no valid sign-in at the identity provider."""
        id_token = await self.company.id_token(principal_id)
        if id_token is None:
            return None
        audience = self._provider.audience
        tokens = await self.granted(
            TOKEN_EXCHANGE,
            scopes,
            subject_token=id_token,
            subject_token_type=ID_TOKEN,
            requested_token_type=_ACCESS_TOKEN,
            **({} if audience is None else {"audience": audience}),
            **self.scoped(scopes),
        )
        return replace(tokens, account=await self.account(tokens))
