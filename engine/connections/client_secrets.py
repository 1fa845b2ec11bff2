"""The secrets of connections' clients that lie in the vault; what they are for is the connections' to say."""

from collections.abc import Mapping

from sqlalchemy import delete
from sqlmodel import col, select

from engine.audit.trail import AuditEvent, Trail
from engine.db.database import Database, now
from engine.db.tables import ClientSecretRow
from engine.vault.resealing import SealedColumn
from engine.vault.vault import Vault


class ClientSecrets:
    """Owner of the table of client secrets, one for each connection at most."""

    def __init__(self, database: Database, vault: Vault, trail: Trail) -> None:
        self._database = database
        self._vault = vault
        self._trail = trail

    async def put(self, connection: str, secret: str) -> None:
        """Keep the secret of this connection's client, in the place of an earlier one."""
        row = ClientSecretRow(connection=connection, sealed_secret=b"", updated_at=now())
        row.sealed_secret = await self._vault.seal(secret.encode(), _bound_to(row))
        record = await self._trail.recorder()
        async with self._database.writing() as session:
            await session.merge(row)
            await record(session, AuditEvent(kind="connection.secret_put", connection=connection))

    async def remove(self, connection: str) -> bool:
        """Forget it; False where there was none."""
        record = await self._trail.recorder()
        async with self._database.writing() as session:
            found = await session.exec(
                delete(ClientSecretRow).where(col(ClientSecretRow.connection) == connection)
            )
            if found.rowcount:
                await record(session, AuditEvent(kind="connection.secret_removed", connection=connection))
        return bool(found.rowcount)

    async def sealed_now(self) -> Mapping[str, bytes]:
        """Every secret as it lies, by connection."""
        async with self._database.reading() as session:
            rows = (await session.exec(select(ClientSecretRow))).all()
        return {row.connection: row.sealed_secret for row in rows}

    async def open(self, connection: str, sealed: bytes) -> str:
        """What was sealed for this connection; raises KeyServiceUnavailable and VaultSealBroken."""
        row = ClientSecretRow(connection=connection, sealed_secret=sealed)
        return (await self._vault.open(sealed, _bound_to(row))).decode()

    @property
    def sealed(self) -> SealedColumn:
        """Where this table keeps what the vault sealed."""
        return SealedColumn("client secrets", ClientSecretRow, "sealed_secret", _bound_to)


def _bound_to(row: ClientSecretRow) -> str:
    return f"client_secret:{row.connection}"
