"""Enterprise-managed authorization: a client gets an access token for a person whom a trusted issuer names.

The client sends an Identity Assertion Authorization Grant (ID-JAG) as a JWT authorization grant (RFC 7523 section
2.1), and the person is not asked. Byline accepts an assertion only from a confidential client that an administrator
registered, only from an issuer in the settings, and only once.
"""

import hashlib
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from mcp.server.auth.provider import IdentityAssertionParams, TokenError
from mcp.shared.auth import OAuthToken
from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlmodel import col

from engine.db.database import now
from engine.db.tables import UsedAssertionRow
from engine.errors import IdentityForged
from engine.services import Services
from gateway.authorization_server.clients import Client
from gateway.authorization_server.consents import Consent, Consents
from gateway.authorization_server.registered_clients import JWT_BEARER
from gateway.authorization_server.tokens import Tokens
from gateway.protected_resource import all_scopes, first_scopes, resource_identifier
from gateway.sign_in.issuer_keys import IssuerKeys
from gateway.sign_in.openid import display_name
from gateway.toolsets import mcp_paths

ID_JAG_PROFILE: Final = "urn:ietf:params:oauth:grant-profile:id-jag"

_TYPE: Final = "oauth-id-jag+jwt"
_LONGEST_SECONDS: Final = 3600


class Assertions:
    """Exchanges identity assertions for access tokens. Owner of the table of used assertions."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._issuers = [
            IssuerKeys(each, services.outgoing) for each in services.settings.gateway.assertion_issuers
        ]
        self._tokens = Tokens(services)
        self._consents = Consents(services.database)
        self._life = timedelta(seconds=services.settings.gateway.access_token_life)
        self._resources = [
            resource_identifier(services.settings, path) for path in mcp_paths(services.settings)
        ]

    async def exchange(self, client: Client, asked: IdentityAssertionParams) -> OAuthToken:
        """Return an access token for the person whom the assertion names.

        Raises TokenError where the client or the assertion does not qualify, and UpstreamUnavailable where the issuer's
        keys cannot be read.
        """
        if client.known_by != "administrator" or JWT_BEARER not in client.grant_types:
            raise TokenError(
                "unauthorized_client", "An administrator has not let this client bring assertions."
            )
        issuer, claims = await self._verified(asked.assertion)
        if claims.get("client_id") != client.client_id:
            raise TokenError("invalid_grant", "The assertion was issued to another client.")
        resource = self._resource(claims, asked.resource)
        scopes = self._scopes(claims, asked.scopes)
        await self._use(issuer, claims)
        principal = await self._services.principals.resolve(issuer, claims["sub"], display_name(claims))
        if not principal.active or principal.kind != "person":
            raise TokenError("invalid_grant", "The person was deactivated.")
        consent = Consent(
            id=str(uuid.uuid4()),
            principal_id=principal.id,
            client_id=client.client_id,
            client_name=client.title,
            asserted_by=issuer,
            resource=resource,
            scopes=tuple(scopes),
            created_at=now(),
            expires_at=now() + self._life,
        )
        await self._consents.add(consent)
        by_whom = f", by the word of {issuer}"
        await self._services.trail.append(consent.event("client.asserted", principal, by_whom))
        return await self._tokens.issue(
            principal, client, scopes, consent.id, resource=resource, with_refresh=False
        )

    async def _verified(self, assertion: str) -> tuple[str, Mapping[str, Any]]:
        """Verify an assertion (ID-JAG section 4.3) and return its issuer and claims; raises TokenError."""
        for issuer in self._issuers:
            try:
                verified = await issuer.verified(assertion, audience=self._services.settings.public_url)
            except IdentityForged:
                continue
            typ = str(verified.header.get("typ")).lower().removeprefix("application/")
            expires_at = verified.claims["exp"]
            if typ != _TYPE or not verified.claims.get("jti") or "iat" not in verified.claims:
                break
            if not time.time() < expires_at <= time.time() + _LONGEST_SECONDS:
                break
            return issuer.issuer, verified.claims
        raise TokenError(
            "invalid_grant",
            "The assertion does not hold: it has to be an ID-JAG for this server with jti and iat, from an issuer that "
            "is trusted here, and good for an hour at most.",
        )

    def _resource(self, claims: Mapping[str, Any], asked: str | None) -> str:
        named = claims.get("resource")
        among = {str(each).removesuffix("/") for each in (named if isinstance(named, list) else [named])}
        served = [each for each in self._resources if each in among]
        wanted = served if asked is None else [each for each in served if each == asked.removesuffix("/")]
        if len(wanted) != 1:
            raise TokenError(
                "invalid_target",
                f"Assertion and request have to name one and the same of {', '.join(self._resources)}.",
            )
        return wanted[0]

    def _scopes(self, claims: Mapping[str, Any], asked: Sequence[str] | None) -> Sequence[str]:
        """Return the scopes of the token; raises TokenError where the request exceeds what the assertion allows.

        A request without scopes gets all that the assertion allows. An assertion without a scope claim allows the
        scopes that every token needs.
        """
        first, known = first_scopes(self._services.settings), all_scopes(self._services)
        said = claims.get("scope")
        allowed = [each for each in known if each in (said.split() if isinstance(said, str) else first)]
        wanted = [each for each in asked or allowed if each]
        if not wanted or not set(wanted) <= set(allowed):
            raise TokenError(
                "invalid_scope", f"The assertion allows no more than: {' '.join(allowed) or 'nothing'}."
            )
        return list(dict.fromkeys(wanted))

    async def _use(self, issuer: str, claims: Mapping[str, Any]) -> None:
        expires_at = datetime.fromtimestamp(claims["exp"], UTC)
        row = UsedAssertionRow(
            id_hash=hashlib.sha256(f"{issuer}\n{claims['jti']}".encode()).hexdigest(), expires_at=expires_at
        )
        # Kept five minutes longer than the assertion is valid, since clocks differ.
        over = col(UsedAssertionRow.expires_at) < now() - timedelta(minutes=5)
        try:
            async with self._services.database.writing() as session:
                await session.exec(delete(UsedAssertionRow).where(over))
                session.add(row)
        except IntegrityError:
            raise TokenError("invalid_grant", "The assertion was used before. Bring a new one.") from None
