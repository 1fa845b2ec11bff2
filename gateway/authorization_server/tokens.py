"""Access tokens (RFC 9068), signed and not stored, and rotating refresh tokens, stored by their hash.

A refresh token that comes a second time was copied by somebody: its whole family is revoked (RFC 9700 section 4.14.2).
Revocation ends the family at once; an access token that is out already lives until its `exp`.
"""

import hashlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from sqlalchemy import delete, update
from sqlmodel import col, select

from engine.db.database import now
from engine.db.tables import RefreshTokenRow
from engine.errors import IdentityForged
from engine.identity.model import Principal
from engine.services import Services
from engine.wire import ACCESS_TOKEN_TYPE
from gateway.bearer import CLIENT_NAME_CLAIM

_REFRESH_LIFE = timedelta(days=30)
FAMILY_CLAIM = "sid"


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
    revoked: bool


class Tokens:
    """Owner of the table of refresh tokens."""

    def __init__(self, services: Services) -> None:
        self._database = services.database
        self._keys = services.keys
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
        """An access token for the principal and, where wanted, the family's next refresh token."""
        claims = {
            "iss": self._issuer,
            "sub": principal.subject,
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
        """The stored refresh token."""
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
            revoked=row.revoked_at is not None,
        )

    async def use(self, refresh: Refresh) -> bool:
        """Use the refresh token up; False where it was used or revoked before."""
        first_use = (
            update(RefreshTokenRow)
            .where(
                col(RefreshTokenRow.token_hash) == refresh.hash,
                col(RefreshTokenRow.used_at).is_(None),
                col(RefreshTokenRow.revoked_at).is_(None),
            )
            .values(used_at=now())
            .returning(col(RefreshTokenRow.token_hash))
        )
        async with self._database.writing() as session:
            return (await session.exec(first_use)).first() is not None

    async def revoke(self, family: str) -> None:
        """Revoke every refresh token that came of one consent."""
        revoke = update(RefreshTokenRow).where(
            col(RefreshTokenRow.family) == family, col(RefreshTokenRow.revoked_at).is_(None)
        )
        async with self._database.writing() as session:
            await session.exec(revoke.values(revoked_at=now()))

    async def is_revoked(self, family: str) -> bool:
        """Whether what came of this consent was revoked, by its client or because something came a second time."""
        revoked = select(RefreshTokenRow.token_hash).where(
            RefreshTokenRow.family == family, col(RefreshTokenRow.revoked_at).is_not(None)
        )
        async with self._database.reading() as session:
            return (await session.exec(revoked.limit(1))).first() is not None

    async def family(self, access_token: str) -> tuple[str, str] | None:
        """The family and client of an access token that this server signed."""
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
            expires_at=now() + _REFRESH_LIFE,
        )
        async with self._database.writing() as session:
            await session.exec(delete(RefreshTokenRow).where(col(RefreshTokenRow.expires_at) < now()))
            session.add(row)
        return token


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
