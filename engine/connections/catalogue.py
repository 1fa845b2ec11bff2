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
from engine.db.database import Database, now
from engine.db.tables import ConnectionRow
from engine.errors import BylineError, ConnectionUnknown, SettingsInvalid
from engine.interpolation import InterpolationFailed, interpolate

_REFRESH_SECONDS: Final = 5.0
_CONNECTIONS: Final = TypeAdapter(dict[str, Connection])


def read_connections(path: Path, environment: Mapping[str, str]) -> list[Connection]:
    """Return the connections that a YAML file declares, with its variables replaced.

    Raises SettingsInvalid, whose message says what is wrong and where.
    """
    try:
        document = interpolate(yaml.safe_load(path.read_text()), environment)
        declared = {name: {"name": name, **body} for name, body in document["connections"].items()}
        return list(_CONNECTIONS.validate_python(declared).values())
    except OSError as error:
        raise SettingsInvalid(
            f"Cannot read the connections file {path}: set BYLINE_CONNECTIONS_FILE to one that exists."
        ) from error
    except InterpolationFailed as error:
        raise SettingsInvalid(f"The connections file {path} cannot be filled in: {error}.") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors(include_input=False)
        )
        raise SettingsInvalid(f"The connections file {path} does not hold together: {problems}.") from error
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise SettingsInvalid(
            f"The connections file {path} is not YAML with a mapping `connections:` of name to connection."
        ) from error


class Catalogue:
    """Owns the table of connections. Every process sees a change within five seconds."""

    def __init__(self, database: Database, secrets: ClientSecrets) -> None:
        self._database = database
        self._secrets = secrets
        self._connections: dict[str, Connection] = {}
        self._read_at = float("-inf")

    async def declare(self, connections: list[Connection]) -> None:
        """Write these connections to the database, replacing earlier ones of the same name.

        Raises SettingsInvalid if a connection changes its mode, which cannot be changed.
        """
        async with self._database.writing() as session:
            for connection in connections:
                earlier = await session.get(ConnectionRow, connection.name)
                if earlier is not None and earlier.declaration["mode"] != connection.mode:
                    raise SettingsInvalid(
                        f"Connection '{connection.name}' was declared as {earlier.declaration['mode']}, and a mode is "
                        f"set once: declare the {connection.mode} one under another name."
                    )
                declaration = connection.model_dump(mode="json")
                await session.merge(
                    ConnectionRow(name=connection.name, declaration=declaration, updated_at=now())
                )
        self._read_at = float("-inf")

    async def get(self, name: str) -> Connection:
        """Return the connection with this name. Raises ConnectionUnknown."""
        connections = await self.all()
        if name not in connections:
            raise ConnectionUnknown(
                f"There is no connection '{name}'. Declare it in the file that BYLINE_CONNECTIONS_FILE names."
            )
        return connections[name]

    async def all(self) -> Mapping[str, Connection]:
        """Return every connection by name."""
        if time.monotonic() - self._read_at > _REFRESH_SECONDS:
            async with self._database.reading() as session:
                rows = (await session.exec(select(ConnectionRow).order_by(ConnectionRow.name))).all()
            connections = {row.name: Connection.model_validate(row.declaration) for row in rows}
            await self.give_secrets(connections.values())
            self._connections = connections
            self._read_at = time.monotonic()
        return self._connections

    async def give_secrets(self, connections: Iterable[Connection]) -> None:
        """Open the secrets that the vault holds for these connections and attach them to their references.

        A secret that cannot be opened raises its error only where that secret is read.
        """
        wanting = [
            (connection.name, reference)
            for connection in connections
            for reference in connection.secrets
            if reference is not None and reference.vault
        ]
        if not wanting:
            return
        sealed = await self._secrets.sealed_now()
        for name, reference in wanting:
            try:
                reference.give(await self._secrets.open(name, sealed[name]) if name in sealed else None)
            except BylineError as error:
                reference.give(error)
