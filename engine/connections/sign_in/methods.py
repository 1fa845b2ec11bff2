"""Creates the sign-in method that a connection declares."""

from collections.abc import Mapping
from typing import Final, Protocol

from engine.connections.connection import TYPED, Connection
from engine.connections.discovery import Discovery
from engine.connections.oauth import OAuthClient
from engine.connections.registration import Registrations
from engine.connections.sign_in.client_credentials import ClientCredentials
from engine.connections.sign_in.company import Company
from engine.connections.sign_in.identity_assertion import IdentityAssertion
from engine.connections.sign_in.jwt_bearer import JwtBearer
from engine.connections.sign_in.token_exchange import TokenExchange
from engine.connections.sign_in.typed_key import TypedKey
from engine.connections.sign_in.vouched import VouchedFor
from engine.connections.tokens import Tokens
from engine.errors import AuthorizationRefused
from engine.outgoing.client import Outgoing

_CLIENTS: Final[Mapping[str, type[OAuthClient]]] = {
    "client_credentials": ClientCredentials,
    "jwt_bearer": JwtBearer,
}
_VOUCHED: Final[Mapping[str, type[VouchedFor]]] = {
    "token_exchange": TokenExchange,
    "identity_assertion": IdentityAssertion,
}


class SignIn(Protocol):
    """How one connection gets its tokens. Where a person has to act, a page asks them."""

    async def unasked(self, principal_id: str, scopes: tuple[str, ...]) -> Tokens | None:
        """Return tokens for this principal's actions, or None if a person has to act for them."""

    async def renewed(self, principal_id: str, tokens: Tokens) -> Tokens | None:
        """Return new tokens in place of these, or None if a person has to act."""

    async def revoke(self, tokens: Tokens) -> bool:
        """Revoke the tokens upstream. Returns False if that is impossible or the upstream refuses."""


class SignIns:
    """Creates the sign-in methods of all connections in one process."""

    def __init__(
        self,
        environment: Mapping[str, str],
        discovery: Discovery,
        outgoing: Outgoing,
        registrations: Registrations | None = None,
        company: Company | None = None,
    ) -> None:
        self._environment = environment
        self._discovery = discovery
        self._outgoing = outgoing
        self._registrations = registrations
        self._company = company

    def of(self, connection: Connection) -> SignIn:
        """Return the sign-in method that this connection declares."""
        return self.typed(connection) if connection.sign_in in TYPED else self.client(connection)

    def client(self, connection: Connection) -> OAuthClient:
        """Return the connection's OAuth client. Raises AuthorizationRefused if people type a key instead."""
        if connection.sign_in in TYPED:
            raise AuthorizationRefused(
                f"Nobody is sent elsewhere to sign in to {connection.title}: open the link again and type the key."
            )
        vouched = _VOUCHED.get(connection.sign_in)
        if vouched is not None and self._company is not None:
            return vouched(connection, self._environment, self._discovery, self._registrations, self._company)
        return _CLIENTS.get(connection.sign_in, OAuthClient)(
            connection, self._environment, self._discovery, self._registrations
        )

    def typed(self, connection: Connection) -> TypedKey:
        """Return the connection's typed key method. Raises AuthorizationRefused if people sign in at the provider."""
        if connection.sign_in not in TYPED:
            raise AuthorizationRefused(
                f"No key is typed for {connection.title}: open the link again and sign in there."
            )
        return TypedKey(connection, self._environment, self._outgoing)
