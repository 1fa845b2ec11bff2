"""Access tokens (RFC 9068), which are signed and not stored, and rotating refresh tokens, stored by their hash.

The tokens of one consent are a family and end with it. This includes access tokens that were issued before, since their
consent is looked up whenever they are used.
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from sqlalchemy import delete, update
from sqlmodel import col

from engine.db.database import Database, utc_now
from engine.db.tables import RefreshTokenRow
from engine.errors import IdentityForged
from engine.identity.claims import VerifiedClaims
from engine.identity.model import Principal
from engine.identity.principals import Principals
from engine.identity.signing import SigningKeys
from engine.vault.digests import digest_secret
from engine.wire import ACCESS_TOKEN_TYPE
from gateway.authorization_server.claims import CLIENT_NAME_CLAIM, FAMILY_CLAIM, derive_subject
from gateway.authorization_server.consents import UNUSED_CONSENT_LIFE, ClientConsent, ClientConsents


@dataclass(frozen=True, slots=True)
class RefreshTokenRecord:
    """A stored refresh token."""

    token_hash: str
    family: str
    client_id: str
    principal_id: str
    scopes: tuple[str, ...]
    resource: str | None
    expires_at: datetime
    is_used: bool


class TokenIssuer:
    """Owner of the table of refresh tokens."""

    def __init__(
        self,
        database: Database,
        client_consents: ClientConsents,
        signing_keys: SigningKeys,
        principals: Principals,
        *,
        issuer_url: str,
        access_token_life_seconds: int,
    ) -> None:
        self._database = database
        self._client_consents = client_consents
        self._signing_keys = signing_keys
        self._principals = principals
        self._issuer_url = issuer_url
        self._access_token_life_seconds = access_token_life_seconds

    async def issue_tokens(
        self,
        principal: Principal,
        oauth_client: OAuthClientInformationFull,
        scopes: Sequence[str],
        token_family: str,
        *,
        resource: str,
        has_refresh_token: bool,
    ) -> OAuthToken:
        """Return an access token for the principal and, with `has_refresh_token`, the family's next refresh token."""
        claims = {
            "iss": self._issuer_url,
            "sub": derive_subject(principal, self._issuer_url),
            "aud": resource,
            "client_id": oauth_client.client_id,
            CLIENT_NAME_CLAIM: oauth_client.client_name or oauth_client.client_id,
            "scope": " ".join(scopes),
            "exp": int(time.time()) + self._access_token_life_seconds,
            FAMILY_CLAIM: token_family,
        }
        return OAuthToken(
            access_token=await self._signing_keys.sign_claims(claims, ACCESS_TOKEN_TYPE),
            expires_in=self._access_token_life_seconds,
            scope=" ".join(scopes),
            refresh_token=await self._issue_refresh_token(
                principal.id, oauth_client.client_id, scopes, token_family, resource
            )
            if has_refresh_token
            else None,
        )

    async def find_refresh_token(self, refresh_token: str) -> RefreshTokenRecord | None:
        """Return the stored refresh token, or None."""
        async with self._database.open_read_session() as db_session:
            token_row = await db_session.get(RefreshTokenRow, digest_secret(refresh_token))
        if token_row is None:
            return None
        return RefreshTokenRecord(
            token_hash=token_row.token_hash,
            family=token_row.family,
            client_id=token_row.client_id,
            principal_id=token_row.principal_id,
            scopes=tuple(token_row.scopes.split()),
            resource=token_row.resource,
            expires_at=token_row.expires_at,
            is_used=token_row.used_at is not None,
        )

    async def redeem_refresh_token(self, refresh_record: RefreshTokenRecord) -> bool:
        """Mark the refresh token as used; False where it was used before."""
        statement = (
            update(RefreshTokenRow)
            .where(
                col(RefreshTokenRow.token_hash) == refresh_record.token_hash,
                col(RefreshTokenRow.used_at).is_(None),
            )
            .values(used_at=utc_now())
            .returning(col(RefreshTokenRow.token_hash))
        )
        async with self._database.open_write_session() as db_session:
            return (await db_session.exec(statement)).first() is not None

    async def find_holder(self, claims: VerifiedClaims) -> tuple[Principal, ClientConsent] | None:
        """Return principal and consent of an access token of this server, or None where the consent ended."""
        client_consent = await self._client_consents.find_consent(str(claims.get(FAMILY_CLAIM)))
        if client_consent is None or client_consent.client_id != claims["client_id"]:
            return None
        principal = await self._principals.find_principal(client_consent.principal_id)
        if principal is None or derive_subject(principal, self._issuer_url) != claims["sub"]:
            return None
        return principal, client_consent

    async def read_family(self, access_token: str) -> tuple[str, str] | None:
        """Return family and client id of an access token, or None where this server did not sign it."""
        try:
            claims = await self._signing_keys.verify_token(access_token, ACCESS_TOKEN_TYPE)
        except IdentityForged:
            return None
        return str(claims.get(FAMILY_CLAIM)), str(claims.get("client_id"))

    async def _issue_refresh_token(
        self, principal_id: str, client_id: str, scopes: Sequence[str], token_family: str, resource: str
    ) -> str:
        refresh_token = secrets.token_urlsafe(32)
        token_row = RefreshTokenRow(
            token_hash=digest_secret(refresh_token),
            family=token_family,
            client_id=client_id,
            principal_id=principal_id,
            scopes=" ".join(scopes),
            resource=resource,
            expires_at=utc_now() + UNUSED_CONSENT_LIFE,
        )
        async with self._database.open_write_session() as db_session:
            await db_session.exec(delete(RefreshTokenRow).where(col(RefreshTokenRow.expires_at) < utc_now()))
            db_session.add(token_row)
        return refresh_token
