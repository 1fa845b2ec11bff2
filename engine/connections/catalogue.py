"""Reads connections from a file, stores them in the database, and attaches their secrets from the vault."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import yaml
from pydantic import TypeAdapter, ValidationError
from sqlmodel import select

from engine.connections.client_secrets import ClientSecrets
from engine.connections.connection import Connection
from engine.db.database import Database, utc_now
from engine.db.tables import ConnectionRow
from engine.errors import BylineError, ConnectionUnknown, SettingsInvalid
from engine.interpolation import InterpolationFailed, interpolate_variables
from engine.validation_errors import describe_validation_error

_REFRESH_INTERVAL_SECONDS: Final = 5.0
_CONNECTIONS_ADAPTER: Final = TypeAdapter(dict[str, Connection])


def read_connections(file_path: Path, environment: Mapping[str, str]) -> list[Connection]:
    """Return the connections that a YAML file declares, with its variables replaced.

    Raises SettingsInvalid, whose message says what is wrong and where.
    """
    try:
        document = interpolate_variables(yaml.safe_load(file_path.read_text()), environment)
        declarations = {
            connection_name: {"name": connection_name, **declaration}
            for connection_name, declaration in document["connections"].items()
        }
        return list(_CONNECTIONS_ADAPTER.validate_python(declarations).values())
    except OSError as error:
        raise SettingsInvalid(
            f"Cannot read the connections file {file_path}: set BYLINE_CONNECTIONS_FILE to one that exists."
        ) from error
    except InterpolationFailed as error:
        raise SettingsInvalid(f"The connections file {file_path} cannot be filled in: {error}.") from error
    except ValidationError as error:
        problems = describe_validation_error(error).replace(": Value error, ", ": ")
        raise SettingsInvalid(
            f"The connections file {file_path} does not hold together: {problems}."
        ) from error
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise SettingsInvalid(
            f"The connections file {file_path} is not YAML with a mapping `connections:` of name to connection."
        ) from error


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
            await self.attach_vault_secrets(connections.values())
            self._connections = connections
            self._refreshed_at = time.monotonic()
        return self._connections

    async def attach_vault_secrets(self, connections: Iterable[Connection]) -> None:
        """Open the secrets that the vault holds for these connections and attach them to their references.

        A secret that cannot be opened raises its error only where that secret is read.
        """
        vault_references = [
            (connection.name, secret_reference)
            for connection in connections
            for secret_reference in connection.secret_references
            if secret_reference is not None and secret_reference.vault
        ]
        if not vault_references:
            return
        sealed_secrets = await self._client_secrets.list_sealed_secrets()
        for connection_name, secret_reference in vault_references:
            try:
                secret_reference.set_vault_result(
                    await self._client_secrets.open_secret(connection_name, sealed_secrets[connection_name])
                    if connection_name in sealed_secrets
                    else None
                )
            except BylineError as error:
                secret_reference.set_vault_result(error)
