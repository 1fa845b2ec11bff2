"""The table of the ways to sign in, and what creates the way that a connection declares."""

from collections.abc import Mapping
from typing import Final

from engine.connections.connection import Connection, TokenPlace
from engine.errors import AuthorizationRefused, ConnectionMisconfigured
from engine.sign_in.authorization_code import AuthorizationCodeSignIn
from engine.sign_in.client_credentials import ClientCredentialsSignIn
from engine.sign_in.device_code import DeviceCodeSignIn
from engine.sign_in.identity_assertion import IdentityAssertionSignIn
from engine.sign_in.jwt_bearer import JwtBearerSignIn
from engine.sign_in.method import PersonalSignInMethod, SignInMethod, SignInResources
from engine.sign_in.steps import StepKind
from engine.sign_in.token_exchange import TokenExchangeSignIn
from engine.sign_in.typed_keys import ApiKeySignIn, BasicSignIn, PersonalAccessTokenSignIn

_METHOD_CLASSES: Final[tuple[type[SignInMethod], ...]] = (
    AuthorizationCodeSignIn,
    DeviceCodeSignIn,
    TokenExchangeSignIn,
    IdentityAssertionSignIn,
    ApiKeySignIn,
    PersonalAccessTokenSignIn,
    BasicSignIn,
    ClientCredentialsSignIn,
    JwtBearerSignIn,
)
SIGN_IN_METHODS: Final[Mapping[str, type[SignInMethod]]] = {
    method_class.name: method_class for method_class in _METHOD_CLASSES
}
"""The ways to sign in, by the name that a connection's declaration calls them."""


def find_method_class(connection: Connection) -> type[SignInMethod]:
    """Return the way that this connection declares. Raises ConnectionMisconfigured if there is none of that name."""
    method_class = SIGN_IN_METHODS.get(connection.sign_in)
    if method_class is None:
        raise ConnectionMisconfigured(
            f"Connection '{connection.name}' has no sign_in {connection.sign_in}: declare it anew."
        )
    return method_class


def find_token_place(connection: Connection) -> TokenPlace:
    """Return the header in which requests to this connection's upstream carry the token or key."""
    return find_method_class(connection).find_token_place(connection)


class SignInMethods:
    """Creates the ways to sign in of all connections in one process."""

    def __init__(self, resources: SignInResources) -> None:
        self._resources = resources

    def create_method(self, connection: Connection) -> SignInMethod:
        """Return the way that this connection declares. Raises ConnectionMisconfigured if a secret is missing."""
        return find_method_class(connection)(connection, self._resources)

    def create_personal_method(self, connection: Connection, step_kind: StepKind) -> PersonalSignInMethod:
        """Return the way in which a person signs in to this connection by such a step.

        Raises AuthorizationRefused if people sign in there otherwise.
        """
        for method_name in list_personal_methods(connection):
            if SIGN_IN_METHODS[method_name].step_kind == step_kind:
                sign_in_method = SIGN_IN_METHODS[method_name](connection, self._resources)
                if isinstance(sign_in_method, PersonalSignInMethod):
                    return sign_in_method
        if step_kind == "form":
            raise AuthorizationRefused(
                f"No key is typed for {connection.title}: open the link again and sign in there."
            )
        raise AuthorizationRefused(
            f"Nobody is sent elsewhere to sign in to {connection.title}: open the link again and type the key."
        )


def list_personal_methods(connection: Connection) -> tuple[str, ...]:
    """Return the names of the ways in which a person may sign in to this connection, the declared one first."""
    method_class = find_method_class(connection)
    return (connection.sign_in, *method_class.alternatives)
