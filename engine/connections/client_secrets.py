"""Stores the OAuth client secrets of connections in the vault."""

from collections.abc import Collection, Mapping

from pydantic import SecretStr
from sqlalchemy import delete
from sqlmodel import col, select

from engine.db.database import Database, utc_now
from engine.db.tables import ClientSecretRow
from engine.errors import BylineError
from engine.identity.roles import ChangeRecorder
from engine.vault.resealing import SealedColumn
from engine.vault.vault import Vault
from engine.wire import CLIENT_SECRET_SEAL


class ClientSecrets:
    """Owns the table of client secrets, which holds at most one secret per connection, and keeps those it opened."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault
        self._opened_secrets: dict[str, SecretStr] = {}
        self._opening_errors: dict[str, BylineError | None] = {}

    async def store_secret(
        self, connection_name: str, client_secret: str, record_event: ChangeRecorder
    ) -> None:
        """Store the client secret of this connection, replacing an earlier one, and record it in one transaction."""
        secret_row = ClientSecretRow(connection=connection_name, sealed_secret=b"", updated_at=utc_now())
        secret_row.sealed_secret = await self._vault.seal_secret(
            client_secret.encode(), _build_associated_data(secret_row)
        )
        async with self._database.open_write_session() as db_session:
            await db_session.merge(secret_row)
            await record_event(db_session)

    async def delete_secret(self, connection_name: str, record_event: ChangeRecorder) -> bool:
        """Delete the secret and record the deletion in the same transaction. Returns False if there was none."""
        async with self._database.open_write_session() as db_session:
            delete_result = await db_session.exec(
                delete(ClientSecretRow).where(col(ClientSecretRow.connection) == connection_name)
            )
            if delete_result.rowcount:
                await record_event(db_session)
        return bool(delete_result.rowcount)

    async def open_secrets(self, connection_names: Collection[str]) -> None:
        """Open the secrets of these connections, and keep them in memory until they are opened again.

        A secret that cannot be opened raises its error only where that secret is needed.
        """
        if not connection_names:
            return
        sealed_secrets = await self._list_sealed_secrets()
        for connection_name in connection_names:
            opened_secret, opening_error = SecretStr(""), None
            try:
                if connection_name in sealed_secrets:
                    opened_secret = await self._open_secret(connection_name, sealed_secrets[connection_name])
            except BylineError as error:
                opening_error = error
            self._opened_secrets[connection_name] = opened_secret
            self._opening_errors[connection_name] = opening_error

    def get_opened_secret(self, connection_name: str) -> str:
        """Return the secret of this connection that was opened last. It is empty if there is none.

        Raises KeyServiceUnavailable or VaultSealBroken if it could not be opened.
        """
        opening_error = self._opening_errors.get(connection_name)
        if opening_error is not None:
            raise opening_error
        return self._opened_secrets.get(connection_name, SecretStr("")).get_secret_value()

    async def _list_sealed_secrets(self) -> Mapping[str, bytes]:
        async with self._database.open_read_session() as db_session:
            secret_rows = (await db_session.exec(select(ClientSecretRow))).all()
        return {secret_row.connection: secret_row.sealed_secret for secret_row in secret_rows}

    async def _open_secret(self, connection_name: str, sealed_secret: bytes) -> SecretStr:
        secret_row = ClientSecretRow(connection=connection_name, sealed_secret=sealed_secret)
        opened_secret = await self._vault.open_secret(sealed_secret, _build_associated_data(secret_row))
        return SecretStr(opened_secret.decode())

    @property
    def sealed_column(self) -> SealedColumn:
        """The column of this table that the vault seals."""
        return SealedColumn("client secrets", ClientSecretRow, "sealed_secret", _build_associated_data)


def _build_associated_data(secret_row: ClientSecretRow) -> str:
    return CLIENT_SECRET_SEAL.format(connection=secret_row.connection)
