"""Stores the OAuth client secrets of connections in the vault."""

from collections.abc import Mapping

from sqlalchemy import delete
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from engine.db.database import Database, utc_now
from engine.db.tables import ClientSecretRow
from engine.vault.sealed_column import SealedColumn
from engine.vault.vault import Vault


class ClientSecrets:
    """Owns the table of client secrets, which holds at most one secret per connection."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault
        vault.register_column(
            SealedColumn("client secrets", ClientSecretRow, "sealed_secret", _build_associated_data)
        )

    async def store_secret(self, db_session: AsyncSession, connection_name: str, client_secret: str) -> None:
        """Store the client secret of this connection in the caller's transaction, replacing an earlier one."""
        secret_row = ClientSecretRow(connection=connection_name, sealed_secret=b"", updated_at=utc_now())
        secret_row.sealed_secret = await self._vault.seal_secret(
            client_secret.encode(), _build_associated_data(secret_row)
        )
        await db_session.merge(secret_row)

    async def delete_secret(self, db_session: AsyncSession, connection_name: str) -> bool:
        """Delete the secret in the caller's transaction. Returns False if there was none."""
        delete_statement = delete(ClientSecretRow).where(col(ClientSecretRow.connection) == connection_name)
        return bool((await db_session.exec(delete_statement)).rowcount)

    async def list_sealed_secrets(self) -> Mapping[str, bytes]:
        """Return every secret, still sealed, by connection."""
        async with self._database.open_read_session() as db_session:
            secret_rows = (await db_session.exec(select(ClientSecretRow))).all()
        return {secret_row.connection: secret_row.sealed_secret for secret_row in secret_rows}

    async def open_secret(self, connection_name: str, sealed_secret: bytes) -> str:
        """Return the secret that was sealed for this connection. Raises KeyServiceUnavailable and VaultSealBroken."""
        secret_row = ClientSecretRow(connection=connection_name, sealed_secret=sealed_secret)
        return (await self._vault.open_secret(sealed_secret, _build_associated_data(secret_row))).decode()


def _build_associated_data(secret_row: ClientSecretRow) -> str:
    return f"client_secret:{secret_row.connection}"
