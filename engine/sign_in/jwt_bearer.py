"""The JWT bearer grant (RFC 7523 section 2.1): a service signs in with an assertion that it signs itself."""

import secrets
import time
from typing import ClassVar, Final

from joserfc import jwt

from engine.connections.connection import AssertionDeclaration, Connection
from engine.errors import ConnectionMisconfigured
from engine.oauth.client_keys import read_private_key, select_algorithm
from engine.oauth.tokens import UpstreamTokens
from engine.sign_in.method import SignInResources
from engine.sign_in.oauth_sign_in import OAuthSignIn

JWT_BEARER_GRANT_TYPE: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_LIFETIME_SECONDS: Final = 300


class JwtBearerSignIn(OAuthSignIn):
    """Signs the service in with the private key that its connection declares, such as that of a service account.

    Raises ConnectionMisconfigured if the connection declares no assertion, or if its key cannot be read.
    """

    name: ClassVar[str] = "jwt_bearer"
    modes: ClassVar[frozenset[str]] = frozenset({"shared"})

    def __init__(self, connection: Connection, resources: SignInResources) -> None:
        super().__init__(connection, resources)
        if connection.assertion is None:
            raise ConnectionMisconfigured(
                f"Connection '{connection.name}' has nothing to sign: write assertion."
            )
        self._assertion_declaration: AssertionDeclaration = connection.assertion
        self._signing_key = read_private_key(
            resources.secret_reader.read_secret(connection.name, self._assertion_declaration.key),
            f"assertion.key of connection '{connection.name}'",
        )

    @classmethod
    def validate_declaration(cls, connection: Connection) -> None:
        """Raise ValueError if the declaration lacks `assertion` or what every way of OAuth needs."""
        if connection.assertion is None:
            raise ValueError("sign_in jwt_bearer needs assertion: write it")
        super().validate_declaration(connection)

    async def request_tokens_without_person(
        self, _principal_id: str, scopes: tuple[str, ...]
    ) -> UpstreamTokens | None:
        """Return the service's tokens, which are the same for every principal."""
        signed_assertion = self.sign_assertion((await self.find_endpoints()).token_endpoint)
        return await self.request_tokens(
            JWT_BEARER_GRANT_TYPE, scopes, assertion=signed_assertion, **self.build_scope_parameter(scopes)
        )

    def sign_assertion(self, token_endpoint: str) -> str:
        """Return a signed assertion, valid for five minutes. Its unique `jti` lets the server accept it only once."""
        assertion_declaration, client_id = self._assertion_declaration, self._connection.client_id
        issued_at = int(time.time())
        claims = {
            "iss": assertion_declaration.issuer or client_id,
            "sub": assertion_declaration.subject or client_id,
            "aud": assertion_declaration.audience or token_endpoint,
            "iat": issued_at,
            "exp": issued_at + _LIFETIME_SECONDS,
            "jti": secrets.token_urlsafe(16),
            **assertion_declaration.claims,
        }
        algorithm = select_algorithm(self._signing_key)
        jws_header = {
            "alg": algorithm,
            "typ": "JWT",
            "kid": self._signing_key.kid or self._signing_key.thumbprint(),
        }
        return jwt.encode(jws_header, claims, self._signing_key, algorithms=[algorithm])
