"""The JWT bearer grant (RFC 7523 section 2.1): a service signs in with an assertion that it signs itself."""

import secrets
import time
from collections.abc import Mapping
from typing import Final

from joserfc import jwt

from engine.connections.client_keys import algorithm_of, read_private_key
from engine.connections.connection import Assertion, Connection
from engine.connections.discovery import Discovery
from engine.connections.oauth import OAuthClient
from engine.connections.registration import Registrations
from engine.connections.tokens import Tokens
from engine.errors import ConnectionMisconfigured

JWT_BEARER: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_LIFE_SECONDS: Final = 300


class JwtBearer(OAuthClient):
    """Signs the service in with the private key that its connection declares, such as that of a service account.

    Raises ConnectionMisconfigured if the connection declares no assertion, or if its key cannot be read.
    """

    def __init__(
        self,
        connection: Connection,
        environment: Mapping[str, str],
        discovery: Discovery,
        registrations: Registrations | None = None,
    ) -> None:
        super().__init__(connection, environment, discovery, registrations)
        if connection.assertion is None:
            raise ConnectionMisconfigured(
                f"Connection '{connection.name}' has nothing to sign: write assertion."
            )
        self._assertion: Assertion = connection.assertion
        self._signs = read_private_key(
            self._assertion.key.read(environment), f"assertion.key of connection '{connection.name}'"
        )

    async def unasked(self, principal_id: str, scopes: tuple[str, ...]) -> Tokens | None:
        """Return the service's tokens, which are the same for every principal."""
        del principal_id
        statement = self.statement((await self.endpoints()).token)
        return await self.granted(JWT_BEARER, scopes, assertion=statement, **self.scoped(scopes))

    def statement(self, token_endpoint: str) -> str:
        """Return a signed assertion, valid for five minutes. Its unique `jti` lets the server accept it only once."""
        named, own = self._assertion, self._connection.client_id
        issued_at = int(time.time())
        claims = {
            "iss": named.issuer or own,
            "sub": named.subject or own,
            "aud": named.audience or token_endpoint,
            "iat": issued_at,
            "exp": issued_at + _LIFE_SECONDS,
            "jti": secrets.token_urlsafe(16),
            **named.claims,
        }
        algorithm = algorithm_of(self._signs)
        header = {"alg": algorithm, "typ": "JWT", "kid": self._signs.kid or self._signs.thumbprint()}
        return jwt.encode(header, claims, self._signs, algorithms=[algorithm])
