"""Sign-in with an API key, a personal access token or HTTP Basic, which is sent unchanged and never renewed."""

from base64 import b64encode
from collections.abc import Mapping
from typing import Final

import httpx2

from engine.connections.connection import Connection, Key
from engine.connections.dpop import sign
from engine.connections.token_response import told_in
from engine.connections.tokens import Tokens
from engine.errors import AddressRefused, ConnectionMisconfigured, KeyRefused, UpstreamUnavailable
from engine.outgoing.client import Outgoing, OutgoingTransport

_LONGEST: Final = 8000
_REFUSES: Final = frozenset({401, 403})


class TypedKey:
    """The keys of one connection: those that people type, or the one that an administrator set."""

    def __init__(self, connection: Connection, environment: Mapping[str, str], outgoing: Outgoing) -> None:
        self._connection = connection
        self._key = connection.key or Key()
        self._environment = environment
        self._outgoing = outgoing

    async def unasked(self, principal_id: str, scopes: tuple[str, ...]) -> Tokens | None:
        """Return the key that an administrator set for all, or None if people type their own.

        Raises ConnectionMisconfigured if the key cannot be sent.
        """
        del principal_id
        if self._connection.mode == "user" or self._key.secret is None:
            return None
        secret, username = self._key.secret.read(self._environment), self._key.username or ""
        try:
            return Tokens(self._sent(secret, username), None, None, scopes, account=username)
        except KeyRefused as error:
            raise ConnectionMisconfigured(
                f"The key of connection '{self._connection.name}' cannot be sent: {error}"
            ) from None

    async def renewed(self, principal_id: str, tokens: Tokens) -> Tokens | None:
        """Return the administrator's current key, or None if a person has to type another."""
        del tokens
        return await self.unasked(principal_id, self._connection.scopes)

    async def revoke(self, tokens: Tokens) -> bool:
        """Return False: only its owner can revoke a key, at the upstream."""
        del tokens
        return False

    async def typed(self, secret: str, username: str, scopes: tuple[str, ...]) -> Tokens:
        """Check a typed key, if the connection declares a check, and return it as tokens for these scopes.

        Raises KeyRefused, whose message says what to do, if it cannot be a key or the upstream refuses it. Raises
        UpstreamUnavailable if the check gives no answer, and ConnectionMisconfigured if it cannot be called.
        """
        sent = self._sent(secret.strip(), username.strip())
        return Tokens(sent, None, None, scopes, account=await self._account(sent, username.strip()))

    def _sent(self, secret: str, username: str) -> str:
        is_basic = self._connection.sign_in == "basic"
        if not secret or (is_basic and not username):
            raise KeyRefused("Nothing was typed: fill in every field.")
        if len(secret) + len(username) > _LONGEST:
            raise KeyRefused(
                f"That is longer than any key is: copy the key alone, of at most {_LONGEST} characters."
            )
        if is_basic:
            if ":" in username or not (username + secret).isprintable():
                raise KeyRefused(
                    "A username holds no colon, and neither part holds a line break: copy them again."
                )
            return b64encode(f"{username}:{secret}".encode()).decode()
        if not secret.isascii() or not secret.isprintable() or " " in secret:
            raise KeyRefused(
                "A key holds no spaces, line breaks or letters beyond ASCII: copy it again, and it alone."
            )
        return secret

    async def _account(self, sent: str, username: str) -> str:
        """Return the account that the response to the check names, or the username that was typed."""
        check, title = self._key.check, self._connection.title
        if check is None:
            return username
        address = f"{str(self._connection.base_url).rstrip('/')}{check.path}"
        try:
            async with httpx2.AsyncClient(transport=OutgoingTransport(self._outgoing)) as http:
                request = http.build_request("GET", address, headers={"Accept": "application/json"})
                sign(request, sent, None, place=self._connection.token_place)
                response = await http.send(request)
        except AddressRefused as error:
            raise ConnectionMisconfigured(
                f"The check of connection '{self._connection.name}' cannot be made: {error}"
            ) from None
        except httpx2.HTTPError:
            raise UpstreamUnavailable(f"The answer of {title} cannot be read. Try again later.") from None
        if response.status_code in _REFUSES:
            raise KeyRefused(
                f"{title} does not accept this: check that it is whole and still in force, and type it again."
            )
        if not response.is_success:
            raise UpstreamUnavailable(
                f"{title} cannot say whether this is right ({response.status_code}). Try again later.",
                status=response.status_code,
            )
        return (told_in(response.content, check.account) if check.account else "") or username
