"""Creates the sign-in method that a connection declares."""

from collections.abc import Mapping
from typing import Final

from engine.connections.connection import TYPED_KEY_METHODS, Connection
from engine.errors import AuthorizationRefused
from engine.grants.token_source import TokenSource
from engine.oauth.client import OAuthClient
from engine.oauth.discovery import Discovery
from engine.oauth.registration import ClientRegistrations
from engine.outgoing.client import OutgoingClient
from engine.sign_in.client_credentials import ClientCredentialsSignIn
from engine.sign_in.identity_assertion import IdentityAssertionSignIn
from engine.sign_in.identity_provider import IdentityProvider
from engine.sign_in.idp_client import IdpAssertedSignIn
from engine.sign_in.jwt_bearer import JwtBearerSignIn
from engine.sign_in.token_exchange import TokenExchangeSignIn
from engine.sign_in.typed_key import TypedKeySignIn

_OAUTH_METHODS: Final[Mapping[str, type[OAuthClient]]] = {
    "client_credentials": ClientCredentialsSignIn,
    "jwt_bearer": JwtBearerSignIn,
}
_IDP_ASSERTED_METHODS: Final[Mapping[str, type[IdpAssertedSignIn]]] = {
    "token_exchange": TokenExchangeSignIn,
    "identity_assertion": IdentityAssertionSignIn,
}


class SignInMethods:
    """Creates the sign-in methods of all connections in one process."""

    def __init__(
        self,
        environment: Mapping[str, str],
        discovery: Discovery,
        outgoing: OutgoingClient,
        registrations: ClientRegistrations | None = None,
        identity_provider: IdentityProvider | None = None,
    ) -> None:
        self._environment = environment
        self._discovery = discovery
        self._outgoing = outgoing
        self._registrations = registrations
        self._identity_provider = identity_provider

    def create_method(self, connection: Connection) -> TokenSource:
        """Return the sign-in method that this connection declares."""
        return (
            self.create_typed_key_method(connection)
            if connection.sign_in in TYPED_KEY_METHODS
            else self.create_oauth_client(connection)
        )

    def create_oauth_client(self, connection: Connection) -> OAuthClient:
        """Return the connection's OAuth client. Raises AuthorizationRefused if people type a key instead."""
        if connection.sign_in in TYPED_KEY_METHODS:
            raise AuthorizationRefused(
                f"Nobody is sent elsewhere to sign in to {connection.title}: open the link again and type the key."
            )
        method_class = _IDP_ASSERTED_METHODS.get(connection.sign_in)
        if method_class is not None and self._identity_provider is not None:
            return method_class(
                connection, self._environment, self._discovery, self._registrations, self._identity_provider
            )
        return _OAUTH_METHODS.get(connection.sign_in, OAuthClient)(
            connection, self._environment, self._discovery, self._registrations
        )

    def create_typed_key_method(self, connection: Connection) -> TypedKeySignIn:
        """Return the connection's typed key method. Raises AuthorizationRefused if people sign in at the provider."""
        if connection.sign_in not in TYPED_KEY_METHODS:
            raise AuthorizationRefused(
                f"No key is typed for {connection.title}: open the link again and sign in there."
            )
        return TypedKeySignIn(connection, self._environment, self._outgoing)
