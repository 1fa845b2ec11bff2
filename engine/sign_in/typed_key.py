"""Sign-in with an API key, a personal access token or HTTP Basic, which is sent unchanged and never renewed."""

from base64 import b64encode
from collections.abc import Mapping
from typing import Final

import httpx2

from engine.connections.connection import Connection, KeyDeclaration
from engine.errors import AddressRefused, ConnectionMisconfigured, KeyRefused, UpstreamUnavailable
from engine.oauth.dpop import attach_token
from engine.oauth.token_response import find_text
from engine.oauth.tokens import UpstreamTokens
from engine.outgoing.client import OutgoingClient, OutgoingTransport

_MAX_KEY_CHARS: Final = 8000
_REFUSAL_STATUSES: Final = frozenset({401, 403})


class TypedKeySignIn:
    """The keys of one connection: those that people type, or the one that an administrator set."""

    def __init__(
        self, connection: Connection, environment: Mapping[str, str], outgoing: OutgoingClient
    ) -> None:
        self._connection = connection
        self._key_declaration = connection.key or KeyDeclaration()
        self._environment = environment
        self._outgoing = outgoing

    async def tokens_without_person(
        self, _principal_id: str, scopes: tuple[str, ...]
    ) -> UpstreamTokens | None:
        """Return the key that an administrator set for all, or None if people type their own.

        Raises ConnectionMisconfigured if the key cannot be sent.
        """
        if self._connection.mode == "user" or self._key_declaration.secret is None:
            return None
        key_secret, username = (
            self._key_declaration.secret.read_secret(self._environment),
            self._key_declaration.username or "",
        )
        try:
            return UpstreamTokens(
                self._format_credential(key_secret, username), None, None, scopes, account=username
            )
        except KeyRefused as error:
            raise ConnectionMisconfigured(
                f"The key of connection '{self._connection.name}' cannot be sent: {error}"
            ) from None

    async def renew(self, principal_id: str, _tokens: UpstreamTokens) -> UpstreamTokens | None:
        """Return the administrator's current key, or None if a person has to type another."""
        return await self.tokens_without_person(principal_id, self._connection.scopes)

    async def revoke(self, _tokens: UpstreamTokens) -> bool:
        """Return False: only its owner can revoke a key, at the upstream."""
        return False

    async def accept_typed_key(
        self, key_secret: str, username: str, scopes: tuple[str, ...]
    ) -> UpstreamTokens:
        """Check a typed key, if the connection declares a check, and return it as tokens for these scopes.

        Raises KeyRefused, whose message says what to do, if it cannot be a key or the upstream refuses it. Raises
        UpstreamUnavailable if the check gives no answer, and ConnectionMisconfigured if it cannot be called.
        """
        credential_text = self._format_credential(key_secret.strip(), username.strip())
        return UpstreamTokens(
            credential_text,
            None,
            None,
            scopes,
            account=await self._find_account(credential_text, username.strip()),
        )

    def _format_credential(self, key_secret: str, username: str) -> str:
        is_basic = self._connection.sign_in == "basic"
        if not key_secret or (is_basic and not username):
            raise KeyRefused("Nothing was typed: fill in every field.")
        if len(key_secret) + len(username) > _MAX_KEY_CHARS:
            raise KeyRefused(
                f"That is longer than any key is: copy the key alone, of at most {_MAX_KEY_CHARS} characters."
            )
        if is_basic:
            if ":" in username or not (username + key_secret).isprintable():
                raise KeyRefused(
                    "A username holds no colon, and neither part holds a line break: copy them again."
                )
            return b64encode(f"{username}:{key_secret}".encode()).decode()
        if not key_secret.isascii() or not key_secret.isprintable() or " " in key_secret:
            raise KeyRefused(
                "A key holds no spaces, line breaks or letters beyond ASCII: copy it again, and it alone."
            )
        return key_secret

    async def _find_account(self, credential_text: str, username: str) -> str:
        """Return the account that the response to the check names, or the username that was typed."""
        key_check, connection_title = self._key_declaration.check, self._connection.title
        if key_check is None:
            return username
        check_url = f"{str(self._connection.base_url).rstrip('/')}{key_check.path}"
        try:
            async with httpx2.AsyncClient(transport=OutgoingTransport(self._outgoing)) as http_client:
                request = http_client.build_request("GET", check_url, headers={"Accept": "application/json"})
                attach_token(request, credential_text, None, token_place=self._connection.token_place)
                response = await http_client.send(request)
        except AddressRefused as error:
            raise ConnectionMisconfigured(
                f"The check of connection '{self._connection.name}' cannot be made: {error}"
            ) from None
        except httpx2.HTTPError:
            raise UpstreamUnavailable(
                f"The answer of {connection_title} cannot be read. Try again later."
            ) from None
        if response.status_code in _REFUSAL_STATUSES:
            raise KeyRefused(
                f"{connection_title} does not accept this: check that it is whole and still in "
                "force, and type it again."
            )
        if not response.is_success:
            raise UpstreamUnavailable(
                f"{connection_title} cannot say whether this is right ({response.status_code}). Try again later.",
                status_code=response.status_code,
            )
        return (find_text(response.content, key_check.account) if key_check.account else "") or username
