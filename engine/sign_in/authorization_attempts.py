"""Stores the round trips of browsers to a provider's page until they come back to the redirect URI."""

import secrets
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import delete
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from engine.authorization.delegation import Delegation
from engine.db.database import Database, utc_now
from engine.db.tables import AuthorizationAttemptRow
from engine.errors import AuthorizationRefused
from engine.identity.model import Principal
from engine.vault.digests import digest_secret
from engine.vault.resealing import SealedColumn
from engine.vault.vault import Vault
from engine.wire import ATTEMPT_SEAL

_ATTEMPT_LIFETIME = timedelta(minutes=10)
_ATTEMPT_RETENTION = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class AuthorizationAttempt:
    """A round trip that just ended. `asked_principal` is who was asked, for whom the person in the browser answers."""

    request_id: str
    asked_principal: Principal
    tool_name: str
    attempt_secret: str

    def __repr__(self) -> str:
        return f"AuthorizationAttempt(request_id={self.request_id!r})"


class AuthorizationAttempts:
    """Owns the table of authorization attempts. Each is used once, in the browser in which it began."""

    def __init__(self, database: Database, vault: Vault, delegation: Delegation) -> None:
        self._database = database
        self._vault = vault
        self._delegation = delegation

    async def store_attempt(
        self, request_id: str, principal_id: str, browser_session: str, tool_name: str, attempt_secret: str
    ) -> str:
        """Store a round trip with what its way has to remember, and return the `state` that the browser takes along."""
        oauth_state = secrets.token_urlsafe(32)
        attempt_row = AuthorizationAttemptRow(
            state_hash=digest_secret(oauth_state),
            request_id=request_id,
            principal_id=principal_id,
            tool=tool_name,
            session_hash=digest_secret(browser_session),
            sealed_verifier=await self._vault.seal_secret(
                attempt_secret.encode(), _build_associated_data(digest_secret(oauth_state))
            ),
            created_at=utc_now(),
            expires_at=utc_now() + _ATTEMPT_LIFETIME,
        )
        async with self._database.open_write_session() as db_session:
            db_session.add(attempt_row)
        return oauth_state

    async def claim_attempt(
        self, oauth_state: str, person: Principal, browser_session: str
    ) -> AuthorizationAttempt:
        """Return the round trip that this `state` belongs to, and mark it as used.

        Raises AuthorizationRefused if it is unknown, late or used, or if another person or browser began it.
        """
        state_hash = digest_secret(oauth_state)
        async with self._database.open_write_session() as db_session:
            attempt_row = await _find_unused_attempt(db_session, state_hash)
            if attempt_row is None:
                raise AuthorizationRefused(
                    "This sign-in is not known, is too old or was used already. Open the link again."
                )
            asked_principal = await self._delegation.find_asked_principal(attempt_row.principal_id, person)
            if asked_principal is None or attempt_row.session_hash != digest_secret(browser_session):
                raise AuthorizationRefused("This sign-in was begun by somebody else or in another browser.")
            attempt_row.used_at = utc_now()
            db_session.add(attempt_row)
        attempt_secret = await self._vault.open_secret(
            attempt_row.sealed_verifier, _build_associated_data(state_hash)
        )
        return AuthorizationAttempt(
            attempt_row.request_id, asked_principal, attempt_row.tool, attempt_secret.decode()
        )

    async def delete_expired_attempts(self) -> int:
        """Delete attempts that expired more than a day ago, used or not, and return how many.

        A callback for a deleted attempt is refused as unknown.
        """
        statement = delete(AuthorizationAttemptRow).where(
            col(AuthorizationAttemptRow.expires_at) < utc_now() - _ATTEMPT_RETENTION
        )
        async with self._database.open_write_session() as db_session:
            return int((await db_session.exec(statement)).rowcount)

    @property
    def sealed_column(self) -> SealedColumn:
        """The column of this table that the vault seals."""
        return SealedColumn(
            "sign-ins under way",
            AuthorizationAttemptRow,
            "sealed_verifier",
            lambda attempt_row: _build_associated_data(attempt_row.state_hash),
            lambda: (
                col(AuthorizationAttemptRow.used_at).is_(None)
                & (col(AuthorizationAttemptRow.expires_at) > utc_now())
            ),
        )


async def _find_unused_attempt(db_session: AsyncSession, state_hash: str) -> AuthorizationAttemptRow | None:
    attempt_row = await db_session.get(AuthorizationAttemptRow, state_hash, with_for_update=True)
    if attempt_row is None or attempt_row.used_at is not None or attempt_row.expires_at <= utc_now():
        return None
    return attempt_row


def _build_associated_data(state_hash: str) -> str:
    return ATTEMPT_SEAL.format(state_hash=state_hash)
