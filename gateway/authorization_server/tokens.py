"""Access tokens (RFC 9068), which are signed and not stored, and rotating refresh tokens, stored by their hash.

The tokens of one consent are a family and end with it. This includes access tokens that were issued before, since their
consent is looked up whenever they are used.
"""

import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from sqlalchemy import delete, update
from sqlmodel import col

from engine.db.database import now
from engine.db.tables import RefreshTokenRow
from engine.errors import IdentityForged
from engine.identity.model import Principal
from engine.services import Services
from engine.wire import ACCESS_TOKEN_TYPE
from gateway.authorization_server.claims import CLIENT_NAME_CLAIM, FAMILY_CLAIM, subject
from gateway.authorization_server.consents import UNUSED_LIFE, Consent, Consents


@dataclass(frozen=True, slots=True)
class Refresh:
    """A stored refresh token."""

    hash: str
    family: str
    client_id: str
    principal_id: str
    scopes: tuple[str, ...]
    resource: str | None
    expires_at: datetime
    used: bool


class Tokens:
    """Owner of the table of refresh tokens."""

    def __init__(self, services: Services) -> None:
        self._database = services.database
        self._consents = Consents(services.database)
        self._keys = services.keys
        self._principals = services.principals
        self._issuer = services.settings.public_url
        self._life = services.settings.gateway.access_token_life

    async def issue(
        self,
        principal: Principal,
        client: OAuthClientInformationFull,
        scopes: Sequence[str],
        family: str,
        *,
        resource: str,
        with_refresh: bool,
    ) -> OAuthToken:
        """Return an access token for the principal and, with `has_refresh_token`, the family's next refresh token."""
        claims = {
            "iss": self._issuer,
            "sub": subject(principal, self._issuer),
            "aud": resource,
            "client_id": client.client_id,
            CLIENT_NAME_CLAIM: client.client_name or client.client_id,
            "scope": " ".join(scopes),
            "exp": int(time.time()) + self._life,
            FAMILY_CLAIM: family,
        }
        return OAuthToken(
            access_token=await self._keys.sign(claims, ACCESS_TOKEN_TYPE),
            expires_in=self._life,
            scope=" ".join(scopes),
            refresh_token=await self._next(principal.id, client.client_id, scopes, family, resource)
            if with_refresh
            else None,
        )

    async def find(self, token: str) -> Refresh | None:
        """Return the stored refresh token, or None."""
        async with self._database.reading() as session:
            row = await session.get(RefreshTokenRow, _digest(token))
        if row is None:
            return None
        return Refresh(
            hash=row.token_hash,
            family=row.family,
            client_id=row.client_id,
            principal_id=row.principal_id,
            scopes=tuple(row.scopes.split()),
            resource=row.resource,
            expires_at=row.expires_at,
            used=row.used_at is not None,
        )

    async def use(self, refresh: Refresh) -> bool:
        """Mark the refresh token as used; False where it was used before."""
        first_use = (
            update(RefreshTokenRow)
            .where(
                col(RefreshTokenRow.token_hash) == refresh.hash,
                col(RefreshTokenRow.used_at).is_(None),
            )
            .values(used_at=now())
            .returning(col(RefreshTokenRow.token_hash))
        )
        async with self._database.writing() as session:
            return (await session.exec(first_use)).first() is not None

    async def holder(self, claims: Mapping[str, Any]) -> tuple[Principal, Consent] | None:
        """Return principal and consent of an access token of this server, or None where the consent ended."""
        consent = await self._consents.get(str(claims.get(FAMILY_CLAIM)))
        if consent is None or consent.client_id != claims["client_id"]:
            return None
        principal = await self._principals.get(consent.principal_id)
        if principal is None or subject(principal, self._issuer) != claims["sub"]:
            return None
        return principal, consent

    async def family(self, access_token: str) -> tuple[str, str] | None:
        """Return family and client id of an access token, or None where this server did not sign it."""
        try:
            claims = await self._keys.verify(access_token, ACCESS_TOKEN_TYPE)
        except IdentityForged:
            return None
        return str(claims.get(FAMILY_CLAIM)), str(claims.get("client_id"))

    async def _next(
        self, principal_id: str, client_id: str, scopes: Sequence[str], family: str, resource: str
    ) -> str:
        token = secrets.token_urlsafe(32)
        row = RefreshTokenRow(
            token_hash=_digest(token),
            family=family,
            client_id=client_id,
            principal_id=principal_id,
            scopes=" ".join(scopes),
            resource=resource,
            expires_at=now() + UNUSED_LIFE,
        )
        async with self._database.writing() as session:
            await session.exec(delete(RefreshTokenRow).where(col(RefreshTokenRow.expires_at) < now()))
            session.add(row)
        return token


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
