"""The connections: declared in a file, kept in the database, each `user` or `shared`; secrets stay references."""

import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Final, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, TypeAdapter, ValidationError, model_validator
from sqlmodel import select

from engine.db.database import Database, now
from engine.db.tables import ConnectionRow
from engine.errors import ConnectionMisconfigured, ConnectionUnknown, SettingsInvalid
from engine.interpolation import InterpolationFailed, interpolate
from engine.settings import LONGEST_WAIT

SHARED: Final = "shared"
"""The holder of every service grant."""

_REFRESH_SECONDS = 5.0


class Declaration(BaseModel):
    """A part of a connections file; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SecretReference(Declaration):
    """Where a client secret lies: an environment variable or a file, never the text itself."""

    env: str | None = None
    file: Path | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.env is None) == (self.file is None):
            msg = "name either env or file"
            raise ValueError(msg)
        return self

    def read(self, environment: Mapping[str, str]) -> str:
        """The secret; raises ConnectionMisconfigured where the place is empty."""
        if self.env is not None:
            value = environment.get(self.env, "")
        elif self.file is not None and self.file.is_file():
            value = self.file.read_text().strip()
        else:
            value = ""
        if not value:
            msg = f"The client secret is not there: set {self.env or self.file}."
            raise ConnectionMisconfigured(msg)
        return value


class Provider(Declaration):
    """The OAuth 2.0 endpoints of an upstream, and where it names the account that consented.

    With `issuer`, a callback must carry the same `iss` (RFC 9207).
    """

    issuer: str | None = None
    authorization_endpoint: HttpUrl
    token_endpoint: HttpUrl
    revocation_endpoint: HttpUrl | None = None
    userinfo_endpoint: HttpUrl | None = None
    account_claim: str = "preferred_username"
    authorization_parameters: dict[str, str] = Field(default_factory=dict)
    token_endpoint_auth_method: Literal["client_secret_basic", "client_secret_post", "none"] = (
        "client_secret_basic"
    )


class Connection(Declaration):
    """One named way to sign in to one upstream system.

    `system` is what the trail calls the upstream. `idempotency_keys` says that it honours the `Idempotency-Key`
    header, so that an action of unknown outcome may be sent again.
    """

    name: str
    title: str
    system: str
    mode: Literal["user", "shared"]
    base_url: HttpUrl
    provider: Provider
    scopes: tuple[str, ...] = ()
    client_id: str
    client_secret: SecretReference | None = None
    idempotency_keys: bool = False
    wait_limit: timedelta | None = Field(default=None, gt=timedelta(0), le=LONGEST_WAIT)

    def holder(self, principal_id: str) -> str:
        """Who holds the grant that this principal's actions use: the principal, or the service itself."""
        return principal_id if self.mode == "user" else SHARED


_CONNECTIONS = TypeAdapter(dict[str, Connection])


def read_connections(path: Path, environment: Mapping[str, str]) -> list[Connection]:
    """The connections of a YAML file, variables filled in; raises SettingsInvalid that says what is wrong where."""
    try:
        document = interpolate(yaml.safe_load(path.read_text()), environment)
        declared = {name: {"name": name, **body} for name, body in document["connections"].items()}
        return list(_CONNECTIONS.validate_python(declared).values())
    except OSError as error:
        msg = f"Cannot read the connections file {path}: set BYLINE_CONNECTIONS_FILE to one that exists."
        raise SettingsInvalid(msg) from error
    except InterpolationFailed as error:
        msg = f"The connections file {path} cannot be filled in: {error}."
        raise SettingsInvalid(msg) from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)
        )
        msg = f"The connections file {path} does not hold together: {problems}."
        raise SettingsInvalid(msg) from error
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        msg = f"The connections file {path} is not YAML with a mapping `connections:` of name to connection."
        raise SettingsInvalid(msg) from error


class Catalogue:
    """Owner of the table of connections; a change is seen by every process within five seconds."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connections: dict[str, Connection] = {}
        self._read_at = float("-inf")

    async def declare(self, connections: list[Connection]) -> None:
        """Put these connections into the database, over earlier ones of the same name; a mode is set once."""
        async with self._database.writing() as session:
            for connection in connections:
                earlier = await session.get(ConnectionRow, connection.name)
                if earlier is not None and earlier.declaration["mode"] != connection.mode:
                    msg = (
                        f"Connection '{connection.name}' was declared as {earlier.declaration['mode']}, and a mode is "
                        f"set once: declare the {connection.mode} one under another name."
                    )
                    raise SettingsInvalid(msg)
                declaration = connection.model_dump(mode="json")
                await session.merge(
                    ConnectionRow(name=connection.name, declaration=declaration, updated_at=now())
                )
        self._read_at = float("-inf")

    async def get(self, name: str) -> Connection:
        """The connection of this name; raises ConnectionUnknown."""
        connections = await self.all()
        if name not in connections:
            msg = (
                f"There is no connection '{name}'. Declare it in the file that BYLINE_CONNECTIONS_FILE names."
            )
            raise ConnectionUnknown(msg)
        return connections[name]

    async def all(self) -> Mapping[str, Connection]:
        """Every connection by name."""
        if time.monotonic() - self._read_at > _REFRESH_SECONDS:
            async with self._database.reading() as session:
                rows = (await session.exec(select(ConnectionRow).order_by(ConnectionRow.name))).all()
            self._connections = {row.name: Connection.model_validate(row.declaration) for row in rows}
            self._read_at = time.monotonic()
        return self._connections
