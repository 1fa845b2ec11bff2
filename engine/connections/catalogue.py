"""Stores connections in the database, and opens their secrets in the vault."""

import time
from collections.abc import Iterable, Mapping
from typing import Final

from sqlmodel import select

from engine.connections.client_secrets import ClientSecrets
from engine.connections.connection import Connection
from engine.db.database import Database, utc_now
from engine.db.tables import ConnectionRow
from engine.errors import ConnectionUnknown, SettingsInvalid

_REFRESH_INTERVAL_SECONDS: Final = 5.0


class ConnectionCatalogue:
    """Owns the table of connections. Every process sees a change within five seconds."""

    def __init__(self, database: Database, client_secrets: ClientSecrets) -> None:
        self._database = database
        self._client_secrets = client_secrets
        self._connections: dict[str, Connection] = {}
        self._refreshed_at = float("-inf")

    async def store_connections(self, connections: list[Connection]) -> None:
        """Write these connections to the database, replacing earlier ones of the same name.

        Raises SettingsInvalid if a connection changes its mode, which cannot be changed.
        """
        async with self._database.open_write_session() as db_session:
            for connection in connections:
                earlier_row = await db_session.get(ConnectionRow, connection.name)
                if earlier_row is not None and earlier_row.declaration["mode"] != connection.mode:
                    raise SettingsInvalid(
                        f"Connection '{connection.name}' was declared as "
                        f"{earlier_row.declaration['mode']}, and a mode is "
                        f"set once: declare the {connection.mode} one under another name."
                    )
                declaration = connection.model_dump(mode="json")
                await db_session.merge(
                    ConnectionRow(name=connection.name, declaration=declaration, updated_at=utc_now())
                )
        self._refreshed_at = float("-inf")

    async def get_connection(self, connection_name: str) -> Connection:
        """Return the connection with this name. Raises ConnectionUnknown."""
        connections = await self.list_connections()
        if connection_name not in connections:
            raise ConnectionUnknown(
                f"There is no connection '{connection_name}'. Declare it in the file that "
                "BYLINE_CONNECTIONS_FILE names."
            )
        return connections[connection_name]

    async def list_connections(self) -> Mapping[str, Connection]:
        """Return every connection by name."""
        if time.monotonic() - self._refreshed_at > _REFRESH_INTERVAL_SECONDS:
            async with self._database.open_read_session() as db_session:
                connection_rows = (
                    await db_session.exec(select(ConnectionRow).order_by(ConnectionRow.name))
                ).all()
            connections = {
                connection_row.name: Connection.model_validate(connection_row.declaration)
                for connection_row in connection_rows
            }
            await self.open_vault_secrets(connections.values())
            self._connections = connections
            self._refreshed_at = time.monotonic()
        return self._connections

    async def open_vault_secrets(self, connections: Iterable[Connection]) -> None:
        """Open the secrets that the vault holds for these connections."""
        await self._client_secrets.open_secrets(
            [connection.name for connection in connections if connection.has_vault_secret]
        )
