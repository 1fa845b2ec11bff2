"""The table of OAuth clients with their sealed secrets, registered by an administrator or by themselves (RFC 7591)."""

from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final, Literal

from pydantic import BaseModel
from sqlalchemy import delete, func, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from engine.db.database import Database, utc_now
from engine.db.tables import OAuthClientRow
from engine.errors import TooSoon
from engine.vault.sealed_column import SealedColumn
from engine.vault.vault import Vault

_SEALED_SECRET_KEY: Final = "byline_sealed_secret"
_BACKEND_KEY: Final = "byline_backend"
_NEVER_USED_RETENTION: Final = timedelta(days=1)
_LAST_USE_RETENTION: Final = timedelta(days=90)
_USE_RECORD_INTERVAL: Final = timedelta(days=1)


class TrustedBackend(BaseModel):
    """Makes a client a trusted back end, which an administrator registered for token exchange."""

    audiences: tuple[str, ...] = ()
    """Audiences of an external issuer's tokens that were issued to this back end."""


class _SealedSecretColumn(SealedColumn):
    """The sealed secret within a client's metadata."""

    def read_sealed(self, table_row: OAuthClientRow) -> bytes | None:
        """As SealedColumn says."""
        sealed_secret = table_row.metadata_.get(_SEALED_SECRET_KEY)
        return None if sealed_secret is None else b64decode(sealed_secret)

    def write_sealed(self, table_row: OAuthClientRow, sealed_value: bytes) -> None:
        """As SealedColumn says."""
        table_row.metadata_ = {**table_row.metadata_, _SEALED_SECRET_KEY: b64encode(sealed_value).decode()}


class ClientRecords:
    """Owner of the table of OAuth clients."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault
        vault.register_column(
            _SealedSecretColumn(
                "clients",
                OAuthClientRow,
                "metadata_",
                lambda client_row: _build_associated_data(client_row.client_id),
            )
        )

    async def find_client(self, client_id: str) -> OAuthClientRow | None:
        """Return the client with this id, or None."""
        async with self._database.open_read_session() as db_session:
            return await db_session.get(OAuthClientRow, client_id)

    async def list_clients_of_administrators(self) -> list[OAuthClientRow]:
        """Return every client that an administrator registered, oldest first."""
        statement = (
            select(OAuthClientRow)
            .where(OAuthClientRow.registered_by == "administrator")
            .order_by(col(OAuthClientRow.created_at), col(OAuthClientRow.client_id))
        )
        async with self._database.open_read_session() as db_session:
            return list((await db_session.exec(statement)).all())

    async def add_client(
        self,
        db_session: AsyncSession,
        client_id: str,
        client_metadata: Mapping[str, Any],
        client_secret: str | None,
        *,
        registered_by: Literal["itself", "administrator"],
        trusted_backend: TrustedBackend | None = None,
    ) -> None:
        """Store a client in the caller's transaction. Metadata from the client cannot set Byline's own keys."""
        row_metadata = {
            metadata_key: metadata_value
            for metadata_key, metadata_value in client_metadata.items()
            if metadata_key not in {_SEALED_SECRET_KEY, _BACKEND_KEY}
        }
        if trusted_backend is not None:
            row_metadata[_BACKEND_KEY] = trusted_backend.model_dump(mode="json")
        if client_secret is not None:
            sealed_secret = await self._vault.seal_secret(
                client_secret.encode(), _build_associated_data(client_id)
            )
            row_metadata[_SEALED_SECRET_KEY] = b64encode(sealed_secret).decode()
        db_session.add(
            OAuthClientRow(
                client_id=client_id,
                metadata_=row_metadata,
                registered_by=registered_by,
                created_at=utc_now(),
            )
        )

    async def add_self_registered_client(
        self,
        client_id: str,
        client_metadata: Mapping[str, Any],
        client_secret: str | None,
        max_registrations_per_hour: int,
    ) -> None:
        """Store a client that registers itself, and delete such clients that nobody uses.

        Raises TooSoon where as many clients registered within the hour as allowed.
        """
        registered_at = utc_now()
        self_registered = col(OAuthClientRow.registered_by) == "itself"
        never_used = col(OAuthClientRow.used_at).is_(None) & (
            col(OAuthClientRow.created_at) < registered_at - _NEVER_USED_RETENTION
        )
        long_unused = col(OAuthClientRow.used_at) < registered_at - _LAST_USE_RETENTION
        registered_recently = col(OAuthClientRow.created_at) > registered_at - timedelta(hours=1)
        count_statement = (
            select(func.count()).select_from(OAuthClientRow).where(self_registered, registered_recently)
        )
        async with self._database.open_write_session() as db_session:
            await db_session.exec(delete(OAuthClientRow).where(self_registered, never_used | long_unused))
            if (await db_session.exec(count_statement)).one() >= max_registrations_per_hour:
                raise TooSoon(
                    f"{max_registrations_per_hour} clients registered within the hour. Try again later."
                )
            await self.add_client(
                db_session, client_id, client_metadata, client_secret, registered_by="itself"
            )

    async def remove_client_of_administrator(self, db_session: AsyncSession, client_id: str) -> bool:
        """Delete a client that an administrator registered, in the caller's transaction; False if there is none."""
        delete_statement = (
            delete(OAuthClientRow)
            .where(
                col(OAuthClientRow.client_id) == client_id,
                col(OAuthClientRow.registered_by) == "administrator",
            )
            .returning(col(OAuthClientRow.client_id))
        )
        return (await db_session.exec(delete_statement)).first() is not None

    async def record_use(self, client_id: str) -> None:
        """Record that the client is in use, at most once a day."""
        outdated_use = col(OAuthClientRow.used_at).is_(None) | (
            col(OAuthClientRow.used_at) < utc_now() - _USE_RECORD_INTERVAL
        )
        update_statement = update(OAuthClientRow).where(
            col(OAuthClientRow.client_id) == client_id, outdated_use
        )
        async with self._database.open_write_session() as db_session:
            await db_session.exec(update_statement.values(used_at=utc_now()))

    async def open_secret(self, client_row: OAuthClientRow) -> str | None:
        """Return the secret of a stored client, or None where it has none."""
        sealed_secret = client_row.metadata_.get(_SEALED_SECRET_KEY)
        if sealed_secret is None:
            return None
        return (
            await self._vault.open_secret(
                b64decode(sealed_secret), _build_associated_data(client_row.client_id)
            )
        ).decode()


def read_backend(client_row: OAuthClientRow) -> dict[str, Any] | None:
    """Return what makes a stored client a trusted back end, or None where it is not one."""
    return client_row.metadata_.get(_BACKEND_KEY)


def _build_associated_data(client_id: str) -> str:
    return f"oauth_client:{client_id}"
