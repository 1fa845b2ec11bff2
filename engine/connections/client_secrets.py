"""Stores the OAuth client secrets of connections in the vault."""

from collections.abc import Mapping

from sqlalchemy import delete
from sqlmodel import col, select

from engine.db.database import Database, now
from engine.db.tables import ClientSecretRow
from engine.identity.roles import Note
from engine.vault.resealing import SealedColumn
from engine.vault.vault import Vault


class ClientSecrets:
    """Owns the table of client secrets, which holds at most one secret per connection."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    async def put(self, connection: str, secret: str, note: Note) -> None:
        """Store the client secret of this connection, replacing an earlier one, and record it in one transaction."""
        row = ClientSecretRow(connection=connection, sealed_secret=b"", updated_at=now())
        row.sealed_secret = await self._vault.seal(secret.encode(), _bound_to(row))
        async with self._database.writing() as session:
            await session.merge(row)
            await note(session)

    async def remove(self, connection: str, note: Note) -> bool:
        """Delete the secret and record the deletion in the same transaction. Returns False if there was none."""
        async with self._database.writing() as session:
            found = await session.exec(
                delete(ClientSecretRow).where(col(ClientSecretRow.connection) == connection)
            )
            if found.rowcount:
                await note(session)
        return bool(found.rowcount)

    async def sealed_now(self) -> Mapping[str, bytes]:
        """Return every secret, still sealed, by connection."""
        async with self._database.reading() as session:
            rows = (await session.exec(select(ClientSecretRow))).all()
        return {row.connection: row.sealed_secret for row in rows}

    async def open(self, connection: str, sealed: bytes) -> str:
        """Return the secret that was sealed for this connection. Raises KeyServiceUnavailable and VaultSealBroken."""
        row = ClientSecretRow(connection=connection, sealed_secret=sealed)
        return (await self._vault.open(sealed, _bound_to(row))).decode()

    @property
    def sealed(self) -> SealedColumn:
        """The column of this table that the vault seals."""
        return SealedColumn("client secrets", ClientSecretRow, "sealed_secret", _bound_to)


def _bound_to(row: ClientSecretRow) -> str:
    return f"client_secret:{row.connection}"
