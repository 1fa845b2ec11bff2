"""Token exchange (RFC 8693): the upstream's authorization server accepts the identity provider's own ID token."""

from dataclasses import replace
from typing import ClassVar, Final

from engine.oauth.tokens import UpstreamTokens
from engine.sign_in.identity_provider import ID_TOKEN, TOKEN_EXCHANGE
from engine.sign_in.idp_asserted_sign_in import IdpAssertedSignIn

_ACCESS_TOKEN_TYPE: Final = "urn:ietf:params:oauth:token-type:access_token"


class TokenExchangeSignIn(IdpAssertedSignIn):
    """Exchanges a person's ID token for an access token of the same person."""

    name: ClassVar[str] = "token_exchange"
    is_page_required: ClassVar[bool] = False

    async def request_tokens_without_person(
        self, principal_id: str, scopes: tuple[str, ...]
    ) -> UpstreamTokens | None:
        """Return the person's own tokens, or None if they have no valid sign-in at the identity provider."""
        identity_provider = self._resources.identity_provider
        id_token = None if identity_provider is None else await identity_provider.find_id_token(principal_id)
        if id_token is None:
            return None
        audience = self._provider.audience
        tokens = await self.request_tokens(
            TOKEN_EXCHANGE,
            scopes,
            subject_token=id_token,
            subject_token_type=ID_TOKEN,
            requested_token_type=_ACCESS_TOKEN_TYPE,
            **({} if audience is None else {"audience": audience}),
            **self.build_scope_parameter(scopes),
        )
        return replace(tokens, account=await self.find_account(tokens))
